"""The first limit reached ends a run, in steps worked out by hand."""

from typing import Any

import pytest

from lifecycle.duration import Limits, PhaseSpec, Segment, Timeline, ended_by_config
from lifecycle.errors import UserError


def limits(**changes: object) -> Limits:
    values = {"max_steps": None, "max_tokens": None, "max_epochs": None}
    return Limits(view="text", global_batch_tokens=1024, sequence_length=128, **{**values, **changes})  # type: ignore[arg-type]


def never(*_: object) -> int:
    raise AssertionError("no pass needs to be counted")


def quarter(line: Timeline) -> float:
    return line.tokens() / 4


def test_the_first_limit_reached_counts() -> None:
    assert limits(max_steps=7).timeline(never, never).steps == 7
    assert limits(max_tokens=10_000).timeline(never, never).steps == 9  # 9 x 1024 = 9,216: the limit is never passed
    assert limits(max_steps=12, max_tokens=10_000).timeline(never, never).steps == 9


def test_a_pass_over_a_source_takes_the_steps_of_its_share() -> None:
    # 5,000 positions are a quarter of the tokens: 20,000 tokens in all a pass, 19.5 steps, and the pass is completed
    assert limits(max_epochs=1).timeline(lambda: 5000, quarter).steps == 20
    assert limits(max_epochs=0.5).timeline(lambda: 5000, quarter).steps == 10
    assert limits(max_epochs=2, max_steps=30).timeline(lambda: 5000, quarter).steps == 30


