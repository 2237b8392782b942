"""Rows of a Parquet file: entered at a row group at once; groups without a wanted row are never read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.read.bytes.byte_blocks import KEPT_BYTES
from lifecycle.data.read.bytes.damage import Damaged
from lifecycle.data.read.bytes.leading_bytes import HEAD_BYTES, misnamed
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.files.listing import File
from lifecycle.data.read.row import Position, RawRow, Rows, Wanted

BATCH_ROWS = 256


def parquet_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """Rows of one file from `at`; returns the position that follows its last row. Raises Damaged."""
    reader = _opened(file, raw)
    first = at.row - at.offset  # ordinal of the file's row 0
    columns = named(file, reader.schema_arrow.names)
    start = 0
    for group in range(reader.num_row_groups):
        stop = start + reader.metadata.row_group(group).num_rows
        picked = [n for n in range(max(start, at.offset), stop) if wanted(first + n)]
        given = 0
        try:
            for n, payload, fault in _group_rows(reader, group, start, picked, columns):
                given += 1
                after = Position(at.file, n + 1, first + n + 1, n + 1)
                share = (n + 1) / reader.metadata.num_rows
                yield RawRow(first + n, file.url, n + 1, payload, after, fault=fault, share=share)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, ConnectionError):
                raise
            n = picked[given]
            raise Damaged(
                f"cannot be read in row group {group + 1} of {reader.num_row_groups} ({_first_line(error)})",
                stored=0,
                at=Position(at.file, n, first + n, n),
                after=Position(at.file, stop, first + stop, stop),
            ) from None
        start = stop
    return Position(at.file, start, first + start, start)


def named(file: File, known: Sequence[str]) -> list[str] | None:
    """Those of the columns `known` that are read; None: all."""
    return None if file.columns is None else [name for name in file.columns if name in known]


def mappings(batch: pa.RecordBatch) -> list[tuple[dict[str, Any] | bytes, str | None]]:
    """The rows of a batch, and why each is bad; text that is no UTF-8 makes its own row bad and no other."""
    try:
        return [(row, None) for row in batch.to_pylist()]
    except UnicodeDecodeError:
        return [_mapping(batch.slice(n, 1)) for n in range(batch.num_rows)]


def _opened(file: File, raw: Stored) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(raw)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        raw.seek(0)
        wrong = misnamed(raw.read(HEAD_BYTES), file)
        raise Damaged(wrong or f"is no whole Parquet file ({_first_line(error)})", stored=0) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _group_rows(
    reader: pq.ParquetFile, group: int, start: int, picked: list[int], columns: list[str] | None
) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
    """Rows `picked` (numbers in the file, ascending) of a row group."""
    given, done = 0, 0
    if not picked:
        return
    for batch in reader.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
        stop = given
        while stop < len(picked) and picked[stop] < start + done + batch.num_rows:
            stop += 1
        if stop > given:
            part = batch.take(pa.array([n - start - done for n in picked[given:stop]]))
            for n, (payload, fault) in zip(picked[given:stop], mappings(part), strict=True):
                yield n, payload, fault
            given = stop
        done += batch.num_rows
        if given == len(picked):
            return


def _mapping(batch: pa.RecordBatch) -> tuple[dict[str, Any] | bytes, str | None]:
    try:
        return batch.to_pylist()[0], None
    except UnicodeDecodeError as error:
        return bytes(error.object)[:KEPT_BYTES], "bad utf-8"
