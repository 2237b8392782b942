"""Rows that are conversations, of one turn or of many, and how their turns are read.

A turn of a record is {role, content}, roles by our names; the assistant's may have `tool_calls`, as a chat template
takes them. Its reasoning stands in <think> tags before its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lifecycle.batch import TRAINED_FROM
from lifecycle.data.read.forms.fields import Fields, clean, is_plain, parsed, unpacked
from lifecycle.data.read.row import BadRow

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Role names in data sets -> ours."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Names that data sets give the assistant's reasoning."""

Turn = dict[str, Any]


def messages(row: Fields) -> dict[str, Any]:
    """The turns of `messages`."""
    return _conversation(row, "messages")


def conversations(row: Fields) -> dict[str, Any]:
    """The turns of `conversations`, as ShareGPT has them."""
    return _conversation(row, "conversations")


def instruction(row: Fields) -> dict[str, Any]:
    """An instruction, its `input` where a row has one, and the answer."""
    prompt = "\n\n".join(filter(None, (row.text("instruction"), row.text_if_there("input"))))
    return {**_system(row), "prompt": prompt, "completion": _with_reasoning(row, row.text("output"))}


def prompt_completion(row: Fields) -> dict[str, Any]:
    """A prompt and its completion, unchanged: a completion may begin in the middle of a sentence. Where one of them is
    a list of turns, they are a conversation, trained from the completion on."""
    if not any(isinstance(_text_or_turns(row, key), list) for key in ("prompt", "completion")):
        completion = _with_reasoning(row, row.text("completion", strip=False))
        return {**_system(row), "prompt": row.text("prompt", strip=False), "completion": completion}
    before = [*_system(row).get("messages", []), *turns_of(row, "prompt", "user")]
    said = answer_turns(row, "completion")
    said[-1] = {**said[-1], "content": _with_reasoning(row, said[-1]["content"])}
    return {"messages": [*before, *said], "meta": {TRAINED_FROM: len(before)}}


def prompt(row: Fields) -> dict[str, Any]:
    """A prompt, a text or turns, and the known answer where a row has one: no answer is trained on as it stands."""
    value = row.required("prompt")
    if isinstance(value, str):
        value = turns_in(value) or value
    if isinstance(value, str):
        asked: dict[str, Any] = {**_system(row), "prompt": row.text("prompt", strip=False)}
    else:
        asked = {"messages": [*_system(row).get("messages", []), *read_turns(value, row.name("prompt"))]}
    answer = "" if row.look("answer") is None else clean(row.text_or_number("answer"))
    return {**asked, **({"answer": answer} if answer else {})}


def turns_of(row: Fields, key: str, role: str) -> list[Turn]:
    """The turns of a field; a plain text is one of that role."""
    value = _text_or_turns(row, key)
    if isinstance(value, str):
        return [{"role": role, "content": row.text(key)}]
    return [read_turn(value)] if isinstance(value, Mapping) else read_turns(value, row.name(key))


def answer_turns(row: Fields, key: str) -> list[Turn]:
    """The same of an answer, which begins and ends with what the assistant says."""
    return checked_answer(turns_of(row, key, "assistant"))


def checked_answer(turns: list[Turn]) -> list[Turn]:
    """The turns, which must begin and end with what the assistant says."""
    if not turns or any(turns[n]["role"] != "assistant" for n in (0, -1)):
        raise BadRow("an answer that is no turn of the assistant")
    return turns


def _text_or_turns(row: Fields, key: str) -> Any:
    value = row.required(key)
    return (turns_in(value) or value) if isinstance(value, str) else value


def read_turns(value: Any, name: str) -> list[Turn]:
    """The turns of a list of {role, content} or {from, value}, or of its JSON text; name: of the list in the row, for
    errors."""
    value = unpacked(value, name)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise BadRow(f"wrong type of {name}: {type(value).__name__}")
    if not value:
        raise BadRow("empty")
    return [read_turn(turn) for turn in value]