def test_a_pass_waits_for_the_phase_that_reads_the_source() -> None:
    # nothing of it in the first 10 steps, all of every step from there on: 5,000 positions are 4.9 steps
    made = limits(max_epochs=1)
    assert made.timeline(lambda: 5000, lambda line: 1024.0 * max(0, line.steps - 10)).steps == 15
    with pytest.raises(UserError, match="gives too little to data.epoch_source"):
        made.timeline(lambda: 5000, lambda line: 1024.0 * min(line.steps, 4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the run has no end"),
        ({"max_steps": 1, "global_batch_tokens": 1000}, "multiple of stage.sequence_length.*try 1024"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], words: str) -> None:
    base = {"view": "text", "global_batch_tokens": 1024, "sequence_length": 128}
    base |= {"max_steps": None, "max_tokens": None, "max_epochs": None}
    with pytest.raises(UserError, match=words):
        Limits(**{**base, **changes})  # type: ignore[arg-type]


def test_fewer_tokens_than_a_step_are_refused() -> None:
    with pytest.raises(UserError, match="less than one step"):
        limits(max_tokens=1000).timeline(never, never)


def run(*lines: dict[str, Any], **limit: int | None) -> Timeline:
    """The timeline of a run of 1,024 tokens a step, in rows of at most 512."""
    none: dict[str, Any] = {"max_steps": None, "max_tokens": None, "max_epochs": None}
    made = Limits(
        view="text",
        global_batch_tokens=1024,
        sequence_length=512,
        phases=[PhaseSpec(**line) for line in lines],
        **{**none, **limit},
    )
    return made.timeline(never, never)


def test_without_phases_all_steps_are_alike() -> None:
    line = run(max_steps=7)
    assert line.segments == (Segment(step=0, row_length=512, rows=2),)
    assert (line.tokens(), line.tokens(3), line.rate(5)) == (7168, 3072, 1.0)


def test_rows_get_fewer_as_they_get_longer_and_tokens_stay() -> None:
    line = run(
        {"at_steps": 0, "sequence_length": 64}, {"at_steps": 5, "sequence_length": 512, "rate": 0.5}, max_steps=9
    )
    assert [(s.step, s.row_length, s.rows, s.tokens) for s in line.segments] == [(0, 64, 16, 1024), (5, 512, 2, 1024)]
    assert [line.rate(step) for step in (4, 5)] == [1.0, 0.5]
    assert line.tokens_by_length() == {64: 5 * 1024, 512: 4 * 1024}


def test_the_base_of_the_positions_stays_until_a_line_changes_it() -> None:
    lines: list[dict[str, Any]] = [{"at_steps": 0}, {"at_steps": 3, "rope_theta": 5e4}, {"at_steps": 6, "rate": 0.5}]
    line = run(*lines, max_steps=9)
    assert [line.rope_theta(step) for step in (0, 2, 3, 6, 8)] == [None, None, 5e4, 5e4, 5e4]


@pytest.mark.parametrize("unit", ["at_steps", "at_tokens", "at_fraction"])
def test_the_three_units_mean_the_same(unit: str) -> None:
    begins = {"at_steps": (0, 10), "at_tokens": (0, 10 * 256), "at_fraction": (0, 0.25)}[unit]
    lines: list[dict[str, Any]] = [{unit: begins[0], "sequence_length": 128, "rows": 2}, {unit: begins[1], "rows": 4}]
    line = run(*lines, max_steps=40)
    assert [s.step for s in line.segments] == [0, 10]
    assert line.tokens() == 10 * 256 + 30 * 2048


def asked(*lines: dict[str, Any], **changes: Any) -> Limits:
    """The limits of a stage with 4 prompts a step, 2 samples of each, and 16 positions of one."""
    given = {"view": "prompt", "max_steps": None, "max_tokens": None, "max_epochs": None, "global_batch_tokens": None}
    sizes = {"sequence_length": 16, "prompts_per_step": 4, "samples_per_prompt": 2}
    return Limits(**{**given, **sizes, "phases": [PhaseSpec(**line) for line in lines], **changes})


def test_phases_of_samples_change_their_number_temperature_and_kl() -> None:
    lines: list[dict[str, Any]] = [
        {"at_tokens": 0, "temperature": 1.2},
        {"at_tokens": 3 * 128, "samples_per_prompt": 8, "kl_coefficient": 0.0, "rate": 0.5},
        {"at_tokens": 3 * 128 + 2 * 512, "rows": 2},
    ]
    line = asked(*lines, max_tokens=3 * 128 + 2 * 512 + 3 * 64 + 63).timeline(never, never)
    found = [(s.step, s.rows, s.samples, s.tokens, s.temperature, s.kl_coefficient) for s in line.segments]
    assert found == [(0, 4, 2, 128, 1.2, None), (3, 4, 8, 512, None, 0.0), (5, 2, 2, 64, None, None)]
    assert line.steps == 8 and line.tokens() == 3 * 128 + 2 * 512 + 3 * 64
    assert [steps for _, steps in line.steps_by_segment()] == [3, 2, 3]
    assert [line.rate(step) for step in (2, 3)] == [1.0, 0.5]


@pytest.mark.parametrize("key", ["samples_per_prompt", "temperature", "kl_coefficient"])
def test_stages_without_samples_refuse_phases_of_them(key: str) -> None:
    with pytest.raises(UserError, match=rf"stage.phases\[1\] has {key}, and this stage draws no samples"):
        run({"at_steps": 0}, {"at_steps": 2, key: 1}, max_steps=4)


@pytest.mark.parametrize("tokens", [2559, 2560, 2561, 2560 + 2048 * 3, 2560 + 2048 * 3 - 1])
def test_a_limit_in_tokens_is_never_passed_over_phases(tokens: int) -> None:
    line = run({"at_steps": 0, "sequence_length": 128, "rows": 2}, {"at_steps": 10, "rows": 4}, max_tokens=tokens)
    assert line.tokens() <= tokens < line.tokens() + (256 if line.steps < 10 else 2048)
    for count in (1, 256, 257, 2560, 2561, 6000):
        assert line.tokens(line.steps_of(count)) >= count > line.tokens(line.steps_of(count) - 1)


def test_shares_of_a_run_in_tokens_settle() -> None:
    line = run(
        {"at_fraction": 0.0, "sequence_length": 128, "rows": 2}, {"at_fraction": 0.5, "rows": 4}, max_tokens=23_040
    )
    assert (line.steps, [s.step for s in line.segments]) == (20, [0, 10])
    assert line.tokens() == 23_040


def test_the_last_steps_are_counted_back_from_the_end() -> None:
    line = run({"at_steps": 0, "sequence_length": 128, "rows": 2}, {"at_steps": 10, "rows": 4}, max_steps=12)
    assert [line.last_steps_of(tokens) for tokens in (1, 2048, 2049, 4096, 4097, 10**9)] == [1, 1, 2, 2, 3, 12]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"sequence_length": 64}], "gives no beginning"),
        ([{"at_steps": 0, "at_tokens": 0}], "exactly one of"),
        ([{"at_steps": 3}], "the first begins at 0"),
        ([{"at_steps": 0}, {"at_steps": 0}], "each other after the last"),
        ([{"at_steps": 0}, {"at_tokens": 9}], "one unit in all lines"),
        ([{"at_steps": 0, "sequence_length": 1024}], "wanted at most 512"),
        ([{"at_steps": 0, "sequence_length": 100}], "does not divide"),
    ],
)
def test_phases_that_make_no_run_are_refused(lines: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(*lines, max_steps=5)


def test_a_limit_that_was_typed_and_does_not_end_the_run_is_said() -> None:
    def said(*words: str, **given: object) -> str:
        return " ".join(ended_by_config(limits(**given), words, lambda one: one.timeline(never, never)))

    cut = said("stage.max_tokens=1e6", "stage.lr=1", max_steps=20, max_tokens=1_000_000)
    assert cut.startswith(
        "the run ends after 20 steps, by stage.max_steps=20 of the config; stage.max_tokens=1000000 as"
    )
    assert cut.endswith("would be 976 steps: type stage.max_steps=null to let it count")
    assert said("stage.max_tokens=10240", max_steps=20, max_tokens=10_240) == ""  # it comes first
    assert said("stage.max_steps=20", "stage.max_tokens=1e6", max_steps=20, max_tokens=1_000_000) == ""
    assert said("stage.max_steps=null", "stage.max_tokens=1e6", max_tokens=1_000_000) == ""
    assert said(max_steps=20, max_tokens=1_000_000) == ""
