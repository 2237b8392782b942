"""Laws of formats: rows as published become records, records become text, and a row that does not fit says why."""

import json
import random
from collections import Counter
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from tests.real import rows

from lifecycle.batch import Record
from lifecycle.data.read.formats import FORMATS, to_record, views
from lifecycle.data.read.in_words import as_text, held_out_by
from lifecycle.data.read.rows.readers import BadRow
from lifecycle.data.read.spec import SourceSpec

MEDQA = SourceSpec(path="x", format="multiple_choice", fields={"answer": "answer_idx"})
MEDMCQA = SourceSpec(
    path="x",
    format="multiple_choice",
    fields={"options": ["opa", "opb", "opc", "opd"], "answer": "cop", "explanation": "exp"},
)
GSM8K = SourceSpec(path="x", format="word_problem")
TEXT = SourceSpec(path="x")


def record(row: dict[str, Any], spec: SourceSpec) -> Record:
    return to_record(row, spec=spec, name="mine", row_id="mine:3")


def columns(spec: SourceSpec) -> set[str]:
    return set(spec.columns)


def reason(row: dict[str, Any], spec: SourceSpec) -> str:
    with pytest.raises(BadRow) as bad:
        record(row, spec)
    return bad.value.reason


def test_text_is_the_document_unchanged() -> None:
    made = record({"text": "  a\n\nb \n", "title": 5, "level": "x"}, TEXT)
    assert (made.id, made.source, made.domain) == ("mine:3", "mine", "mine")
    assert as_text(made) == "  a\n\nb \n"
    assert record({"text": "a"}, SourceSpec(path="x", domain="prose")).domain == "prose"


def test_a_title_that_is_named_comes_before_its_text() -> None:
    spec = SourceSpec(path="x", fields={"title": "head", "text": "body.main"})
    assert as_text(record({"head": "T", "body": {"main": "b"}}, spec)) == "T\n\nb"
    assert as_text(record({"head": None, "body": {"main": "b"}}, spec)) == "b"
    assert as_text(record({"body": {"main": "b"}}, spec)) == "b"
    assert reason({"head": 5, "body": {"main": "b"}}, spec) == "wrong type of head: int"
    assert reason({"head": "T", "body": "b"}, spec) == "missing field body.main"


def test_rows_that_are_no_text_say_why() -> None:
    assert reason({"texts": "a"}, TEXT) == "missing field text"
    assert reason({"text": None}, TEXT) == "missing field text"
    assert reason({"text": 5}, TEXT) == "wrong type of text: int"
    assert reason({"text": ["a"]}, TEXT) == "wrong type of text: list"
    assert reason({"text": " \n"}, TEXT) == "empty"
    assert reason({"text": "a\0b"}, TEXT) == "nul bytes"


OPTIONS: list[Any] = [
    ["lung", "liver"],
    {"A": "lung", "B": "liver"},
    {"B": "liver", "A": "lung", "C": None},
    {"label": ["A", "B"], "text": ["lung", "liver"]},
    [{"label": "A", "text": "lung"}, {"label": "B", "text": "liver"}],
    ["A) lung", "B) liver"],
    ["(A) lung", "(B) liver"],
    "A. lung\nB. liver",
    "(A) lung\r\n\r\n(B) liver\r\n",
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("answer", ["B", "b", " liver ", 1, "1", "(B)", "b)", "B.", "B. liver", "(B) liver"])
def test_every_way_to_give_options_and_the_answer_means_the_same(options: Any, answer: Any) -> None:
    spec = SourceSpec(path="x", format="multiple_choice")
    made = record({"question": " Bile? ", "options": options, "answer": answer}, spec)
    assert made.prompt == "Bile?\nA. lung\nB. liver"
    assert made.answer == "B"
    assert as_text(made) == "Question: Bile?\nA. lung\nB. liver\nAnswer: B. liver"


def test_options_may_be_numbers_and_an_answer_in_words_must_be_that_of_its_letter() -> None:
    spec = SourceSpec(path="x", format="multiple_choice")
    made = record({"question": "q", "options": [3, 2.5], "answer": "2.5"}, spec)
    assert (made.meta["options"], made.answer) == (["3", "2.5"], "B")
    numbers = {"question": "q", "options": [1, 2, 3]}
    assert reason(numbers | {"answer": 1}, spec) == "answer is an option and the number of another"
    assert record(numbers | {"answer": 0}, spec).answer == "A" and record(numbers | {"answer": "1"}, spec).answer == "A"
    row = {"question": "q", "options": ["lung", "liver"]}
    for wrong in ("A. liver", "B. lung", "(C)", "Not A", "A or B"):
        assert reason(row | {"answer": wrong}, spec) == "unknown answer"


def test_labels_that_are_numbers_go_before_counting() -> None:
    spec = SourceSpec(path="x", format="multiple_choice")
    row = {"question": "q", "options": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}, "answer": "2"}
    assert record(row, spec).answer == "B"


