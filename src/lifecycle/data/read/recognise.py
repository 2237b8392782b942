"""`format: auto`: the format of a source by the columns of its first rows, printed once on stderr.

A layout of `formats.LIST` fits where every row has its columns and at least half of the rows become records by it. The
first that fits and gives the view of the run is taken; for the view `text`, a column of text before all others. Rows
with answers labelled good or bad have no other format: a view that would train on the bad answers is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any

from lifecycle.data.read.files.listing import Listing
from lifecycle.data.read.formats import AUTO, FORMATS, LIST, Format, Layout, to_record
from lifecycle.data.read.forms.fields import value_at
from lifecycle.data.read.forms.preferences import NEAR_TIE, SAME
from lifecycle.data.read.row import BadRow, Position, parse
from lifecycle.data.read.rows.readers import rows
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read

ROWS = 20
"""Number of rows that are read to recognise a format."""


def recognised(spec: SourceSpec, found: Listing, *, where: str, view: str) -> tuple[SourceSpec, Listing]:
    """The source with a format and its fields, and its files with the columns that these read; both as they came where
    the format is given. Raises UserError for columns of no known format."""
    if spec.format != AUTO:
        return spec, found
    seen = _first_rows(found)
    if not seen:  # nothing that can be read: the reader raises the error, which gives the reason
        return replace(spec, format="text"), found
    fits = [(form, layout) for form in _in_order(view) for layout in form.layouts if _fits(seen, spec, form, layout)]
    labelled = [fit for fit in fits if fit[0] is FORMATS["unpaired"]]
    if labelled and not (view == "text" and fits[0][0] is FORMATS["text"]):  # a text with a label is a text
        fits = labelled
    chosen = next(((form, layout) for form, layout in fits if view in form.views), fits[0] if fits else None)
    if chosen is None:
        came = ", ".join(sorted({column for row in seen for column in row}))[:300]
        came += "" if all(row.keys() == seen[0].keys() for row in seen) else " (not all of them in every row)"
        formats = "; ".join(f"{form.name} ({', '.join(form.needs)})" for form in LIST)
        raise UserError(
            f"{where}.format is auto, but rows with the columns {came} fit no known format. Name "
            f"{where}.format and map its fields to columns by {where}.fields: {formats}"
        )
    form, layout = chosen
    columns = _columns(seen, layout)
    fields = {key: name for key, name in columns.items() if key != name or key in form.named}
    made = replace(spec, format=form.name, fields=fields)
    mapped = f" fields={{{', '.join(f'{key}: {_shown(name)}' for key, name in fields.items())}}}" if fields else ""
    say_read(f"{where}.format", f"{form.name}{mapped}, by the columns of its first rows")
    return made, replace(found, files=tuple(replace(file, columns=made.columns) for file in found.files))


def _in_order(view: str) -> Sequence[Format]:
    return sorted(LIST, key=lambda form: form.name != "text") if view == "text" else LIST


def _first_rows(found: Listing) -> list[dict[str, Any]]:
    seen = []
    raws = rows(found.files, Position(0, 0, 0), wanted=lambda ordinal: True, on_damage="skip")
    for raw in islice(raws, ROWS):
        with suppress(BadRow):
            seen.append(parse(raw))
    return seen


def _columns(seen: Sequence[Mapping[str, Any]], layout: Layout) -> dict[str, str | list[str]]:
    """Our fields and the columns that they are read from, with those of the extra ones that any row has."""
    extra = {key: name for key, name in layout.extra.items() if any(value_at(row, name) for row in seen)}
    return {**layout.columns, **extra}


def _fits(seen: Sequence[Mapping[str, Any]], spec: SourceSpec, form: Format, layout: Layout) -> bool:
    flat = [one for name in layout.columns.values() for one in (name if isinstance(name, list) else [name])]
    if not all(name in row or value_at(row, name) is not None for row in seen for name in flat):
        return False
    if layout.holds is not None and not any(layout.holds in str(row.get("answer")) for row in seen):
        return False
    tried = replace(spec, format=form.name, fields=_columns(seen, layout))
    made = 0
    for row in seen:
        try:
            to_record(row, spec=tried, name="", row_id="")
        except BadRow as bad:
            made += bad.reason in ("empty", NEAR_TIE, SAME)
        else:
            made += 1
    return 2 * made >= len(seen)


def _shown(name: str | list[str]) -> str:
    return name if isinstance(name, str) else f"[{', '.join(name)}]"
