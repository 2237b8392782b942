"""Rows with a question and its answer: multiple choice, word problems, questions."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

from lifecycle.data.read.forms.fields import Fields, clean, unpacked
from lifecycle.data.read.forms.options import listed
from lifecycle.data.read.row import BadRow

CALCULATOR_MARK = re.compile(r"<<([^<>]*)>>")
FINAL_ANSWER = re.compile(r"\n?####\s*(.+?)\s*$", re.DOTALL)
OWN_LABEL = re.compile(r"^\s*\(?([A-Z])\s*[).:]\s*")
MARKED_LABEL = re.compile(r"\(?\s*([A-Za-z])\s*[).:]*")
"""A label and nothing else, as "(b)", "B." and "B)"."""

Parts = dict[str, Any]
"""Fields of a record."""


def multiple_choice(row: Fields) -> Parts:
    """Options get the letters A, B, ... in the order of the row; the answer is a letter."""
    question = _in_context(row, row.text("question"))
    labels, options = _options(row)
    answer = row.required("answer")
    index = _answer_index(answer, labels, options, row.answer_base)
    if isinstance(answer, int) and str(answer) in options and options[index] != str(answer) and _are_numbers(row):
        raise BadRow("answer is an option and the number of another")
    letters = string.ascii_uppercase[: len(options)]
    meta = {"options": options, "answer_text": options[index], "explanation": row.text_if_named("explanation")}
    return {"prompt": f"{question}\n{listed(options)}", "answer": letters[index], "meta": meta}


def word_problem(row: Fields) -> Parts:
    """The final answer is what follows `####`, or the whole answer; thousands separators are taken out."""
    question = row.text("question")
    worked = row.text_or_number("answer")
    reasoning = row.text_if_named("reasoning")
    if final := FINAL_ANSWER.search(worked):
        reasoning, worked = reasoning or worked[: final.start()], final[1]
    if not worked:
        raise BadRow("empty")
    answer = re.sub(r"(?<=\d),(?=\d{3})", "", clean(worked))
    return {"prompt": question, "answer": answer, "meta": {"reasoning": _steps(reasoning.strip(), tags=row.step_tags)}}


def question_answer(row: Fields) -> Parts:
    """A question and its answer; also the context and the reasoning, where `fields` names such columns."""
    thoughts = row.text_if_named("reasoning")
    answer = clean(row.text_or_number("answer"))
    if not answer:
        raise BadRow("empty")
    return {
        "prompt": _in_context(row, row.text("question")),
        "answer": answer,
        "meta": {"thoughts": thoughts} if thoughts else {},
    }


def _in_context(row: Fields, question: str) -> str:
    """The question after its context, where `fields` names a column of it: a text, or a list of texts."""
    if "context" not in row.names or (context := row.look("context")) is None:
        return question
    texts = context if isinstance(context, list) else [context]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadRow(f"wrong type of {row.name('context')}: {type(wrong[0]).__name__}")
    return "\n\n".join([*filter(None, map(clean, texts)), question])


def _steps(reasoning: str, *, tags: bool) -> str:
    """The worked answer without its calculator marks, or with tags around steps and calculations."""
    if not tags:
        return CALCULATOR_MARK.sub("", reasoning).strip()
    lines = CALCULATOR_MARK.sub(r"<calculation>\1</calculation>", reasoning).splitlines()
    return "\n".join(f"<step>{line.strip()}</step>" for line in lines if line.strip())


def _options(row: Fields) -> tuple[list[str], list[str]]:
    """Labels and texts of the options, from a list, a mapping by letter, {label, text} pairs, single columns, or a text
    with a line for each ("A. lung")."""
    value = unpacked(row.several("options"), row.name("options"))
    if isinstance(value, str) and (lines := _lines_by_letter(value)):
        value = lines
    if isinstance(value, Mapping) and {"label", "text"} <= set(value):
        labels, texts = value["label"], value["text"]
        if wrong := [one for one in (labels, texts) if not isinstance(one, list)]:
            raise BadRow(f"wrong type of {row.name('options')}: {type(wrong[0]).__name__}")
    elif isinstance(value, Mapping):
        pairs = sorted((str(label), text) for label, text in value.items() if text is not None)
        labels, texts = [label for label, _ in pairs], [text for _, text in pairs]
    elif isinstance(value, list) and all(isinstance(option, Mapping) for option in value):
        labels, texts = [option.get("label") for option in value], [option.get("text") for option in value]
    elif isinstance(value, list):
        labels, texts = list(string.ascii_uppercase[: len(value)]), list(value)
    else:
        raise BadRow(f"wrong type of {row.name('options')}: {type(value).__name__}")
    texts = [str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text for text in texts]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadRow(f"wrong type of {row.name('options')}: {type(wrong[0]).__name__}")
    if not 2 <= len(texts) <= len(string.ascii_uppercase) or len(labels) != len(texts):
        raise BadRow(f"{len(texts)} options")
    return [str(label) for label in labels], _without_own_labels([clean(text) for text in texts])


def _are_numbers(row: Fields) -> bool:
    """Whether the row has options that are no texts."""
    value = row.several("options")
    return isinstance(value, list) and any(isinstance(option, int | float) for option in value)


def _lines_by_letter(text: str) -> list[str]:
    """The lines of a text of which each has a letter of its own; none where they have not."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines if _without_own_labels(lines) is not lines else []


def _without_own_labels(options: list[str]) -> list[str]:
    """Options that carry their own letters ("A)12", "B)13") without them."""
    marks = [OWN_LABEL.match(option) for option in options]
    own = [mark[1] if mark else "" for mark in marks]
    if own == list(string.ascii_uppercase[: len(options)]):
        return [option[mark.end() :] for option, mark in zip(options, marks, strict=True) if mark]
    return options


def _answer_index(answer: Any, labels: list[str], options: list[str], base: int) -> int:
    """The index of the option that `answer` names: by its label, its text, or a number that counts from `base`."""
    if isinstance(answer, str):
        text = clean(answer)
        if text in labels or text.upper() in labels:
            return labels.index(text if text in labels else text.upper())
        if text in options:
            return options.index(text)
        if not re.fullmatch(r"-?\d+", text):
            return _by_marked_label(text, labels, options)
        answer = int(text)
    if isinstance(answer, bool) or not isinstance(answer, int):
        raise BadRow(f"wrong type of answer: {type(answer).__name__}")
    if not 0 <= answer - base < len(options):
        raise BadRow("unknown answer")
    return answer - base


def _by_marked_label(text: str, labels: list[str], options: list[str]) -> int:
    """The same of an answer such as "(B)", or "B. liver" where that is what option B says."""
    if (alone := MARKED_LABEL.fullmatch(text)) and alone[1].upper() in labels:
        return labels.index(alone[1].upper())
    if (before := OWN_LABEL.match(text)) and before[1] in labels:
        index = labels.index(before[1])
        if text[before.end() :].strip() == options[index].strip():
            return index
    raise BadRow("unknown answer")
