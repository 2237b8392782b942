"""Laws of conversations as rows have them: every way to say a turn means the same."""

import json
from datetime import datetime
from typing import Any

import pytest

from lifecycle.batch import Record
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import answered, as_text, question
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.views import asked_of


def record(row: dict[str, Any], form: str, **fields: Any) -> Record:
    return to_record(row, spec=SourceSpec(path="x", format=form, fields=fields), name="mine", row_id="1")


def reason(row: dict[str, Any], form: str, **fields: Any) -> str:
    with pytest.raises(BadRow) as bad:
        record(row, form, **fields)
    return bad.value.reason


def test_an_instruction_with_and_without_its_input() -> None:
    made = record({"instruction": " Add. ", "input": "2, 2", "output": "4\n"}, "instruction")
    assert (made.prompt, made.completion) == ("Add.\n\n2, 2", "4")
    assert as_text(made) == "Add.\n\n2, 2\n\n4" and question(made) == "Add.\n\n2, 2\n\n" and answered(made) == "4"
    for nothing in ("", None):
        assert record({"instruction": "Add.", "input": nothing, "output": "4"}, "instruction").prompt == "Add."
    assert record({"instruction": "Add.", "response": "4"}, "instruction", output="response").completion == "4"
    assert reason({"instruction": "Add.", "output": " "}, "instruction") == "empty"
    assert reason({"instruction": "Add.", "input": 5, "output": "4"}, "instruction") == "wrong type of input: int"


def test_a_completion_goes_on_where_its_prompt_ends() -> None:
    made = record({"prompt": "The sky is", "completion": " blue."}, "prompt_completion")
    assert as_text(made) == "The sky is blue."
    assert as_text(record({"prompt": "Sky?", "completion": "Blue."}, "prompt_completion")) == "Sky?\n\nBlue."


ASKED = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "2+2?"},
]
SAID = [{"role": "assistant", "content": "4"}]


@pytest.mark.parametrize("said", [SAID, SAID[0], "4", json.dumps(SAID)])
@pytest.mark.parametrize("asked", [ASKED, json.dumps(ASKED)])
def test_a_prompt_and_its_completion_may_be_turns_of_which_the_completions_are_trained(asked: Any, said: Any) -> None:
    made = record({"prompt": asked, "completion": said}, "prompt_completion")
    assert made.messages == [*ASKED, *SAID] and made.meta == {"trained_from": 3}
    assert asked_of(made) == ASKED and answered(made) == "4"
    assert as_text(made) == "User: Hi\n\nAssistant: Yes?\n\nUser: 2+2?\n\nAssistant: 4"


def test_a_completion_of_turns_follows_a_plain_prompt_and_ends_with_the_assistant() -> None:
    row = {"prompt": "2+2?", "completion": SAID, "cot": "A sum.", "system": "Be brief."}
    made = record(row, "prompt_completion", reasoning="cot", system="system")
    assert made.messages is not None and [turn["role"] for turn in made.messages] == ["system", "user", "assistant"]
    assert made.messages[-1]["content"] == "<think>\nA sum.\n</think>\n\n4" and made.meta == {"trained_from": 2}
    asks_on = {"prompt": "2+2?", "completion": [*SAID, ASKED[0]]}
    assert reason(asks_on, "prompt_completion") == "an answer that is no turn of the assistant"
    assert reason({"prompt": ASKED, "completion": []}, "prompt_completion") == "empty"
    assert reason({"prompt": ASKED, "completion": 7}, "prompt_completion") == "wrong type of completion: int"


def test_thoughts_and_a_system_turn_are_read_where_they_are_named() -> None:
    row = {"prompt": "2+2?", "completion": "4", "cot": "A sum.", "system": "Be brief."}
    assert as_text(record(row, "prompt_completion")) == "2+2?\n\n4"
    made = record(row, "prompt_completion", reasoning="cot", system="system")
    assert made.completion == "<think>\nA sum.\n</think>\n\n4"
    assert made.messages == [{"role": "system", "content": "Be brief."}]
    assert as_text(made).startswith("System: Be brief.\n\n2+2?\n\n<think>")
    answer = record({"question": "2+2?", "answer": "4", "cot": "A sum."}, "question_answer", reasoning="cot")
    assert as_text(answer) == "Question: 2+2?\nAnswer: <think>\nA sum.\n</think>\n\n4"
    asked = record({"question": "Why?", "answer": "Thus.", "c": ["One.", "Two."]}, "question_answer", context="c")
    assert asked.prompt == "One.\n\nTwo.\n\nWhy?"


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
ADD = {"name": "add", "description": "Adds.", "parameters": {}}


