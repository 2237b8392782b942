"""Evaluation items found in the sources: `decontamination.json` in the run's folder, and a table.

    {"ngram": 13, "share": 0.5, "min_words": 8,
     "sets": {"medqa_test": {"items": 1273, "short": 0, "bad": 0, "found": 2}},
     "sources": {"web": {"medqa_test": 2}},                                    documents dropped, by set
     "rows": [{"source": "web", "row": 17, "file": ..., "line": 18,
               "found": [{"set": "medqa_test", "item": 5, "share": 1.0, "ngram": "a 23 year old ..."}]}]}

Processes append the rows that they drop to `decontamination/<source>.jsonl`; these lists are merged at the end of a
run. A streaming run covers the rows that it has read; stage=prepare and stage=analyze cover every row.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lifecycle.data.clean.contamination import Found, Index
from lifecycle.data.read.quarantine import append, compact_all
from lifecycle.data.read.row import RawRow
from lifecycle.system import atomic

FOLDER = "decontamination"
NGRAMS_SHOWN = 5  # rows in the terminal's table; the file has them all


def begin(folder: Path, index: Index) -> None:
    """Store in the run's `folder` which evaluation sets its rows are compared with, and by which rule."""
    rule = index.rule
    looked_for = {"ngram": rule.ngram, "share": rule.share, "min_words": rule.min_words, "sets": index.sets}
    atomic.write(folder / FOLDER / "sets.json", json.dumps(looked_for))


def record(path: Path, raw: RawRow, found: tuple[Found, ...]) -> None:
    """List a dropped row of a source with the items that it holds."""
    items = [one._asdict() for one in found]
    append(path, {"row": raw.ordinal, "file": raw.file, "line": raw.line, "found": items})


def write_row_reports(folder: Path) -> None:
    """Sort the lists of rows that the run in `folder` left out, each once, and write the report on contamination."""
    compact_all(folder / "quarantine")
    if (folder / FOLDER / "sets.json").exists():
        compact_all(folder / FOLDER)
        found = report(folder)
        atomic.write(folder / "decontamination.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        if found["rows"]:
            Console(stderr=True).print(table(found))


def report(folder: Path) -> dict[str, Any]:
    """The content of `decontamination.json`."""
    looked_for: dict[str, Any] = json.loads((folder / FOLDER / "sets.json").read_text())
    rows = []
    by_source: dict[str, Counter[str]] = {}
    items: set[tuple[str, int]] = set()
    for path in sorted((folder / FOLDER).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            rows.append({"source": path.stem, **json.loads(line)})
            by_source.setdefault(path.stem, Counter()).update({found["set"] for found in rows[-1]["found"]})
            items |= {(found["set"], found["item"]) for found in rows[-1]["found"]}
    number = Counter(name for name, _ in items)
    sets = {name: {**counts, "found": number[name]} for name, counts in looked_for["sets"].items()}
    return {**looked_for, "sets": sets, "sources": by_source, "rows": rows}


def table(found: dict[str, Any]) -> Table:
    """Documents dropped, by source and set, with n-grams that show why."""
    out = Table(title=f"documents that hold evaluation items (all {len(found['rows'])}: decontamination.json)")
    for column in ("source", "row", "set", "item", "share", "an n-gram of both"):
        out.add_column(column, overflow="fold")
    for row in found["rows"][:NGRAMS_SHOWN]:
        first = row["found"][0]
        cells = (row["source"], row["row"], first["set"], first["item"], f"{first['share']:.0%}", first["ngram"])
        out.add_row(*map(str, cells))
    for source, sets in found["sources"].items():
        for name, documents in sets.items():
            out.add_row(source, f"{documents} rows", name, f"{found['sets'][name]['found']} items", "", "")
    return out
