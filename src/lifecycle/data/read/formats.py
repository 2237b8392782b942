"""Rows as records, by named format, and records as text.

    text              text [title]                                    the document itself, after its title
    multiple_choice   question, options, answer [explanation]         MedQA, MedMCQA, MMLU, AQuA, ARC
    word_problem      question, answer [reasoning]                    GSM8K: marks and `#### n` are understood
    question_answer   question, answer                                MedQuAD, MATH
    messages          messages                                        turns as {role, content} or {from, value}

`spec.fields` maps these names to the row's own; a dotted name goes into a nested mapping. Those in brackets, and the
`level` of difficulty, are read only where `spec.fields` names them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle.batch import Record
from lifecycle.data.read.row import BadRow
from lifecycle.data.read.spec import SourceSpec

CALCULATOR_MARK = re.compile(r"<<([^<>]*)>>")
FINAL_ANSWER = re.compile(r"\n?####\s*(.+?)\s*$", re.DOTALL)
OWN_LABEL = re.compile(r"^\s*\(?([A-Z])\s*[).:]\s*")
LEVEL = re.compile(r"\D*(\d+(?:\.\d+)?)")  # "Level 3", "3", "grade 2.5"
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""What data sets call who speaks, and what we do."""


def views(spec: SourceSpec) -> frozenset[str]:
    """The views that a source of this format can give."""
    return frozenset({"text", "prompt"}) if spec.format in ("multiple_choice", "word_problem") else frozenset({"text"})


def to_record(row: Mapping[str, Any], *, spec: SourceSpec, name: str, row_id: str) -> Record:
    """The row of source `name` as a record of `spec.format`. Raises BadRow for a row that does not fit the format."""
    make = {
        "text": _text,
        "multiple_choice": _choice,
        "word_problem": _problem,
        "question_answer": _answered,
        "messages": _messages,
    }
    parts = make[spec.format](row, spec)
    return Record(id=row_id, source=name, domain=spec.domain or name, level=_level(row, spec), **parts)


def asked(row: Mapping[str, Any], spec: SourceSpec) -> str:
    """What a row of an evaluation set asks: its question; of plain text and of messages all of it. Raises BadRow."""
    if spec.format in ("text", "messages"):
        return as_text(to_record(row, spec=spec, name="", row_id=""))
    return _string(row, spec, "question")


def as_text(record: Record) -> str:
    """The `text` view: the document that a model is pre-trained on.

    A conversation is written out in plain words, the same under every tokenizer: a chat template's marks are special
    tokens, which a document cannot hold, and belong to later stages. What the assistant thinks stays in its tags.
    """
    if record.text is not None:
        return record.text
    if record.messages is not None:
        return _in_words(record.messages)
    return f"{question(record)} {answered(record)}"


def question(record: Record) -> str:
    """How the document begins that asks what the record asks: what follows is the answer."""
    if record.text is not None:
        raise BadRow("no prompt in a text")
    if record.messages is not None:
        turns = record.messages[:-1] if record.messages[-1]["role"] == "assistant" else record.messages
        return f"{_in_words(turns)}\n\nAssistant:".lstrip()
    return f"Question: {record.prompt}\nAnswer:"


def answered(record: Record) -> str:
    """What the assistant says in the end."""
    if record.messages is not None:
        last = record.messages[-1]
        return str(last["content"]) if last["role"] == "assistant" else ""
    meta = record.meta
    shown = f"{record.answer}. {meta['answer_text']}" if "options" in meta else str(record.answer)
    if "reasoning" in meta:
        worked = f"{meta['reasoning']}\n" if meta["reasoning"] else ""
        return f"{worked}The answer is {shown}."
    explained = f"\nExplanation: {meta['explanation']}" if meta.get("explanation") else ""
    return f"{shown}{explained}"


