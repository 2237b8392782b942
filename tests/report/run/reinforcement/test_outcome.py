"""What a run that learns from its own samples has gained, as its report opens with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lifecycle.report.page.render import Sheet
from lifecycle.report.run.facts import headline
from lifecycle.report.run.reinforcement.outcome import is_share, outcome, outcome_table, reached
from lifecycle.report.run.run_data import RunData, read_run
from lifecycle.report.run.sections import overview, sections, verdict
from lifecycle.rewards.interval import wilson


@pytest.fixture(scope="module")
def run(finished: Path) -> RunData:
    return read_run(finished)


def trained(run: RunData, *, steps: int = 50, **stage: Any) -> RunData:
    """On samples of so many steps, measured before the first and after the last one; the reward rises to 1."""
    rising = [step / steps for step in range(1, steps + 1)]
    measured = {"asked/loss": (-0.25, -0.5), "asked/reward": (0.25, 0.5), "asked/stopped": (1.0, 0.9)}
    told: dict[str, list[float | None]] = {"step": [float(step) for step in range(steps + 1)]}
    told |= {
        "rollout/reward": [None, *rising],
        "policy/kl": [None, *[0.125] * steps],
        "rollout/stopped": [0.0, *rising],
    }
    told |= {f"valid/{name}": [first, *[None] * (steps - 1), last] for name, (first, last) in measured.items()}
    told["valid/loss"] = told["valid/asked/loss"]
    of_data = {"validation": {"asked": {"documents": 100}}}
    config = {**run.config, "stage": {**run.config["stage"], "rewards": "choice", **stage}}
    return replace(run, metrics=told, config=config, run={**run.run, "data": of_data})


def test_right_answers_stand_first_with_their_interval(run: RunData) -> None:
    columns, rows = outcome_table(trained(run))
    assert columns == ["", "at the start", "at the end"]
    low, high = wilson(0.5, 100)
    assert rows[0][0] == "held out, asked: right" and rows[0][1].startswith("25.0 % (")
    assert rows[0][2] == f"50.0 % ({100 * low:.1f} to {100 * high:.1f})"


def test_samples_are_compared_by_the_means_of_ten_steps_without_rows_of_held_out_answers(run: RunData) -> None:
    rows = dict((row[0], row[1:]) for row in outcome_table(trained(run))[1])
    assert rows["samples: reward"] == ["0.110", "0.910"]  # means of 1 to 10 and of 41 to 50 fiftieths
    assert rows["samples: came to their own end"] == ["11.0 %", "91.0 %"]
    assert rows["samples: KL to the reference, nats a token"] == ["0.125", "0.125"]


@pytest.mark.parametrize(
    ("stage", "share"),
    [
        ({}, True),
        ({"rewards": {"number": 1.0}}, True),
        ({"rewards": {"number": 0.5}}, False),
        ({"rewards": {"number": 1.0, "format": 0.1}}, False),
        ({"rewards": "reward_model"}, False),
        ({"rewards": "my_rewards:polite"}, False),
        ({"overlong_buffer": 16}, False),
    ],
)
def test_a_reward_is_a_share_of_right_answers_only_where_it_is_one(
    run: RunData, stage: dict[str, Any], share: bool
) -> None:
    one = trained(run, **stage)
    assert is_share(one) == share
    assert reached(one) == (
        "right held-out answers 25.0 % to 50.0 % on asked" if share else "held-out reward 0.25 to 0.50 on asked"
    )


def test_a_source_with_a_reward_of_its_own_makes_it_no_share(run: RunData) -> None:
    one = trained(run)
    assert not is_share(replace(one, config={**one.config, "data": {"sources": {"asked": {"rewards": "length"}}}}))


def test_what_was_measured_once_has_no_start(run: RunData) -> None:
    one = trained(run, steps=1)
    once = {name: [None, *values[1:]] if "/" in name else values for name, values in one.metrics.items()}
    rows = outcome_table(replace(one, metrics=once))[1]
    assert [row[1] for row in rows] == ["–"] * len(rows)


def test_several_rewards_stand_by_their_names(run: RunData) -> None:
    one = trained(run)
    parts = {f"reward/{name}": one.metrics["rollout/reward"] for name in ("choice", "format")}
    names = [row[0] for row in outcome_table(replace(one, metrics={**one.metrics, **parts}))[1]]
    assert names[2:5] == ["samples: reward", "samples: reward choice", "samples: reward format"]


def test_the_report_opens_with_it_and_tells_no_loss(run: RunData) -> None:
    one = trained(run)
    facts = headline(one)
    assert verdict(one, facts).endswith("; right held-out answers 25.0 % to 50.0 % on asked.")
    first = next(block for block in sections(one, []) if isinstance(block, Sheet))
    assert first == outcome(one)[0]
    assert ("reward, held out", "0.500") in overview(one, facts)
    assert not [name for name, _ in overview(one, facts) if name.startswith("loss")]


def test_any_other_run_has_no_such_table(run: RunData) -> None:
    assert outcome(run) == [] and not run.learns_from_samples