def test_where_counting_starts_is_stated() -> None:
    row = {"question": "q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 1, "exp": None}
    one = SourceSpec(path="x", format="multiple_choice", fields=MEDMCQA.fields, answer_base=1)
    assert record(row, MEDMCQA).answer == "B"
    assert record(row, one).answer == "A"
    assert reason(row | {"cop": -1}, MEDMCQA) == "unknown answer"
    assert reason(row | {"cop": 4}, MEDMCQA) == "unknown answer"
    assert reason(row | {"cop": 0}, one) == "unknown answer"


def test_an_explanation_follows_the_answer() -> None:
    row = {"question": "q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 3, "exp": "because"}
    assert as_text(record(row, MEDMCQA)).endswith("Answer: D. z\nExplanation: because")
    assert "Explanation" not in as_text(record(row | {"exp": None}, MEDMCQA))


def test_choices_that_cannot_be_read_say_why() -> None:
    spec = SourceSpec(path="x", format="multiple_choice")
    row = {"question": "q", "options": ["x", "y"], "answer": "A"}
    assert reason(row | {"options": None}, spec) == "missing field options"
    assert reason(row | {"options": "x, y"}, spec) == "wrong type of options: str"
    assert reason(row | {"options": ["x", [2]]}, spec) == "wrong type of options: list"
    assert reason(row | {"options": ["x"]}, spec) == "1 options"
    assert reason(row | {"answer": "C"}, spec) == "unknown answer"
    assert reason(row | {"answer": True}, spec) == "wrong type of answer: bool"
    assert reason(row | {"question": ""}, spec) == "empty"
    assert reason({"question": "q", "opa": "x"}, MEDMCQA) == "missing field opb"


def test_a_worked_answer_is_split_from_its_result() -> None:
    made = record({"question": "How many?", "answer": "2+3=<<2+3=5>>5 boxes\nso 5,000 nails\n#### 5,000"}, GSM8K)
    assert made.answer == "5000"
    assert made.meta["reasoning"] == "2+3=5 boxes\nso 5,000 nails"
    assert as_text(made) == ("Question: How many?\nAnswer: 2+3=5 boxes\nso 5,000 nails\nThe answer is 5000.")


@pytest.mark.parametrize(
    ("came", "answer"),
    [("7", "7"), (7, "7"), (7.0, "7"), (7.5, "7.5"), (1234567.0, "1234567"), ("x^2", "x^2"), ("#### 7", "7")],
)
def test_a_bare_answer_needs_no_marks(came: Any, answer: str) -> None:
    made = record({"question": "q", "answer": came}, GSM8K)
    assert made.answer == answer
    assert as_text(made) == f"Question: q\nAnswer: The answer is {answer}."


def test_an_answer_to_a_question_may_be_a_number() -> None:
    spec = SourceSpec(path="x", format="question_answer")
    assert [record({"question": "q", "answer": came}, spec).answer for came in (8.0, 7, " yes ")] == ["8", "7", "yes"]
    assert reason({"question": "q", "answer": True}, spec) == "wrong type of answer: bool"
    assert reason({"question": "q", "answer": " "}, spec) == "empty"


def test_word_problems_that_cannot_be_read_say_why() -> None:
    assert reason({"question": "q"}, GSM8K) == "missing field answer"
    assert reason({"question": "q", "answer": True}, GSM8K) == "wrong type of answer: bool"
    assert reason({"question": "q", "answer": " "}, GSM8K) == "empty"
    assert reason({"question": 1, "answer": "1"}, GSM8K) == "wrong type of question: int"


def test_steps_and_calculations_may_be_tagged() -> None:
    row = {"question": "q", "answer": "He has 3*4=<<3*4=12>>12 eggs.\n\n 12-2=<<12-2=10>>10 are left.\n#### 10"}
    tagged = record(row, SourceSpec(path="x", format="word_problem", step_tags=True))
    assert tagged.answer == "10" and tagged.meta["reasoning"] == (
        "<step>He has 3*4=<calculation>3*4=12</calculation>12 eggs.</step>\n"
        "<step>12-2=<calculation>12-2=10</calculation>10 are left.</step>"
    )
    assert "<" not in record(row, GSM8K).meta["reasoning"]


def test_a_level_is_read_where_it_is_named() -> None:
    spec = SourceSpec(path="x", format="word_problem", fields={"level": "difficulty"})
    assert record({"question": "q", "answer": "1", "difficulty": 3}, spec).level == 3.0
    assert record({"question": "q", "answer": "1"}, spec).level is None
    assert record({"question": "q", "answer": "1", "level": "hard"}, GSM8K).level is None
    for said, level in (("Level 3", 3.0), ("4", 4.0), (" grade 2.5 ", 2.5), ("Level ?", None)):
        assert record({"question": "q", "answer": "1", "difficulty": said}, spec).level == level
    assert reason({"question": "q", "answer": "1", "difficulty": "hard"}, spec) == "no number in difficulty"
    assert record({"text": "t", "level": 2}, SourceSpec(path="x", fields={"level": "level"})).level == 2.0
    assert reason({"question": "q", "answer": "1", "difficulty": [3]}, spec) == "wrong type of difficulty: list"


def test_question_and_answer() -> None:
    spec = SourceSpec(path="x", format="question_answer")
    assert as_text(record({"question": "Why?", "answer": "Thus."}, spec)) == "Question: Why?\nAnswer: Thus."
    assert reason({"question": "Why?"}, spec) == "missing field answer"


THOUGHT = "<think>\nA sum.\n</think>\n\n4"


def test_a_conversation_is_written_out_with_its_thoughts() -> None:
    spec = SourceSpec(path="x", format="messages")
    made = record(
        {"messages": [{"role": "user", "content": " 2+2?", "n": 1}, {"role": "assistant", "content": THOUGHT}]}, spec
    )
    assert made.messages == [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": THOUGHT}]
    assert as_text(made) == f"User: 2+2?\n\nAssistant: {THOUGHT}"


def test_turns_are_known_by_either_pair_of_names() -> None:
    spec = SourceSpec(path="x", format="messages", fields={"messages": "conversations", "level": "hard"})
    turns = [("system", "Be brief."), ("human", "2+2?"), ("gpt", "4")]
    row = {"conversations": [{"from": who, "value": said} for who, said in turns], "hard": 1}
    made = record(row, spec)
    assert as_text(made) == "System: Be brief.\n\nUser: 2+2?\n\nAssistant: 4" and made.level == 1.0
    assert columns(spec) == {"conversations", "tools", "hard"}


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        (None, "missing field messages"),
        ([], "empty"),
        ("hello", "wrong type of messages: str"),
        (["hello"], "wrong type of messages: list"),
        ([{"role": "critic", "content": "x"}], "unknown role"),
        ([{"role": "user", "content": None}], "a turn without content"),
        ([{"role": "user", "content": "\0"}], "nul bytes"),
    ],
)
def test_conversations_that_cannot_be_read_say_why(turns: Any, why: str) -> None:
    assert reason({"messages": turns}, SourceSpec(path="x", format="messages")) == why


def test_views_and_columns_follow_the_format() -> None:
    assert views(TEXT) == {"text"}
    assert views(MEDQA) == views(GSM8K) == {"text", "chat", "prompt"}
    assert columns(TEXT) == {"text"} and columns(TEXT) < columns(SourceSpec(path="x", format="auto"))
    assert columns(MEDMCQA) == {"question", "opa", "opb", "opc", "opd", "cop", "exp"}
    assert "body" in columns(SourceSpec(path="x", fields={"text": "body.main"}))


def test_every_row_of_real_medqa_is_read() -> None:
    for row in rows("med/medqa_us4.train_subset"):
        made = record(row, MEDQA)
        assert made.answer == row["answer_idx"]
        assert made.meta["answer_text"] == row["answer"].strip()
        assert as_text(made).count("\nAnswer: ") == 1


def test_every_row_of_real_medmcqa_is_read() -> None:
    spec = SourceSpec(path="x", format="multiple_choice", fields=MEDMCQA.fields, answer_base=1)
    for row in rows("med/medmcqa.dev_part1"):
        made = record(row, spec)
        assert row[f"op{'abcd'[row['cop'] - 1]}"].strip().endswith(made.meta["answer_text"])  # a few say "A. ..."
        assert ("Explanation:" in as_text(made)) == bool(row["exp"] and row["exp"].strip())


def test_every_row_of_real_gsm8k_is_read() -> None:
    for row in rows("math/gsm8k.train"):
        made = record(row, GSM8K)
        assert float(str(made.answer)) == float(row["answer"].rpartition("####")[2].replace(",", ""))
        assert "<<" not in as_text(made) and "####" not in as_text(made)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("math/aqua.dev", {"answer": "correct", "explanation": "rationale"}),
        ("eval/mmlu.val", {"options": "choices"}),
    ],
)
def test_other_real_multiple_choice_sets_are_read(name: str, fields: dict[str, str | list[str]]) -> None:
    spec = SourceSpec(path="x", format="multiple_choice", fields=fields)
    answers = Counter(str(record(row, spec).answer) for row in rows(name))
    assert len(answers) >= 4 and max(answers.values()) < 0.5 * answers.total()