def test_calls_of_tools_are_known_by_every_way_to_write_them() -> None:
    text = json.dumps(CALL["function"])
    share_gpt = [
        {"from": "human", "value": "2+2?"},
        {"from": "function_call", "value": text},
        {"from": "observation", "value": "4"},
        {"from": "gpt", "value": "It is 4."},
    ]
    open_ai = [
        {"role": "user", "content": "2+2?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "add", "arguments": '{"a": 2}'}}],
        },
        {"role": "tool", "content": "4", "name": "add"},
        {"role": "assistant", "content": "It is 4."},
    ]
    parts = [
        open_ai[0],
        {"role": "assistant", "content": [{"type": "tool_call", "value": text}]},
        {"role": "tool", "content": [{"type": "text", "text": "4"}]},
        open_ai[3],
    ]
    wanted = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    ]
    first = record({"conversations": share_gpt, "tools": json.dumps([ADD])}, "conversations")
    assert first.messages == wanted and first.meta["tools"] == [{"type": "function", "function": ADD}]
    for turns in (open_ai, parts):
        made = record({"messages": turns, "tools": [{"type": "function", "function": ADD}]}, "messages")
        assert made.messages == wanted and made.meta == first.meta
    assert '"name": "add"' in as_text(first) and answered(first) == "It is 4."


def test_thoughts_of_a_turn_stand_in_tags_before_what_it_says() -> None:
    thought = {"role": "assistant", "content": "<think>\nA sum.\n</think>\n\n4"}
    for turn in (
        {"role": "assistant", "content": "4", "reasoning_content": "A sum."},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "A sum."}, {"type": "text", "value": "4"}]},
    ):
        assert record({"messages": [turn]}, "messages").messages == [thought]


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "a content with a part of type image"),
        ({"role": "user", "content": ["x"]}, "wrong type of content: list"),
        ({"from": "function_call", "value": "add(2)"}, "bad json in a tool call"),
        ({"from": "function_call", "value": "[2]"}, "a tool call without a name"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "a tool call without a name"),
        ({"role": "assistant", "tool_calls": 1}, "wrong type of tool_calls: int"),
        (
            {"role": "assistant", "tool_calls": [{"name": "a", "arguments": {"at": datetime(2025, 1, 1)}}]},
            "a tool call with an argument that is no JSON",
        ),
    ],
)
def test_turns_that_cannot_be_read_say_why(turn: dict[str, Any], why: str) -> None:
    assert reason({"messages": [turn]}, "messages") == why


def test_tools_that_cannot_be_read_say_why() -> None:
    turns = [{"role": "user", "content": "a"}]
    assert reason({"messages": turns, "tools": "{"}, "messages") == "bad json in tools"
    assert reason({"messages": turns, "tools": '{"a": 1}'}, "messages") == "wrong type of tools: dict"
    for odd in (b"x", float("inf"), 2**70):
        assert reason({"messages": turns, "tools": [{"a": odd}]}, "messages") == "tools hold a value that is no JSON"
    nothing: list[Any] = [None, "", "[]", []]
    for tools in nothing:
        assert record({"messages": turns, "tools": tools}, "messages").meta == {}


def test_a_prompt_is_a_text_or_turns_and_its_answer_is_known_and_never_a_turn() -> None:
    asked = [{"role": "user", "content": "2 + 2?"}]
    for came in (asked, '[{"role": "user", "content": "2 + 2?"}]'):
        turns = record({"prompt": came, "answer": 4.0}, "prompt")
        assert (turns.messages, turns.prompt, turns.answer, turns.completion) == (asked, None, "4", None)
        assert asked_of(turns) == asked
    text = record({"prompt": "2 + 2?", "answer": " 4 "}, "prompt")
    assert (text.prompt, text.answer) == ("2 + 2?", "4") and asked_of(text) == asked
    for none in ({}, {"answer": None}, {"answer": " "}):
        alone = record({"prompt": "2 + 2?", **none}, "prompt")
        assert alone.answer is None and asked_of(alone) == asked and as_text(alone) == "2 + 2?"
    assert reason({"prompt": " "}, "prompt") == "empty" and reason({"prompt": 3}, "prompt").startswith("wrong type")
    assert reason({"prompt": "q", "answer": float("nan")}, "prompt") == "missing field answer"


def test_columns_that_are_named_are_kept_as_they_are() -> None:
    row = {"prompt": "q", "hard": 3, "words": ["a"], "empty": float("nan"), "when": datetime(2025, 1, 1)}

    def kept(columns: str | list[str]) -> Any:
        spec = SourceSpec(path="x", format="prompt", fields={"columns": columns})
        assert set(spec.columns) == {"prompt", "answer", *([columns] if isinstance(columns, str) else columns)}
        return to_record(row, spec=spec, name="s", row_id="0").meta["columns"]

    assert kept("hard") == {"hard": 3}
    assert kept(["words", "empty", "none"]) == {"words": ["a"], "empty": None, "none": None}
    with pytest.raises(BadRow, match="when holds a value that is no JSON"):
        kept(["when"])
