"""The formats of rows: what each reads, how it is recognised, which views it can give. One list, `FORMATS`.

`spec.fields` maps our names of fields to the row's own; a dotted name goes into a nested mapping. Fields are needed in
every row, used where a row has them, or used only where `spec.fields` names them, as the `level` of difficulty is.
To add a format: a function in `forms/` that makes the fields of a Record of a row, and an entry here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lifecycle.batch import KEPT, Record
from lifecycle.data.read.forms.fields import Fields, is_plain, value_at
from lifecycle.data.read.forms.preferences import preference, scored_pairs, unpaired
from lifecycle.data.read.forms.problems import multiple_choice, question_answer, word_problem
from lifecycle.data.read.forms.programs import code_problem
from lifecycle.data.read.forms.turns import conversations, instruction, messages, prompt, prompt_completion
from lifecycle.data.read.row import BadRow

AUTO = "auto"
"""The format is recognised by the columns of the first rows."""

LEVEL = re.compile(r"\D*(\d+(?:\.\d+)?)")  # "Level 3", "3", "grade 2.5"

ASKED = frozenset({"text", "chat", "prompt"})
JUDGED = frozenset({"chat", "preference", "comparison", "prompt"})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Columns that published sets of a format have. columns: our field -> the row's column, all of which a row has;
    extra: columns that it may have. holds: a text that is in every answer, where the columns alone fit other formats
    too."""

    columns: Mapping[str, str | list[str]]
    extra: Mapping[str, str] = field(default_factory=dict)
    holds: str | None = None


