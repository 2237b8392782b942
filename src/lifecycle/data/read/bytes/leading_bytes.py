"""What a file really holds, by its first bytes: a pointer in place of the data, another format, another encoding."""

from __future__ import annotations

import codecs
import re

from lifecycle.data.read.files.listing import File
from lifecycle.errors import UserError

HEAD_BYTES = 512

MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"PAR1", "Parquet"),
    (b"ARROW1\x00\x00", "Arrow"),
    (b"\xff\xff\xff\xff", "Arrow"),
    (b"PK\x03\x04", "a zip archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"%PDF-", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff\xe0", "a picture"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
)
HOLDS = {
    ".gz": "gzip",
    ".zst": "Zstandard",
    ".xz": "xz",
    ".bz2": "bzip2",
    "parquet": "Parquet",
    "arrow": "Arrow",
}
"""What a file is by its name: by its compression, or by its kind."""

PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|error)\b", re.IGNORECASE)
POINTERS = ((b"version https://git-lfs.github.com/spec/", "git lfs pull"), (b"/annex/objects/", "git annex get"))
BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def misnamed(head: bytes, file: File) -> str | None:
    """What is wrong with a file whose stored bytes begin with `head`, as the predicate of a sentence; None: nothing."""
    for mark, command in POINTERS:
        if head.startswith(mark):
            return f"is a pointer to the data, not the data (run `{command}` in its folder)"
    wanted = HOLDS.get(file.compression or file.kind)
    structured = wanted is not None or file.kind in ("jsonl", "csv", "tsv")
    if structured and PAGE.match(head):
        return "holds a web page or an error message in place of the data"
    found = next((what for mark, what in MAGIC if head.startswith(mark)), None)
    if found == wanted or not head:
        return None
    if found is not None and structured:  # else its rows are bad: a folder of text may hold anything
        return f"holds {found}, which its name does not say (rename or convert it)"
    if wanted is not None and _is_text(head):
        return f"holds plain text, though its name says {wanted} (rename it)"
    return None


def refuse_foreign_text(head: bytes, file: File) -> None:
    """Raise UserError for text that is read as UTF-8 and begins as UTF-16 or UTF-32 does."""
    encoding = next((name for mark, name in BOMS if head.startswith(mark)), None) or _unmarked_utf16(head[:HEAD_BYTES])
    if encoding is not None:
        raise UserError(
            f"{file.source}: {file.url} is text in {encoding.upper()}; files are read as UTF-8: declare it "
            f"({file.source}.encoding={encoding}, for all files of the source), or convert it "
            f"(iconv -f {encoding.upper()} -t UTF-8)"
        )


def _unmarked_utf16(head: bytes) -> str | None:
    """The encoding of Latin text without a mark, in which every second byte is 0."""
    if len(head) < 4 or len(head) % 2:
        head = head[:-1]
    even, odd = head[::2], head[1::2]
    if len(even) < 8 or b"\0" not in head:
        return None
    if odd.count(0) > 0.6 * len(odd) and not even.count(0):
        return "utf-16-le"
    return "utf-16-be" if even.count(0) > 0.6 * len(even) and not odd.count(0) else None


def _is_text(head: bytes) -> bool:
    try:
        head[:-3].decode()  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return not any(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
