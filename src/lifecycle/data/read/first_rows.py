"""The first rows of a source, by which its format is recognised; and, where it is not, what is wrong with them.

A message names a row by file and line and shows it: a broken row is not a question of the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from lifecycle.data.read.files.listing import Listing
from lifecycle.data.read.formats import FORMATS, LIST, Layout, to_record
from lifecycle.data.read.forms.fields import value_at
from lifecycle.data.read.forms.preferences import NEAR_TIE, SAME
from lifecycle.data.read.forms.turns import is_turn
from lifecycle.data.read.quarantine import shown
from lifecycle.data.read.row import BadRow, Position, RawRow, parse
from lifecycle.data.read.rows.readers import rows
from lifecycle.data.read.spec import SourceSpec

ROWS = 20
"""Number of rows that are read to recognise a format."""


class Seen(NamedTuple):
    """A row as the file has it, and as a mapping."""

    raw: RawRow
    row: Mapping[str, Any]


def first_rows(found: Listing) -> list[Seen]:
    """Those of the first rows that can be read."""
    return [one for one in _read(found) if isinstance(one, Seen)]


def _read(found: Listing) -> list[Seen | tuple[RawRow, str]]:
    """The first rows; of one that cannot be read, why."""
    out = list[Seen | tuple[RawRow, str]]()
    for raw in islice(rows(found.files, Position(0, 0, 0), wanted=lambda ordinal: True, on_damage="skip"), ROWS):
        try:
            out.append(Seen(raw, parse(raw)))
        except BadRow as bad:
            out.append((raw, bad.reason))
    return out


def has_columns(seen: Sequence[Seen], layout: Layout) -> bool:
    """Whether every row has the columns of the layout."""
    flat = [one for name in layout.columns.values() for one in (name if isinstance(name, list) else [name])]
    return all(name in one.row or value_at(one.row, name) is not None for one in seen for name in flat)


def columns_of(seen: Sequence[Seen], layout: Layout) -> dict[str, str | list[str]]:
    """Our fields and the columns that they are read from, with those of the extra ones that any row has."""
    extra = {key: name for key, name in layout.extra.items() if any(value_at(one.row, name) for one in seen)}
    return {**layout.columns, **extra}


def fault(one: Seen, spec: SourceSpec) -> str | None:
    """Why the row is no record of the source's format; None where it is one, or is merely left out."""
    try:
        to_record(one.row, spec=spec, name="", row_id="")
    except BadRow as bad:
        return None if bad.reason in ("empty", NEAR_TIE, SAME) else bad.reason
    return None


def nothing_read(found: Listing, where: str) -> str:
    """The message for a source of whose first rows none can be read."""
    broken = [(raw, reason) for raw, reason in _read(found) if reason != "empty"]
    if not broken:
        names = ", ".join(file.url for file in found.files[:3]) + (", ..." if len(found.files) > 3 else "")
        return f"{where}: there is no row in {names}: the file is empty, or its first lines are. Give a file with rows"
    raw, reason = broken[0]
    return (
        f"{where}: of its first rows none can be read; {place(raw)} is broken ({reason}): {content(raw)}; wanted one "
        f"JSON object a line (or a list of them), or a table: mend the file, or name another ({where}.path)"
    )


def broken_alike(seen: Sequence[Seen], spec: SourceSpec, view: str, where: str) -> str | None:
    """The message for rows that have the columns of a format which gives the view, and are broken; None for others."""
    if all(is_turn(one.row) for one in seen):
        return (
            f"{where}: its rows are turns ({place(seen[0].raw)}: {content(seen[0].raw)}), so the file is one "
            'conversation; wanted one conversation a row, such as {"messages": [the turns]}'
        )
    known = [(form, layout) for form in LIST if view in form.views for layout in form.layouts]
    for form, layout in known:
        if layout.holds is None and has_columns(seen, layout):
            tried = replace(spec, format=form.name, fields=columns_of(seen, layout))
            reasons = [(one, why) for one in seen if (why := fault(one, tried))]
            if not reasons:  # whole rows, of a format that has more columns than these
                return None
            one, why = reasons[0]
            return (
                f"{where}: its columns are those of the format '{form.name}', and {len(reasons)} of its first "
                f"{len(seen)} rows are broken: {place(one.raw)} ({why}): {content(one.raw)}; mend the rows, or name "
                f"{where}.format and map its fields to columns by {where}.fields"
            )
    return None


def options_unread(seen: Sequence[Seen], spec: SourceSpec, where: str) -> str | None:
    """The message for rows with options that no layout of the format reads: any other format would ask the question
    without them; None where there are none."""
    form = FORMATS["multiple_choice"]
    for layout in form.layouts:
        columns = layout.columns["options"]
        if isinstance(columns, list) or not has_columns(seen, layout):
            continue
        tried = replace(spec, format=form.name, fields=columns_of(seen, layout))
        for one in seen:
            if value_at(one.row, columns) and (why := fault(one, tried)):
                return (
                    f"{where}: its rows have options (column {columns}) that cannot be read: {place(one.raw)} ({why}): "
                    f"{content(one.raw)}; wanted a list, a mapping by letter, or lines that begin with A., B., ..., "
                    "and as answer a letter, a number or the text of an option. Mend the rows, or type "
                    f"{where}.format=question_answer to ask without options"
                )
    return None


def counted_from_one(seen: Sequence[Seen], spec: SourceSpec, where: str) -> str | None:
    """The message for rows of multiple choice with numbers that count from 1 and are read from 0: most would name the
    option behind their own; None for others."""
    beyond = next((one for one in seen if fault(one, spec) == "unknown answer"), None)
    if spec.answer_base or beyond is None or any(fault(one, replace(spec, answer_base=1)) for one in seen):
        return None
    return (
        f"{where}: the answers of its rows count from 1, and are read from 0: {place(beyond.raw)} names an option "
        f"behind the last one ({content(beyond.raw)}), and no row the number 0: type {where}.answer_base=1"
    )


def of_no_format(seen: Sequence[Seen], where: str) -> str:
    """The message for rows whose columns are those of no format, or of several."""
    first = seen[0]
    other = next((one for one in seen if one.row.keys() != first.row.keys()), None)
    formats = "; ".join(f"{form.name} ({', '.join(form.needs)})" for form in LIST)
    if other is not None and not first.row.keys() & other.row.keys():
        return (
            f"{where}: {place(first.raw)} has the columns {_columns(first)}, {place(other.raw)} {_columns(other)}; the "
            "rows of a source have one format: give those of each format a file and a source of their own"
        )
    came = ", ".join(sorted({column for one in seen for column in one.row}))[:300]
    came += "" if other is None else " (not all of them in every row)"
    return (
        f"{where}.format is auto, but rows with the columns {came} fit no known format. Name "
        f"{where}.format and map its fields to columns by {where}.fields, such as {where}.format=question_answer "
        f"'{where}.fields={{question: COLUMN, answer: COLUMN}}'. Formats and their fields: {formats}"
    )


def place(raw: RawRow) -> str:
    """Where the row stands."""
    return f"{raw.file}, line {raw.line}"


def content(raw: RawRow) -> str:
    """The beginning of the row, with nothing that moves a cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in shown(raw.payload))


def _columns(one: Seen) -> str:
    return ", ".join(one.row)[:100]
