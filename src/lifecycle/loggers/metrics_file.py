"""The file metrics.csv of a run: one row a step, `step`, `tokens` (consumed so far), then metric names in order of
appearance; floats by repr, so that what is read back is what was computed, bit for bit; an empty field where a step has
no such metric. `train/tokens` is the column `tokens`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FIRST_COLUMNS = ("step", "tokens")


def written(value: Any) -> str:
    """A number as it stands in the file."""
    number = value.item() if hasattr(value, "item") else value
    return repr(float(number)) if isinstance(number, float) else str(int(number))


def lines(rows: Iterable[list[str]]) -> str:
    """The text of some rows."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Columns and whole rows of a metrics file as text; a last line without its end (a killed writer) is dropped."""
    if not path.exists():
        return [], []
    text = path.read_text(errors="replace")
    whole = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(io.StringIO(whole, newline="")))
    if not rows:
        return [], []
    return rows[0], [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit()]


def read_metrics(path: Path) -> dict[str, list[float | None]]:
    """Columns of a metrics file, all of one length; None where a step has no such metric. Empty if there is no file."""
    columns, rows = read_rows(path)
    return {name: [_number(row[index]) for row in rows] for index, name in enumerate(columns)}


def _number(text: str) -> float | None:
    if not text:
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
