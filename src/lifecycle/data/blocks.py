"""The bytes of a file from any offset on, decompressed block by block, and the lines in them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

from lifecycle.data.files import File
from lifecycle.data.retrying import RetryingFile

BLOCK_BYTES = 1 << 20
COMPRESSED_BLOCK_BYTES = 1 << 16
KEPT_BYTES = 400
"""What is kept of a row that is too long: enough for the quarantine."""


class Damaged(Exception):
    """A compressed file ends too early or does not decompress."""


class _Engine(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def lines(blocks: Iterator[bytes], most_bytes: int) -> Iterator[tuple[list[bytes], int]]:
    """Complete lines without their newline, block by block, and how many bytes were cut out of the first of them.

    The offset of a last line without a newline is one too far; nothing follows it.
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


def blocks(file: File, raw: RetryingFile, offset: int) -> Iterator[bytes]:
    """The (decompressed) bytes of a file from `offset` on."""
    if file.compression is None:
        raw.seek(offset)
        while block := raw.read(BLOCK_BYTES):
            yield block
        return
    for block in _inflated(raw, _gunzip if file.compression == ".gz" else _unzstd):
        if offset >= len(block):
            offset -= len(block)
        else:
            yield block[offset:] if offset else block
            offset = 0


def _gunzip() -> _Engine:
    return zlib.decompressobj(wbits=31)


def _unzstd() -> _Engine:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _inflated(raw: RetryingFile, engine_of: Callable[[], _Engine]) -> Iterator[bytes]:
    """Decompressed blocks of a file of one or several members (gzip) or frames (zstandard).

    Input is always cut at the same places, so the bytes that come before a damage do not depend on the reader.
    """
    engine = engine_of()
    try:
        while chunk := raw.read(COMPRESSED_BLOCK_BYTES):
            while chunk:
                if engine.eof:
                    chunk = chunk.lstrip(b"\0")  # some writers pad a file with zeros
                    if not chunk:
                        break
                    engine = engine_of()
                if block := engine.decompress(chunk):
                    yield block
                chunk = engine.unused_data if engine.eof else b""
    except (zlib.error, zstandard.ZstdError) as error:
        raise Damaged(f"does not decompress: {error}") from None
    if not engine.eof:
        raise Damaged("the compressed stream ends too early")
