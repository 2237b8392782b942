"""Rows of an Arrow file, as `datasets` saves them: the streaming form (`save_to_disk`), or the file form (Feather)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from lifecycle.data.read.bytes.damage import Damaged
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.files.listing import File, is_remote
from lifecycle.data.read.row import Position, RawRow, Rows, Wanted
from lifecycle.data.read.rows.parquet import BATCH_ROWS, mappings, named

FILE_MARK = b"ARROW1"


def arrow_rows(file: File, raw: Stored, at: Position, wanted: Wanted, most_bytes: int) -> Rows:
    """Rows of one file from `at`: record batches before it, and those without a wanted row, are passed over."""
    first = at.row - at.offset  # ordinal of the file's row 0
    start = 0
    for batch in _batches(file, raw, at):
        stop = start + batch.num_rows
        picked = [n for n in range(max(start, at.offset), stop) if wanted(first + n)]
        for some in (picked[i : i + BATCH_ROWS] for i in range(0, len(picked), BATCH_ROWS)):
            part = batch.take(pa.array([n - start for n in some]))
            for n, (payload, fault) in zip(some, mappings(part), strict=True):
                after = Position(at.file, n + 1, first + n + 1, n + 1)
                yield RawRow(first + n, file.url, n + 1, payload, after, fault=fault)
        start = stop
    return Position(at.file, start, first + start, start)


def _batches(file: File, raw: Stored, at: Position) -> Iterator[pa.RecordBatch]:
    """Record batches with the columns that are read. Raises Damaged where the file breaks off."""
    first, rows = at.row - at.offset, 0
    # mapped, batches that are passed over cost nothing; an empty file cannot be mapped
    source = pa.PythonFile(raw, "r") if is_remote(file.url) or not file.size else pa.memory_map(file.url)
    try:
        is_file = source.read(len(FILE_MARK)) == FILE_MARK
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        many = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        columns = named(file, reader.schema.names)
        for batch in many:
            yield batch if columns is None else batch.select(columns)
            rows += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        place = Position(at.file, rows, first + rows, rows)
        what = str(error).splitlines()[0]
        raise Damaged(f"cannot be read as Arrow ({what})", stored=source.tell(), at=place) from None
