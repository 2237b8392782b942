"""Laws of functions of the user's own in a step: what they are told of a row, and what becomes of what they return."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tests.rewards import own_functions
from tests.rewards.test_graded import GRADING

from lifecycle.batch import TURNS
from lifecycle.errors import UserError
from lifecycle.rewards.record import Answered
from lifecycle.stages.reinforcement.acting.scorers.functions import Functions
from lifecycle.stages.reinforcement.acting.scorers.scorer import SamplesToMark

HOME = own_functions.__name__
TOLD, TEXT = f"{HOME}:told", f"{HOME}:by_the_text"


def asked(completions: list[str], **wanted: list[bool]) -> SamplesToMark:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    record = Answered(answer="4", prompt="<|bos|>s q", meta={TURNS: turns, "options": ["a"], "columns": {"hard": 3}})
    given: Any = {
        "stage": None,
        "rollout": SimpleNamespace(text=completions),
        "prompts": SimpleNamespace(meta=[record.meta]),
        "index": [0] * len(completions),
        "records": [record],
        "sources": ["mine"] * len(completions),
    }
    return SamplesToMark(**given, wanted={name: torch.tensor(by) for name, by in wanted.items()})


def test_a_function_reads_the_plain_prompt_and_the_columns_and_marks_only_what_it_is_asked_for() -> None:
    scorer = Functions([("stage.rewards", TOLD), ("data.sources.mine.rewards", TEXT)], GRADING)
    try:
        found = scorer.marked(asked(["none", "raise", "part"], **{TOLD: [True, False, False], TEXT: [True] * 3}))
    finally:
        scorer.close()
    assert scorer.names == (TOLD, TEXT)
    assert found.marks[TOLD].isnan().tolist() == [False, True, True] and found.marks[TOLD][0] == 1
    assert found.marks[TEXT].isnan().tolist() == [True, True, False] and found.marks[TEXT][2] == 0.25
    assert found.failed == {TEXT: 1} and not found.timed_out and "KeyError: 'kw'" in found.said[TEXT]
    assert not cast(Any, scorer.told())


def test_a_run_does_not_go_on_with_another_text_of_a_function() -> None:
    texts = Functions([("stage.rewards", TOLD)], GRADING).carried["functions"]
    state = texts.state()
    texts.restore(state)
    texts.restore(None)  # of an older version
    texts.restore({"of_another:key": "0" * 64})
    with pytest.raises(UserError, match=f"the file of the reward {TOLD} has changed"):
        texts.restore({TOLD: "0" * 64})
    assert len(state[TOLD]) == 64