@dataclass(frozen=True, kw_only=True)
class Format:
    """make: the fields of a Record of a row. needs, takes, named: fields that every row has, that are used where a row
    has them, and only where `spec.fields` names them. views: that it can give."""

    name: str
    make: Callable[[Fields], dict[str, Any]]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    views: frozenset[str] = ASKED
    layouts: tuple[Layout, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All names on the left of `spec.fields`."""
        return (*self.needs, *self.takes, *self.named, "level", KEPT)


def _text(row: Fields) -> dict[str, Any]:
    text, title = row.text("text", strip=False), row.text_if_named("title")
    return {"text": f"{title}\n\n{text}" if title else text}


SYSTEM = {"system": "system"}
CHOICES = {"question": "question", "options": "choices"}

LIST = (
    Format(
        name="unpaired",
        make=unpaired,
        needs=("label",),
        takes=("messages", "prompt", "completion"),
        named=("system",),
        views=frozenset({"unpaired", "prompt"}),
        layouts=(
            Layout(columns={"messages": "messages", "label": "label"}),
            Layout(columns={"prompt": "prompt", "completion": "completion", "label": "label"}),
        ),
    ),
    Format(
        name="preference",
        make=preference,
        needs=("chosen", "rejected"),
        takes=("prompt", "input"),
        named=("system", "margin"),
        views=JUDGED,
        layouts=(
            Layout(columns={"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}, extra=SYSTEM),
            Layout(columns={"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}, extra=SYSTEM),
            Layout(columns={"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"}, extra=SYSTEM),
            Layout(columns={"prompt": "question", "chosen": "chosen", "rejected": "rejected"}, extra=SYSTEM),
            Layout(columns={"chosen": "chosen", "rejected": "rejected"}),
        ),
    ),
    Format(
        name="scored_pairs",
        make=scored_pairs,
        needs=("prompt", "response_1", "response_2"),
        takes=("preference", "score_1", "score_2", "input"),
        named=("system",),
        views=JUDGED,
        layouts=(
            Layout(
                columns={
                    "prompt": "instruction",
                    "response_1": "output_1",
                    "response_2": "output_2",
                    "preference": "preference",
                }
            ),
            Layout(columns={name: name for name in ("prompt", "response_1", "response_2", "preference")}),
            Layout(columns={name: name for name in ("prompt", "response_1", "response_2", "score_1", "score_2")}),
        ),
    ),
    Format(
        name="code_problem",
        make=code_problem,
        needs=("prompt", "tests"),
        takes=("code", "setup", "entry_point", "starter_code"),
        layouts=(
            Layout(
                columns={"prompt": "text", "tests": "test_list", "code": "code"}, extra={"setup": "test_setup_code"}
            ),
            Layout(columns={"prompt": "prompt", "tests": "test", "code": "canonical_solution"}),
            Layout(columns={"prompt": "question", "tests": "input_output", "code": "solutions"}),
            Layout(columns={"prompt": "description", "tests": "public_tests"}),
            Layout(columns={"prompt": "prompt", "tests": "tests"}),
        ),
    ),
    Format(
        name="multiple_choice",
        make=multiple_choice,
        needs=("question", "options", "answer"),
        named=("explanation", "context"),
        layouts=(
            Layout(columns={"question": "question", "options": "options", "answer": "answer_idx"}),
            Layout(
                columns={"question": "question", "options": ["opa", "opb", "opc", "opd"], "answer": "cop"},
                extra={"explanation": "exp"},
            ),
            Layout(columns={"question": "question.stem", "options": "question.choices", "answer": "answerKey"}),
            Layout(columns={**CHOICES, "answer": "answerKey"}),
            Layout(columns={**CHOICES, "answer": "answer"}),
            Layout(columns={"question": "question", "options": "options", "answer": "correct"}),
            Layout(columns={"question": "question", "options": "options", "answer": "answer"}),
            Layout(columns={"question": "query", "options": "choices", "answer": "gold"}),
            Layout(columns={"question": "prompt", "options": "options", "answer": "answer"}),
            Layout(columns={"question": "prompt", "options": "choices", "answer": "answer"}),
        ),
    ),
    Format(
        name="word_problem",
        make=word_problem,
        needs=("question", "answer"),
        named=("reasoning",),
        layouts=(Layout(columns={"question": "question", "answer": "answer"}, holds="####"),),
    ),
    Format(
        name="instruction",
        make=instruction,
        needs=("instruction", "output"),
        takes=("input",),
        named=("system", "reasoning"),
        layouts=(
            Layout(columns={"instruction": "instruction", "output": "output"}, extra=SYSTEM),
            Layout(columns={"instruction": "instruction", "output": "response"}, extra=SYSTEM),
        ),
    ),
    Format(
        name="prompt_completion",
        make=prompt_completion,
        needs=("prompt", "completion"),
        named=("system", "reasoning"),
        layouts=(
            Layout(columns={"prompt": "prompt", "completion": "completion"}, extra=SYSTEM),
            Layout(columns={"prompt": "prompt", "completion": "response"}, extra=SYSTEM),
        ),
    ),
    Format(
        name="question_answer",
        make=question_answer,
        needs=("question", "answer"),
        named=("context", "reasoning"),
        layouts=(
            Layout(columns={"question": "question", "answer": "answer"}),
            Layout(columns={"question": "problem", "answer": "solution"}),
            Layout(columns={"question": "question", "answer": "long_answer"}),
            Layout(columns={"question": "QUESTION", "answer": "LONG_ANSWER"}, extra={"context": "CONTEXTS"}),
        ),
    ),
    Format(
        name="messages",
        make=messages,
        needs=("messages",),
        takes=("tools",),
        named=("system",),
        layouts=(Layout(columns={"messages": "messages"}, extra=SYSTEM),),
    ),
    Format(
        name="conversations",
        make=conversations,
        needs=("conversations",),
        takes=("tools",),
        named=("system",),
        layouts=(Layout(columns={"conversations": "conversations"}, extra=SYSTEM),),
    ),
    Format(
        name="prompt",
        make=prompt,
        needs=("prompt",),
        takes=("answer",),
        named=("system",),
        views=frozenset({"prompt"}),
        layouts=tuple(
            Layout(columns={"prompt": "prompt", **answer}, extra=SYSTEM)
            for answer in (
                {"answer": "answer"},
                {"answer": "solution"},
                {"answer": "ground_truth"},
                {"answer": "reward_model.ground_truth"},
                {},
            )
        ),
    ),
    Format(
        name="text",
        make=_text,
        needs=("text",),
        named=("title",),
        views=frozenset({"text"}),
        layouts=(Layout(columns={"text": "text"}), Layout(columns={"text": "content"})),
    ),
)
"""In the order in which they are recognised: those of more columns first."""

COLUMNS = tuple(
    dict.fromkeys(
        part
        for form in LIST
        for layout in form.layouts
        for named in (*layout.columns.values(), *layout.extra.values(), *form.takes)
        for name in (named if isinstance(named, list) else [named])
        for part in (name, name.split(".")[0])
    )
)
"""Columns that a format is recognised by, and that it may read."""

FORMATS: Mapping[str, Format] = {one.name: one for one in LIST}


class Reading(Protocol):
    """The settings of a source that decide how its rows are read."""

    @property
    def format(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, str | list[str]]: ...
    @property
    def domain(self) -> str | None: ...
    @property
    def answer_base(self) -> int: ...
    @property
    def step_tags(self) -> bool: ...
    @property
    def tie_margin(self) -> float: ...


def views(spec: Reading) -> frozenset[str]:
    """The views that a source of this format can give; of one whose rows were not looked at yet, any."""
    if spec.format == AUTO:
        return frozenset().union(*(one.views for one in LIST))
    return FORMATS[spec.format].views


def to_record(row: Mapping[str, Any], *, spec: Reading, name: str, row_id: str) -> Record:
    """The row of source `name` as a record of `spec.format`. Raises BadRow for a row that does not fit the format."""
    fields = fields_of(row, spec)
    parts = FORMATS[spec.format].make(fields)
    if KEPT in spec.fields:
        parts["meta"] = {**parts.get("meta", {}), KEPT: _kept(fields)}
    return Record(id=row_id, source=name, domain=spec.domain or name, level=_level(fields), **parts)


def _kept(row: Fields) -> dict[str, Any]:
    """The columns that `spec.fields` keeps, by their own names; null where a row lacks one."""
    named = row.names[KEPT]
    kept = {column: value_at(row.values, column) for column in ([named] if isinstance(named, str) else named)}
    kept = {column: None if value != value else value for column, value in kept.items()}  # NaN is pandas' for none
    if wrong := [column for column, value in kept.items() if not is_plain(value)]:
        raise BadRow(f"{wrong[0]} holds a value that is no JSON")
    return kept


def fields_of(row: Mapping[str, Any], spec: Reading) -> Fields:
    """The fields of a row by our names."""
    return Fields(
        values=row,
        names=spec.fields,
        answer_base=spec.answer_base,
        step_tags=spec.step_tags,
        tie_margin=spec.tie_margin,
    )


def _level(row: Fields) -> float | None:
    """A number, or the number at the end of a text ("Level 3"); None where the row has none ("Level ?")."""
    value = row.look("level") if "level" in row.names else None
    if value is None or (isinstance(value, str) and value.rstrip().endswith("?")):
        return None
    if isinstance(value, str):
        if not (found := LEVEL.fullmatch(value.strip())):
            raise BadRow(f"no number in {row.name('level')}")
        return float(found[1])
    return row.number("level")
