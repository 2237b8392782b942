"""The policy of the guard by hand-made tables: levels, one action at a time, and what is safe to go back to."""

from dataclasses import replace

import pytest

from lifecycle.callbacks.forgetting import History, Measurement, assess, level_of
from lifecycle.callbacks.guard import line
from lifecycle.config.schema import Guard
from lifecycle.errors import UserError

SPEC = Guard(watch=0.05, act=0.10, stop=0.20, actions=["replay", "rate"], patience=2, replay_step=0.1, replay_max=0.3)


def play(worsts: list[float], spec: Guard = SPEC, share: float = 0.0) -> list[Measurement]:
    """Measurements whose retained domain has lost so much, each with what was decided before in force."""
    history, rate = History(), 1.0
    for number, worst in enumerate(worsts):
        perplexity = {"old": 10.0 * (1 + worst), "kept": 5.0, "new": 30.0 - number}
        found = assess(number * 100, perplexity, ["old", "kept"], history, spec, share=share, rate=rate)
        history.measurements.append(found)
        share = found.to if found.action == "replay" and found.to is not None else share
        rate = found.to if found.action == "rate" and found.to is not None else rate
    return history.measurements


@pytest.mark.parametrize(
    ("worst", "level"),
    [(-0.2, "fine"), (0.049, "fine"), (0.05, "watch"), (0.099, "watch"), (0.1, "act"), (0.199, "act"), (0.2, "stop")],
)
def test_levels_begin_at_their_thresholds(worst: float, level: str) -> None:
    assert level_of(worst, SPEC) == level


def test_forgetting_is_relative_to_the_start_and_of_retained_domains_only() -> None:
    found = play([0.0, 0.07])[-1]
    assert found.forgetting == pytest.approx({"old": 0.07, "kept": 0.0})
    assert found.worst == pytest.approx(0.07) and (found.level, found.action) == ("watch", None)


def test_replay_is_raised_step_by_step_then_the_rate_is_halved_and_each_is_given_time() -> None:
    found = play([0.0, 0.0] + [0.15] * 13)
    acted = [(number, m.action, m.to) for number, m in enumerate(found) if m.action]
    assert [action for _, action, _ in acted] == ["replay"] * 3 + ["rate"] * 2
    assert [to for _, _, to in acted] == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.25])
    numbers = [number for number, _, _ in acted]
    assert numbers == [2, 5, 8, 11, 14]  # two measurements between one action and the next


def test_nothing_is_done_below_the_threshold_nor_without_actions() -> None:
    assert all(m.action is None for m in play([0.0, 0.09, 0.09, 0.09]))
    silent = play([0.0, 0.12, 0.15, 0.25], replace(SPEC, actions=[]))
    assert all(m.action is None for m in silent)
    assert "stage.replay.share=0.1" in silent[-1].advice and "guard.actions=[replay]" in line(silent[-1])
    assert "lower the rate" in play([0.0, 0.15], replace(SPEC, actions=[]), share=0.3)[-1].advice


def test_the_rate_is_never_less_than_an_eighth() -> None:
    found = play([0.0] + [0.15] * 20, replace(SPEC, actions=["rate"], patience=1))
    assert [m.to for m in found if m.action] == [0.5, 0.25, 0.125]


def test_far_above_it_goes_back_only_where_that_was_asked_for() -> None:
    worsts = [0.0, 0.03, 0.12, 0.3]
    assert play(worsts)[-1].action != "restore"
    found = play(worsts, replace(SPEC, actions=["replay", "restore"]))
    assert found[-1].action == "restore"
    history = History(found)
    # measured at 0, 100, 200, 300: 200 was the last below 20 %, and 250 lies before one that was not
    assert history.safe_steps([50, 100, 150, 200, 250, 300]) == [50, 100, 150, 200]


def test_a_measurement_survives_a_checkpoint_and_reads_well() -> None:
    found = replace(play([0.0, 0.0, 0.15])[-1], binds=202)
    assert Measurement(**found.plain()) == found
    assert line(found) == (
        "forgetting at step 200: old +15.0%, kept +0.0% (act); replay goes from 0% to 10% of the tokens at step 202"
    )


def test_thresholds_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(UserError, match="must ascend"):
        replace(SPEC, watch=0.2)
