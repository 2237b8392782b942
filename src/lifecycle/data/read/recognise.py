"""`format: auto`: the format of a source by the columns of its first rows, printed once on stderr.

A layout of `formats.LIST` fits where every row has its columns and at least half of the rows become records by it. The
first that fits and gives the view of the run is taken; for the view `text`, a column of text before all others. Rows
with answers labelled good or bad have no other format: a view that would train on the bad answers is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lifecycle.data.read.files.listing import Listing
from lifecycle.data.read.first_rows import (
    Seen,
    broken_alike,
    columns_of,
    counted_from_one,
    fault,
    first_rows,
    has_columns,
    nothing_read,
    of_no_format,
    options_unread,
)
from lifecycle.data.read.formats import AUTO, FORMATS, LIST, Format, Layout
from lifecycle.data.read.spec import SourceSpec
from lifecycle.errors import UserError
from lifecycle.system.say_once import say_read

WITHOUT_OPTIONS = ("question_answer", "word_problem", "prompt")
"""Formats that have columns of multiple choice, too, and would leave the options out."""


def recognised(spec: SourceSpec, found: Listing, *, where: str, view: str) -> tuple[SourceSpec, Listing]:
    """The source with a format and its fields, and its files with the columns that these read; both as they came where
    the format is given. Raises UserError for columns of no known format."""
    if spec.format != AUTO:
        return spec, found
    seen = first_rows(found)
    if not seen:
        if view == "text":  # nothing that can be read: the reader raises the error, which gives the reason
            return replace(spec, format="text"), found
        raise UserError(nothing_read(found, where))
    fits = [(form, layout) for form in _in_order(view) for layout in form.layouts if _fits(seen, spec, form, layout)]
    labelled = [fit for fit in fits if fit[0] is FORMATS["unpaired"]]
    if labelled and not (view == "text" and fits[0][0] is FORMATS["text"]):  # a text with a label is a text
        fits = labelled
    chosen = next(((form, layout) for form, layout in fits if view in form.views), None)
    if chosen is None and view != "text" and (why := broken_alike(seen, spec, view, where)):
        raise UserError(why)
    chosen = chosen or (fits[0] if fits else None)
    if chosen is None:
        raise UserError(of_no_format(seen, where))
    form, layout = chosen
    if form.name in WITHOUT_OPTIONS and (why := options_unread(seen, spec, where)):
        raise UserError(why)
    columns = columns_of(seen, layout)
    fields = {key: name for key, name in columns.items() if key != name or key in form.named}
    made = replace(spec, format=form.name, fields=fields)
    if form.name == "multiple_choice" and (why := counted_from_one(seen, made, where)):
        raise UserError(why)
    mapped = f" fields={{{', '.join(f'{key}: {_shown(name)}' for key, name in fields.items())}}}" if fields else ""
    say_read(f"{where}.format", f"{form.name}{mapped}, by the columns of its first rows")
    return made, replace(found, files=tuple(replace(file, columns=made.columns) for file in found.files))


def _in_order(view: str) -> Sequence[Format]:
    return sorted(LIST, key=lambda form: form.name != "text") if view == "text" else LIST


def _fits(seen: Sequence[Seen], spec: SourceSpec, form: Format, layout: Layout) -> bool:
    if not has_columns(seen, layout):
        return False
    if layout.holds is not None and not any(layout.holds in str(one.row.get("answer")) for one in seen):
        return False
    tried = replace(spec, format=form.name, fields=columns_of(seen, layout))
    return 2 * sum(fault(one, tried) is None for one in seen) >= len(seen)


def _shown(name: str | list[str]) -> str:
    return name if isinstance(name, str) else f"[{', '.join(name)}]"
