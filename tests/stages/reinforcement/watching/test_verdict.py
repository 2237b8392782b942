"""What a pre-flight means: refused where nothing can be learnt, warned of what is near to that, and what to do."""

from dataclasses import replace
from typing import Any

import pytest

from lifecycle.rewards.graders import READERS, STATED
from lifecycle.stages.reinforcement.settings import PreflightKeys
from lifecycle.stages.reinforcement.watching.preflight import Preflight
from lifecycle.stages.reinforcement.watching.verdict import WANTED, Drawing, refusal, verdict

KEYS = PreflightKeys(prompts=32, samples=8, refuse_below=0.02, warn_below=0.2)
DRAWING = Drawing(max_new_tokens=64, temperature=1.0, samples_per_prompt=8, ends=["<|end|>"])
GOOD = Preflight(
    prompts=32,
    samples=8,
    stopped=0.9,
    stated={"choice": 0.8},
    marked=1.0,
    reward=0.4,
    right=(0.4, 0.8),
    varying=0.6,
    full=0.1,
    length=20.0,
    longest=64,
    failed={},
    timed_out={},
    said={},
    too_long={},
    seconds=3.0,
    step_seconds=1.0,
)
ENDLESS = ("max_new_tokens=64", "<|end|>", "stage=sft", "data.chat_template", "stage.sampling.stop")
HARD = ("Too hard", "easier data", "stage=sft", "stage.rewards=", "stage.samples_per_prompt=16")
REFUSED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"stopped": 0.0}, ENDLESS),
    ({"stopped": 0.01}, ENDLESS),
    ({"stated": {"choice": 0.0}}, ("'choice'", "The answer is (B)", "stage.rewards")),
    ({"varying": 0.0, "full": 0.0, "right": (0.0, 0.0)}, HARD),
    ({"varying": 0.0, "full": 1.0, "right": (1.0, 1.0)}, ("Too easy", "harder data")),
    ({"varying": 0.0, "full": 0.5, "right": (0.5, 0.5)}, ("always right or never", "temperature=1.2")),
    ({"marked": 0.0, "varying": 0.0, "reward": None}, ("known answer", "data.sources.NAME.fields")),
    ({"marked": 0.0, "failed": {"code": 256}, "said": {"code": "OSError: no"}}, ("'code' failed 256", "OSError: no")),
]


def test_a_policy_that_can_learn_is_let_through_without_a_word() -> None:
    assert verdict(GOOD, KEYS, DRAWING).refused == verdict(GOOD, KEYS, DRAWING).warned == []


@pytest.mark.parametrize(("found", "words"), REFUSED)
def test_nothing_to_learn_from_is_refused_with_what_to_do(found: dict[str, Any], words: tuple[str, ...]) -> None:
    judged = verdict(replace(GOOD, **found), KEYS, DRAWING)
    assert len(judged.refused) == 1 and not judged.warned
    assert all(word in judged.refused[0] for word in words), judged.refused
    assert "stage.preflight.refuse_below=0" in refusal(judged.refused)


@pytest.mark.parametrize(("found", "words"), REFUSED)
def test_on_purpose_it_is_only_warned_of(found: dict[str, Any], words: tuple[str, ...]) -> None:
    judged = verdict(replace(GOOD, **found), replace(KEYS, refuse_below=0.0), DRAWING)
    assert not judged.refused and all(word in judged.warned[0] for word in words)


@pytest.mark.parametrize(
    "found", [{"stopped": 0.1}, {"stated": {"choice": 0.1}}, {"varying": 0.1}, {"marked": 0.1, "said": {"choice": "x"}}]
)
def test_what_is_near_to_it_is_warned_of(found: dict[str, Any]) -> None:
    judged = verdict(replace(GOOD, **found), KEYS, DRAWING)
    assert not judged.refused and len(judged.warned) == 1


def test_few_prompts_that_do_not_vary_may_be_chance() -> None:
    few = replace(GOOD, varying=0.0, prompts=8)
    assert (
        not verdict(few, KEYS, DRAWING).refused and "only such prompts teach" in verdict(few, KEYS, DRAWING).warned[0]
    )


def test_every_fault_is_told_at_once() -> None:
    judged = verdict(replace(GOOD, stopped=0.0, stated={"choice": 0.0}, varying=0.0, right=(0.0, 0.0)), KEYS, DRAWING)
    assert len(judged.refused) == 3 and refusal(judged.refused).count("\n  - ") == 3


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({"right": (0.0, 0.0)}, "no completion is right"),
        ({"too_long": {"asked": 0.5}}, "50.0% of the rows of source 'asked'"),
        ({"timed_out": {"code": 100}}, "'code' took too long for 100 of 256"),
        ({"failed": {"judge": 3}, "said": {"judge": "refused"}}, "'judge' failed on 3 of 256"),
    ],
)
def test_what_never_ends_a_run_is_warned_of(found: dict[str, Any], word: str) -> None:
    judged = verdict(replace(GOOD, **found), KEYS, DRAWING)
    assert not judged.refused and len(judged.warned) == 1 and word in judged.warned[0]


def test_what_each_grader_reads_is_said_with_an_example_that_it_reads() -> None:
    assert {*WANTED} == {name.removesuffix(STATED) for name in READERS}
