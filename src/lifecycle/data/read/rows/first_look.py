"""Checks the first bytes of every local file before anything is read: a file that is no data is reported at the start,
and not when a run reaches it after days. Remote files are checked when they are opened."""

from __future__ import annotations

import os
from collections.abc import Sequence

from lifecycle.data.read.bytes.damage import Damaged, OnDamage, damaged_row
from lifecycle.data.read.bytes.leading_bytes import HEAD_BYTES, misnamed, refuse_foreign_text
from lifecycle.data.read.files.listing import File, is_remote
from lifecycle.data.read.row import Position

PARQUET_MARK = b"PAR1"  # at both ends


def look(files: Sequence[File], on_damage: OnDamage) -> None:
    """Raise UserError for the first file that is not what its name says; under `on_damage=skip` stderr says it."""
    for index, file in enumerate(files):
        if is_remote(file.url):
            continue
        with open(file.url, "rb", buffering=0) as raw:
            head = raw.read(HEAD_BYTES)
            wrong = misnamed(head, file)
            if wrong is None and file.kind == "parquet":
                raw.seek(-min(len(PARQUET_MARK), len(head)), os.SEEK_END)
                if raw.read() != PARQUET_MARK:
                    wrong = "is no whole Parquet file (it is cut off: its end is missing)"
        if wrong is not None:
            damaged_row(Damaged(wrong, stored=0), files, Position(index, 0, 0), on_damage)
        elif file.is_utf8 and file.compression is None and file.kind not in ("parquet", "arrow"):
            refuse_foreign_text(head, file)
