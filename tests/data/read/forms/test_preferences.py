"""Laws of preference data: the better answer is the chosen one, in whichever column it is, and ties are left out."""

from typing import Any

import pytest

from lifecycle.batch import Record
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec

QUESTION = {"role": "user", "content": "2+2?"}
GOOD, BAD = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}


def record(row: dict[str, Any], form: str, tie_margin: float = 0.0, **fields: Any) -> Record:
    spec = SourceSpec(path="x", format=form, fields=fields, tie_margin=tie_margin)
    return to_record(row, spec=spec, name="mine", row_id="1")


def reason(row: dict[str, Any], form: str, **more: Any) -> str:
    with pytest.raises(BadRow) as bad:
        record(row, form, **more)
    return bad.value.reason


PAIRS: list[dict[str, Any]] = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "2+2?", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
    {
        "prompt": [{"from": "human", "value": "2+2?"}],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
    {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
    {"prompt": "\n\nHuman: 2+2?", "chosen": "4", "rejected": "5"},
]


@pytest.mark.parametrize("row", PAIRS)
def test_every_way_to_give_a_pair_means_the_same(row: dict[str, Any]) -> None:
    made = record(row, "preference")
    assert made.messages == [QUESTION] and made.chosen == [GOOD] and made.rejected == [BAD]
    assert as_text(made) == "User: 2+2?\n\nAssistant: 4\n\nAssistant: 5"
    assert "margin" not in made.meta


def test_a_conversation_is_shared_up_to_where_the_answers_part() -> None:
    start = "\n\nHuman: 1+1?\n\nAssistant: 2\n\nHuman: 2+2?\n\nAssistant:"
    made = record({"chosen": f"{start} 4", "rejected": f"{start} 5"}, "preference")
    assert made.messages is not None and [turn["content"] for turn in made.messages] == ["1+1?", "2", "2+2?"]
    longer = record({"chosen": f"{start} 4", "rejected": f"{start} 4\n\nHuman: Sure?\n\nAssistant: No."}, "preference")
    assert longer.chosen == [GOOD] and longer.rejected[0] == GOOD and len(longer.rejected) == 3


def test_pairs_that_cannot_be_read_say_why() -> None:
    row = PAIRS[0]
    assert reason(row | {"rejected": "4"}, "preference") == "both answers are the same"
    assert reason(row | {"rejected": None}, "preference") == "missing field rejected"
    assert reason(row | {"chosen": " "}, "preference") == "empty"
    assert reason({"chosen": "4", "rejected": "5"}, "preference").startswith("no prompt: a plain text where Human:")
    assert reason({"chosen": [GOOD], "rejected": [BAD]}, "preference") == (
        "no prompt: the two answers begin with nothing in common"
    )
    other = [QUESTION, GOOD, {"role": "user", "content": "Sure?"}]
    assert reason({"chosen": other, "rejected": [QUESTION, BAD]}, "preference") == (
        "an answer that is no turn of the assistant"
    )
    repeated = {"prompt": [QUESTION], "chosen": [QUESTION], "rejected": [BAD]}  # the prompt, and nothing behind it
    assert reason(repeated, "preference") == "an answer that is no turn of the assistant"


def test_input_follows_an_instruction_and_a_margin_is_read_where_it_is_named() -> None:
    row = {"instruction": "Add.", "input": "2, 2", "output": "4", "chosen": "4", "rejected": "5", "gap": 2}
    made = record(row, "preference", prompt="instruction", margin="gap")
    assert made.messages == [{"role": "user", "content": "Add.\n\n2, 2"}] and made.meta == {"margin": 2.0}


@pytest.mark.parametrize(
    ("scores", "better", "margin"),
    [
        ({"score_1": 7, "score_2": 4.5}, "first", 2.5),
        ({"score_1": 4.5, "score_2": 7}, "second", 2.5),
        ({"preference": 1.0}, "first", 1.0),
        ({"preference": 1.75}, "second", 0.5),
    ],
)
def test_the_higher_score_is_chosen(scores: dict[str, float], better: str, margin: float) -> None:
    row = {"prompt": "q", "response_1": "first", "response_2": "second", **scores}
    made = record(row, "scored_pairs")
    worse = {"first": "second", "second": "first"}[better]
    assert (made.chosen[0]["content"], made.rejected[0]["content"]) == (better, worse)
    assert made.meta == {"margin": margin}


def test_a_near_tie_is_left_out() -> None:
    row = {"prompt": "q", "response_1": "a", "response_2": "b"}
    assert reason(row | {"preference": 1.5}, "scored_pairs") == "near tie"
    assert reason(row | {"preference": 1.45}, "scored_pairs", tie_margin=0.2) == "near tie"
    assert record(row | {"preference": 1.45}, "scored_pairs").chosen[0]["content"] == "a"
    assert reason(row | {"score_1": 3, "score_2": 4}, "scored_pairs", tie_margin=1) == "near tie"
    assert reason(row | {"preference": 3}, "scored_pairs") == "preference is not between 1 and 2"
    assert reason(row, "scored_pairs") == "missing field preference, or score_1 and score_2"
    assert reason(row | {"score_1": "9", "score_2": 4}, "scored_pairs") == "wrong type of score_1: str"


def test_a_number_that_is_none_or_infinite_decides_nothing() -> None:
    row = {"prompt": "q", "response_1": "a", "response_2": "b", "score_2": 1}
    nan, infinite = float("nan"), float("inf")
    assert reason(row | {"score_1": nan}, "scored_pairs") == "missing field preference, or score_1 and score_2"
    assert reason(row | {"score_1": infinite}, "scored_pairs") == "score_1 is too large a number"
    assert "margin" not in record(PAIRS[0] | {"margin": nan}, "preference", margin="margin").meta
    assert reason(PAIRS[0] | {"margin": 1e39}, "preference", margin="margin") == "margin is too large a number"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, GOOD], "label": True},
        {"prompt": "2+2?", "completion": "4", "label": 1},
        {"prompt": [QUESTION], "completion": [GOOD], "label": True},
        {"prompt": [QUESTION], "completion": "4", "label": True},
        {"prompt": "2+2?", "completion": GOOD, "label": True},
    ],
)
def test_an_answer_is_good_or_bad(row: dict[str, Any]) -> None:
    made = record(row, "unpaired")
    assert made.messages == [QUESTION] and made.completion == "4" and made.label is True
    assert record(row | {"label": 0}, "unpaired").label is False
    assert as_text(made) == "User: 2+2?\n\nAssistant: 4"
    assert record(row | {"label": 0.0}, "unpaired").label is False  # as pandas writes it beside rows without one
    for strange in (2, -1, 0.5, float("nan")):
        assert reason(row | {"label": strange}, "unpaired") == "label is neither true nor false, 1 nor 0"
    assert reason(row | {"label": "1"}, "unpaired") == "wrong type of label: str"
    assert reason(row | {"label": None}, "unpaired") == "missing field label"


def test_labelled_rows_that_cannot_be_read_say_why() -> None:
    assert reason({"messages": [QUESTION], "label": True}, "unpaired") == "no answer at the end"
    assert reason({"completion": "4", "label": True}, "unpaired") == "missing field prompt"
    assert reason({"prompt": "q", "label": True}, "unpaired") == "missing field completion"
    for said, why in (([QUESTION], "an answer that is no turn of the assistant"), ([GOOD, GOOD], "several turns")):
        assert why in reason({"prompt": "q", "completion": said, "label": True}, "unpaired")
