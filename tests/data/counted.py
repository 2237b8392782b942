"""Remote places for tests: one that counts what is fetched, one whose files are entered at their start only."""

import io
from pathlib import Path
from typing import Any

import fsspec

from lifecycle.data.read.bytes.remote_parts import Parts
from lifecycle.data.read.bytes.stored import PartedFile
from lifecycle.data.read.files.listing import File


class Counted(fsspec.AbstractFileSystem):
    """Local files by their paths; `fetched` holds the size of every read."""

    protocol = "counted"
    fetched: list[int] = []

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return _Counting(Path(f"/{path.lstrip('/')}").read_bytes())


class _Counting(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        got = super().read(size)
        Counted.fetched.append(len(got))
        return got


class Streaming(fsspec.AbstractFileSystem):
    """Local files that can be read from their start to their end."""

    protocol = "streaming"

    def _open(self, path: str, *args: Any, **kwargs: Any) -> Any:
        return _Stream(Path(f"/{path.lstrip('/')}").read_bytes())


class _Stream(io.BytesIO):
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if offset == self.tell() and whence == io.SEEK_SET:
            return offset
        raise ValueError("Cannot seek streaming file")


def read_whole(url: str, size: int, parts: str) -> dict[str, int]:
    """Read a counted file through the parts in a folder: the sum of its bytes, and how many were fetched."""
    fsspec.register_implementation("counted", Counted, clobber=True)
    with PartedFile(File(url, size, "jsonl", stamp="1"), Parts(Path(parts)), part_bytes=1000) as raw:
        return {"sum": sum(raw.read()), "fetched": sum(Counted.fetched)}
