"""How many broken rows a source may have: the same limit for a run, for stage=prepare and for every pass over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lifecycle.data.clean.source import Source
from lifecycle.data.read.forms.preferences import NEAR_TIE, SAME
from lifecycle.data.read.quarantine import first, shown
from lifecycle.data.read.row import RawRow
from lifecycle.errors import UserError

BAD = "bad:"
EMPTY = "dropped:empty"
DROPPED = {"empty": EMPTY, NEAR_TIE: f"dropped:{NEAR_TIE}", SAME: f"dropped:{SAME}"}
"""By reason, verdicts on rows that are not broken and still give nothing to train on."""

FEW = 3  # bad rows that a reader may meet in its part of a small source, if the whole source may have as many


def refuse_broken(source: Source, counts: Mapping[str, int], *, before: int, at_end: bool) -> None:
    """Raise UserError if more of the rows counted in `counts` (by verdict) are broken than `data.bad_rows` allows.

    before: rows of the source up to the reader's place, by whichever reader they are read. at_end: whether the reader
    has no more rows to read.
    """
    if (fault := too_broken(source, counts, before=before, at_end=at_end)) is not None:
        raise UserError(fault)


def too_broken(
    source: Source,
    counts: Mapping[str, int],
    *,
    before: int,
    at_end: bool,
    find: Callable[[str], RawRow | None] | None = None,
) -> str | None:
    """The message of `refuse_broken`; None where the share of broken rows is within the limit. Empty rows count neither
    as broken nor in the total.

    find: the first row that is broken for a reason, where the source has no quarantine that lists it.
    """
    limits = source.bad_rows
    bad = {verdict.removeprefix(BAD): n for verdict, n in counts.items() if verdict.startswith(BAD)}
    total = sum(n for verdict, n in counts.items() if verdict != EMPTY)
    if sum(bad.values()) <= limits.max_share * total or (total < limits.min_rows and not at_end):
        return None
    # A stream reads only a part of each pass: one or two bad rows in it are no estimate of the whole source.
    if total < limits.min_rows and sum(bad.values()) <= min(before * limits.max_share, FEW):
        return None
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(bad.items(), key=lambda item: -item[1]))
    most = max(bad, key=lambda one: bad[one])
    found = _listed(source.quarantine, most) if find is None else _found(find(most))
    return (
        f"data.sources.{source.name}: {sum(bad.values()):,} of {total:,} rows are broken ({reasons}), more than the "
        f"share data.bad_rows.max_share={limits.max_share}.{found} "
        f"{_advice(source.name, most)}, or raise the share"
    )


def _listed(path: Path | None, reason: str) -> str:
    """Where the rows are listed, and the first one of that reason as its file has it."""
    if path is None:
        return ""
    entry = first(path, reason)
    if entry is None:
        return f" They are listed in {path};"
    return f" They are listed in {path}, such as {_row(entry['file'], entry['line'], entry['content'])};"


def _found(raw: RawRow | None) -> str:
    return "" if raw is None else f" The first one is {_row(raw.file, raw.line, shown(raw.payload))};"


def _row(file: str, line: int, content: str) -> str:
    printed = "".join(letter if letter.isprintable() else " " for letter in content)  # nothing that moves a cursor
    return f"{file}, line {line}: {printed} ..."


def _advice(name: str, reason: str) -> str:
    """What to do about rows that are broken for that reason."""
    where = f"data.sources.{name}"
    if reason == "bad utf-8":
        return f"declare the encoding of the files ({where}.encoding=cp1252, latin-1, ...)"
    if reason.startswith("chat template"):
        return "choose data.chat_template (auto, chatml, plain, or a Jinja file that writes such rows)"
    if reason == "unknown answer" or reason.startswith("answer is an option"):
        return f"say where the answers count from ({where}.answer_base=1), or map the fields ({where}.fields)"
    if reason.startswith(("missing field", "wrong type of", "no prompt")):
        return f"map the fields ({where}.fields, such as {{text: THEIR_NAME}}), choose {where}.format"
    return "mend the file"