ODD: list[Any] = [None, True, 0, 1, 2.5, float("nan"), float("inf"), "", " x", "4", "A", "<think>", "[1]", b"x", 2**70]
ODD += [datetime(2025, 1, 1), Decimal("1.5"), [], {}, ["a", "b"], {"label": ["A", "B"], "text": ["a", "b"]}]


def strange(rng: random.Random, depth: int = 0) -> Any:
    """A value of a row: plain, odd, or nested ones that look like turns, calls and options."""
    if depth > 3 or rng.random() < 0.4:
        return rng.choice(ODD)
    if rng.random() < 0.4:
        return [strange(rng, depth + 1) for _ in range(rng.randrange(4))]
    keys = ("role", "content", "from", "value", "tool_calls", "name", "function", "arguments", "label", "text", "type")
    turn = {"role": rng.choice(("user", "assistant", "gpt", "system", "tool")), "content": rng.choice(("hi", "2+2?"))}
    return turn | {key: strange(rng, depth + 1) for key in keys if rng.random() < 0.15}


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_stands_in_a_row_it_is_a_record_or_a_bad_row(form: str) -> None:
    rng, keys = random.Random(form), FORMATS[form].fields
    for number in range(400):
        row = {key: strange(rng) if rng.random() < 0.6 else f"text {number}" for key in keys if rng.random() < 0.9}
        spec = SourceSpec(path="x", format=form, fields={key: key for key in keys})
        with suppress(BadRow):
            made = record(row, spec)
            held_out_by(made), as_text(made), json.dumps(made.meta, allow_nan=False), orjson.dumps(made.meta)
