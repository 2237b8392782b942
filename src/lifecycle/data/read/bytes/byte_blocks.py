"""The text of a file from any offset on, block by block: decompressed, as UTF-8; and the lines in it."""

from __future__ import annotations

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol

import zstandard

from lifecycle.data.read.bytes.damage import Damaged
from lifecycle.data.read.bytes.leading_bytes import refuse_foreign_text
from lifecycle.data.read.bytes.stored import Stored
from lifecycle.data.read.files.listing import File

BLOCK_BYTES = 1 << 20
COMPRESSED_BLOCK_BYTES = 1 << 16
KEPT_BYTES = 400
"""Bytes that are kept of a row that is too long, for the quarantine."""


class _Engine(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def lines(blocks: Iterator[bytes], most_bytes: int) -> Iterator[tuple[list[bytes], int]]:
    """Complete lines without their newline, block by block, and how many bytes were cut out of the first of them.

    After a last line without a newline, the offset is one too large; no line follows it.
    """
    carry, cut_bytes = b"", 0
    for block in blocks:
        lines = block.split(b"\n")
        lines[0] = carry + lines[0]
        carry = lines.pop()
        if lines:
            yield lines, cut_bytes
            cut_bytes = 0
        if len(carry) + cut_bytes > most_bytes and len(carry) > KEPT_BYTES:
            cut_bytes += len(carry) - KEPT_BYTES
            carry = carry[:KEPT_BYTES]
    if carry:
        yield [carry], cut_bytes


def blocks(file: File, raw: Stored, offset: int) -> Iterator[bytes]:
    """The text of a file as UTF-8, decompressed, from byte `offset` of this form on.

    Raises Damaged where it does not decompress, UserError where it begins as text of another encoding does.
    """
    if file.compression is None and file.is_utf8 and offset:
        raw.seek(offset)
        yield from _read(raw, BLOCK_BYTES)
        return
    raw.seek(0)
    stored = _read(raw, BLOCK_BYTES) if file.compression is None else _inflated(raw, ENGINES[file.compression])
    for block in _whole(stored, file):
        if offset >= len(block):
            offset -= len(block)
        else:
            yield block[offset:] if offset else block
            offset = 0


def _whole(stored: Iterator[bytes], file: File) -> Iterator[bytes]:
    """All blocks of a file as UTF-8."""
    first = next(stored, b"")
    if file.is_utf8:
        refuse_foreign_text(first, file)
        return chain([first] if first else [], stored)
    return _as_utf8(chain([first], stored), file.encoding)


def _as_utf8(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Text of another encoding as UTF-8. Bytes that are not valid in it stay as they are, and only their row is bad.

    In UTF-16 and UTF-32, where a wrong unit has no byte of its own, it becomes U+FFFD.
    """
    wide = codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))
    errors = "replace" if wide else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for block in chain(blocks, [b""]):
        if text := decoder.decode(block, final=not block):
            yield text.encode("utf-8", "surrogateescape")


def _read(raw: Stored, size: int) -> Iterator[bytes]:
    while block := raw.read(size):
        yield block


def _gunzip() -> _Engine:
    return zlib.decompressobj(wbits=31)


def _unzstd() -> _Engine:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


ENGINES: dict[str, Callable[[], _Engine]] = {
    ".gz": _gunzip,
    ".zst": _unzstd,
    ".xz": lzma.LZMADecompressor,
    ".bz2": bz2.BZ2Decompressor,
}
FAULTS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError)  # bz2 raises OSError, and reads nothing


def _inflated(raw: Stored, engine_of: Callable[[], _Engine]) -> Iterator[bytes]:
    """Decompressed blocks of a file of one or several members (gzip, bzip2), streams (xz) or frames (zstandard).

    Input is always cut at the same places, so the bytes before a damaged one do not depend on where reading began.
    """
    engine = engine_of()
    for chunk in _read(raw, COMPRESSED_BLOCK_BYTES):
        while chunk:
            if engine.eof:
                chunk = chunk.lstrip(b"\0")  # some writers pad a file with zeros
                if not chunk:
                    break
                engine = engine_of()
            try:
                block = engine.decompress(chunk)
            except FAULTS as error:
                raise Damaged(f"does not decompress ({error})", stored=raw.tell()) from None
            if block:
                yield block
            chunk = engine.unused_data if engine.eof else b""
    if not engine.eof:
        raise Damaged("is cut off: its compressed stream has no end", stored=raw.tell())
