"""Records as plain text: the whole document, its beginning up to the answer, and the answer.

A conversation is written with plain role names, the same under every tokenizer: a chat template's marks are special
tokens, which a document cannot hold. The assistant's reasoning stays in its tags.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle.batch import Record
from lifecycle.data.read.formats import FORMATS, Reading, fields_of, to_record
from lifecycle.data.read.forms.turns import thinking
from lifecycle.data.read.row import BadRow

BLANK_LINE = "\n\n"
ASKED = "{prompt}"
"""What a question, with its options, stands for in a plain prompt."""
PLAIN = f"Question: {ASKED}\nAnswer:"
"""The beginning of a document with a question and its known answer."""


def as_text(record: Record) -> str:
    """The document of a record in the view `text`, which the filters, the search for duplicates and evaluation items,
    and the held-out split read too; of a pair, the prompt and both answers."""
    if record.text is not None:
        return record.text
    if record.chosen is not None:
        return _turns([*(record.messages or []), *record.chosen, *record.rejected])
    if record.prompt is None:
        answer = [] if record.completion is None else [{"role": "assistant", "content": record.completion}]
        return _turns([*(record.messages or []), *answer])
    if record.completion is None and record.answer is None:
        return record.prompt
    if record.completion is not None and record.completion.startswith(record.prompt):  # a program and its beginning
        return record.completion
    between = " " if record.completion is None else ""
    return f"{question(record)}{between}{answered(record)}"


def question(record: Record, plain: str = PLAIN) -> str:
    """The beginning of the document, up to the answer; plain: of one with a known answer. Raises BadRow for a record
    that is only a text."""
    if record.text is not None:
        raise BadRow("no prompt in a text")
    if record.prompt is None:
        turns = list(record.messages or [])
        if record.completion is None and record.chosen is None and turns[-1]["role"] == "assistant":
            turns.pop()
        return f"{_turns(turns)}\n\nAssistant:".lstrip()
    if record.completion is None:
        return plain.replace(ASKED, record.prompt)
    before = f"{_turns(record.messages)}\n\n" if record.messages else ""
    joins = record.prompt[-1:].isspace() or record.completion[:1].isspace()
    return f"{before}{record.prompt}{'' if joins else BLANK_LINE}"


def held_out_by(record: Record) -> str:
    """The text whose hash decides whether the record is held out. Of a pair or a labelled answer it is the prompt
    alone: sets have many answers to one prompt, and a model trained on one of them has seen the others' prompt."""
    return question(record) if is_preference(record) else as_text(record)


def is_preference(record: Record) -> bool:
    """Whether the record holds a preference: a pair of answers, or an answer with a label."""
    return record.chosen is not None or record.label is not None


def answered(record: Record) -> str:
    """The text of the last answer; of a pair, the chosen one; "" where the record has none."""
    if record.completion is not None:
        return record.completion
    if record.prompt is None:
        last = (record.chosen or record.messages or [{"role": "", "content": ""}])[-1]
        return str(last["content"]) if last["role"] == "assistant" else ""
    if record.answer is None:
        return ""
    meta = record.meta
    shown = f"{record.answer}. {meta['answer_text']}" if "options" in meta else record.answer
    if "reasoning" in meta:
        worked = f"{meta['reasoning']}\n" if meta["reasoning"] else ""
        return f"{worked}The answer is {shown}."
    explained = f"\nExplanation: {meta['explanation']}" if meta.get("explanation") else ""
    return thinking(meta.get("thoughts", ""), f"{shown}{explained}")


def item_text(row: Mapping[str, Any], spec: Reading) -> str:
    """The text of an evaluation item that is searched for: its question or prompt; of other formats the whole document.
    Raises BadRow."""
    if "question" in FORMATS[spec.format].needs:
        return fields_of(row, spec).text("question")
    record = to_record(row, spec=spec, name="", row_id="")
    return record.prompt if record.prompt is not None else as_text(record)


def _turns(turns: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"{turn['role'].capitalize()}: {_content(turn)}" for turn in turns)


def _content(turn: Mapping[str, Any]) -> str:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls") or []]
    return "\n".join([*filter(None, [turn["content"]]), *calls])