def _in_words(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def _text(row: Mapping[str, Any], spec: SourceSpec) -> dict[str, Any]:
    text = _string(row, spec, "text")
    title = _optional(row, spec, "title")
    return {"text": f"{title}\n\n{text}" if title else text}


def _choice(row: Mapping[str, Any], spec: SourceSpec) -> dict[str, Any]:
    """Options get the letters A, B, ... in the order of the row; the answer is a letter."""
    question = _string(row, spec, "question")
    labels, options = _options(row, spec)
    index = _answer_index(_required(row, spec, "answer"), labels, options, spec.answer_base)
    letters = string.ascii_uppercase[: len(options)]
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    meta = {"options": options, "answer_text": options[index], "explanation": _optional(row, spec, "explanation")}
    return {"prompt": f"{question}\n{listed}", "answer": letters[index], "meta": meta}


def _problem(row: Mapping[str, Any], spec: SourceSpec) -> dict[str, Any]:
    """The final answer is what follows `####`, or the whole answer; thousands separators are taken out."""
    question = _string(row, spec, "question")
    value = _required(row, spec, "answer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow(f"wrong type of {_name(spec, 'answer')}: {type(value).__name__}")
    worked = f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value).strip()
    reasoning = _optional(row, spec, "reasoning")
    if final := FINAL_ANSWER.search(worked):
        reasoning, worked = reasoning or worked[: final.start()], final[1]
    if not worked:
        raise BadRow("empty")
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", _clean(worked))
    return {"prompt": question, "answer": answer, "meta": {"reasoning": _steps(reasoning.strip(), tags=spec.step_tags)}}


def _steps(reasoning: str, *, tags: bool) -> str:
    """The worked answer without its calculator marks, or with tags around steps and calculations."""
    if not tags:
        return CALCULATOR_MARK.sub("", reasoning).strip()
    lines = CALCULATOR_MARK.sub(r"<calculation>\1</calculation>", reasoning).splitlines()
    return "\n".join(f"<step>{line.strip()}</step>" for line in lines if line.strip())


def _answered(row: Mapping[str, Any], spec: SourceSpec) -> dict[str, Any]:
    return {"prompt": _string(row, spec, "question"), "answer": _string(row, spec, "answer")}


def _messages(row: Mapping[str, Any], spec: SourceSpec) -> dict[str, Any]:
    """The turns as {role, content}, the roles by our names; columns beside them are left out."""
    turns = _required(row, spec, "messages")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow(f"wrong type of {_name(spec, 'messages')}: {type(turns).__name__}")
    if not turns:
        raise BadRow("empty")
    return {"messages": [_turn(turn) for turn in turns]}


def _turn(turn: Mapping[str, Any]) -> dict[str, str]:
    role = ROLES.get(str(turn.get("role", turn.get("from"))))
    content = turn.get("content", turn.get("value"))
    if role is None:
        raise BadRow("unknown role")
    if not isinstance(content, str):
        raise BadRow(f"wrong type of content: {type(content).__name__}")
    return {"role": role, "content": _clean(content)}


def _options(row: Mapping[str, Any], spec: SourceSpec) -> tuple[list[str], list[str]]:
    """Labels and texts of the options, from a list, a mapping by letter, {label, text} pairs, or single columns."""
    named = spec.fields.get("options", "options")
    if isinstance(named, list):
        value: Any = [_present(_look(row, column), column) for column in named]
    else:
        value = _required(row, spec, "options")
    if isinstance(value, Mapping) and {"label", "text"} <= set(value):
        labels, texts = list(value["label"]), list(value["text"])
    elif isinstance(value, Mapping):
        pairs = sorted((str(label), text) for label, text in value.items() if text is not None)
        labels, texts = [label for label, _ in pairs], [text for _, text in pairs]
    elif isinstance(value, list) and all(isinstance(option, Mapping) for option in value):
        labels, texts = [option.get("label") for option in value], [option.get("text") for option in value]
    elif isinstance(value, list):
        labels, texts = list(string.ascii_uppercase[: len(value)]), list(value)
    else:
        raise BadRow(f"wrong type of {_name(spec, 'options')}: {type(value).__name__}")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadRow(f"wrong type of {_name(spec, 'options')}: {type(wrong[0]).__name__}")
    if not 2 <= len(texts) <= len(string.ascii_uppercase) or len(labels) != len(texts):
        raise BadRow(f"{len(texts)} options")
    return [str(label) for label in labels], _without_own_labels([_clean(text) for text in texts])


def _without_own_labels(options: list[str]) -> list[str]:
    """Options that carry their own letters ("A)12", "B)13") without them."""
    marks = [OWN_LABEL.match(option) for option in options]
    own = [mark[1] if mark else "" for mark in marks]
    if own == list(string.ascii_uppercase[: len(options)]):
        return [option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark]
    return options


def _answer_index(answer: Any, labels: list[str], options: list[str], base: int) -> int:
    """Which option `answer` means: a label, the text of an option, or a number that counts from `base`."""
    if isinstance(answer, str):
        said = _clean(answer)
        if said in labels or said.upper() in labels:
            return labels.index(said if said in labels else said.upper())
        if said in options:
            return options.index(said)
        if not re.fullmatch(r"-?\d+", said):
            raise BadRow("unknown answer")
        answer = int(said)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise BadRow(f"wrong type of answer: {type(answer).__name__}")
    if not 0 <= answer - base < len(options):
        raise BadRow("unknown answer")
    return answer - base


def _level(row: Mapping[str, Any], spec: SourceSpec) -> float | None:
    """A number, or the number at the end of a text ("Level 3"); None where the row leaves it open ("Level ?")."""
    value = _look(row, _name(spec, "level")) if "level" in spec.fields else None
    if value is None or (isinstance(value, str) and value.rstrip().endswith("?")):
        return None
    if isinstance(value, str):
        if not (found := LEVEL.fullmatch(value.strip())):
            raise BadRow(f"no number in {_name(spec, 'level')}")
        return float(found[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"wrong type of {_name(spec, 'level')}: {type(value).__name__}")
    return float(value)


def _name(spec: SourceSpec, key: str) -> str:
    named = spec.fields.get(key, key)
    return named if isinstance(named, str) else ",".join(named)


def _look(row: Mapping[str, Any], name: str) -> Any:
    """The row's value of that name; `a.b` is the `b` of the mapping `a` where there is no plain `a.b`."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _present(value: Any, name: str) -> Any:
    if value is None:
        raise BadRow(f"missing field {name}")
    return value


def _required(row: Mapping[str, Any], spec: SourceSpec, key: str) -> Any:
    return _present(_look(row, _name(spec, key)), _name(spec, key))


def _string(row: Mapping[str, Any], spec: SourceSpec, key: str) -> str:
    value = _required(row, spec, key)
    if not isinstance(value, str):
        raise BadRow(f"wrong type of {_name(spec, key)}: {type(value).__name__}")
    if "\0" in value:
        raise BadRow("nul bytes")
    if not value or value.isspace():
        raise BadRow("empty")
    return value if spec.format == "text" else value.strip()


def _optional(row: Mapping[str, Any], spec: SourceSpec, key: str) -> str:
    """The text of an optional field, or "" where `fields` does not name it or the row has none."""
    value = _look(row, _name(spec, key)) if key in spec.fields else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"wrong type of {_name(spec, key)}: {type(value).__name__}")
    return _clean(value)


def _clean(text: str) -> str:
    if "\0" in text:
        raise BadRow("nul bytes")
    return text.strip()
