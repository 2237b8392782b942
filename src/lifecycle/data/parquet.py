"""Rows of a Parquet file: entered at a row group at once; groups without a wanted row are never read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.data.blocks import KEPT_BYTES
from lifecycle.data.files import File
from lifecycle.data.raw_row import Position, RawRow, Rows, Wanted
from lifecycle.data.retrying import RetryingFile

BATCH_ROWS = 256


def parquet_rows(file: File, raw: RetryingFile, at: Position, wanted: Wanted) -> Rows:
    """Rows of one file from `at`; returns the position that follows its last row."""
    try:
        reader = pq.ParquetFile(raw)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        after = Position(at.file + 1, 0, at.row + 1)
        if wanted(at.row):
            yield RawRow(at.row, file.url, 1, str(error).encode(), after, fault="damaged file")
        return after
    first = at.row - at.offset  # ordinal of the file's row 0
    known = set(reader.schema_arrow.names)
    columns = None if file.columns is None else [name for name in file.columns if name in known]
    start = 0
    for group in range(reader.num_row_groups):
        stop = start + reader.metadata.row_group(group).num_rows
        picked = [n for n in range(max(start, at.offset), stop) if wanted(first + n)]
        if picked:
            for n, payload, fault in _group_rows(reader, group, start, picked, columns):
                yield RawRow(
                    first + n, file.url, n + 1, payload, Position(at.file, n + 1, first + n + 1, n + 1), fault=fault
                )
        start = stop
    return Position(at.file + 1, 0, first + start)


def _group_rows(
    reader: pq.ParquetFile, group: int, start: int, picked: list[int], columns: list[str] | None
) -> Iterator[tuple[int, dict[str, Any] | bytes, str | None]]:
    """Rows `picked` (numbers in the file, ascending) of a row group; what cannot be read is bad, row by row."""
    given, done = 0, 0
    try:
        for batch in reader.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
            stop = given
            while stop < len(picked) and picked[stop] < start + done + batch.num_rows:
                stop += 1
            if stop > given:
                part = batch.take(pa.array([n - start - done for n in picked[given:stop]]))
                for n, (payload, fault) in zip(picked[given:stop], _mappings(part), strict=True):
                    given += 1
                    yield n, payload, fault
            done += batch.num_rows
            if given == len(picked):
                return
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        for n in picked[given:]:
            yield n, str(error).encode(), "damaged file"


def _mappings(batch: pa.RecordBatch) -> list[tuple[dict[str, Any] | bytes, str | None]]:
    try:
        return [(row, None) for row in batch.to_pylist()]
    except UnicodeDecodeError:
        return [_mapping(batch.slice(n, 1)) for n in range(batch.num_rows)]


def _mapping(batch: pa.RecordBatch) -> tuple[dict[str, Any] | bytes, str | None]:
    try:
        return batch.to_pylist()[0], None
    except UnicodeDecodeError as error:
        return bytes(error.object)[:KEPT_BYTES], "bad utf-8"