def turns_in(text: str) -> list[Turn] | None:
    """The list of turns that a column of text holds as JSON, as tables are written; None for a text that is one."""
    turns = None
    if text.lstrip().startswith("["):
        with suppress(ValueError):
            turns = json.loads(text)
    return turns if isinstance(turns, list) and turns and all(map(is_turn, turns)) else None


def is_turn(value: Any) -> bool:
    """Whether it has the keys of a turn."""
    return isinstance(value, Mapping) and any(keys <= value.keys() for keys in ({"role", "content"}, {"from", "value"}))


def read_turn(turn: Mapping[str, Any]) -> Turn:
    """One turn with our names of roles and keys. Raises BadRow for an unknown role, and for values of a wrong type."""
    named = str(turn.get("role", turn.get("from")))
    role = ROLES.get(named)
    if role is None:
        raise BadRow("unknown role")
    content = turn.get("content", turn.get("value"))
    if named == "function_call":
        return {"role": role, "content": "", "tool_calls": [_call(content)]}
    called = turn.get("tool_calls") or []
    if not isinstance(called, list):
        raise BadRow(f"wrong type of tool_calls: {type(called).__name__}")
    text, calls = _content(content, called=bool(called))
    thoughts = next((turn[key] for key in THOUGHTS if isinstance(turn.get(key), str)), "")
    calls += [_call(call) for call in called]
    return {"role": role, "content": thinking(clean(thoughts), text), **({"tool_calls": calls} if calls else {})}


def thinking(reasoning: str, answer: str) -> str:
    """The reasoning in <think> tags, then the answer; the answer alone where `reasoning` is empty."""
    return f"<think>\n{reasoning}\n</think>\n\n{answer}".rstrip() if reasoning else answer


def _conversation(row: Fields, key: str) -> dict[str, Any]:
    turns = read_turns(row.required(key), row.name(key))
    tools = _tools(row.look("tools"), row.name("tools"))
    return {
        "messages": [*_system(row).get("messages", []), *turns],
        **({"meta": {"tools": tools}} if tools else {}),
    }


def _system(row: Fields) -> dict[str, Any]:
    system = row.text_if_named("system")
    return {"messages": [{"role": "system", "content": system}]} if system else {}


def _with_reasoning(row: Fields, answer: str) -> str:
    reasoning = row.text_if_named("reasoning")
    return thinking(reasoning, answer.strip()) if reasoning else answer


def _content(content: Any, *, called: bool) -> tuple[str, list[Turn]]:
    """The text of a turn's content, and the tool calls that are parts of the content."""
    if content is None and called:
        return "", []
    if isinstance(content, str):
        return clean(content), []
    if content is None:
        raise BadRow("a turn without content")
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise BadRow(f"wrong type of content: {type(content).__name__}")
    texts: dict[str, list[str]] = {"text": [], "reasoning": []}
    calls = []
    for part in content:
        kind, value = str(part.get("type")), part.get("value", part.get("text", part.get("reasoning")))
        if kind == "tool_call":
            calls.append(_call(value))
        elif kind in texts and isinstance(value, str):
            texts[kind].append(clean(value))
        else:
            raise BadRow(f"a content with a part of type {kind[:20]}")
    return thinking("\n\n".join(texts["reasoning"]), "\n\n".join(texts["text"])), calls


def _call(call: Any) -> Turn:
    """A call of a tool as chat templates take it: {type, function: {name, arguments}}."""
    call = parsed(call, "a tool call")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("a tool call without a name")
    arguments = parsed(function.get("arguments") or {}, "a tool call")
    if not is_plain(arguments):
        raise BadRow("a tool call with an argument that is no JSON")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(value: Any, name: str) -> list[Turn]:
    """The tools of a conversation: a list of descriptions, or its JSON text."""
    if not value:
        return []
    tools = parsed(value, name)
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(f"wrong type of {name}: {type(tools).__name__}")
    if not is_plain(tools):
        raise BadRow(f"{name} hold a value that is no JSON")
    return [dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)} for tool in tools]
