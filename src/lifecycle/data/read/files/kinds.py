"""What a file is by its name: how its rows are cut out, how it is compressed, and what is not read at all."""

from __future__ import annotations

import os
from typing import Literal

Kind = Literal["jsonl", "csv", "tsv", "parquet", "arrow", "document", "line", "paragraph"]
"""How rows are cut out of a file; the last three are plain text."""

SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".parquet": "parquet",
    ".pq": "parquet",
}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
REFUSED = frozenset(
    ".zip .tar .tgz .tbz2 .txz .7z .rar .lz4 .lzo .br .orc .avro .pdf .docx .doc .odt .epub .bin .pt .pth .npy .npz "
    ".pickle .pkl .safetensors .gguf .xlsx .xls .ods .db .sqlite .png .jpg .jpeg .gif .mp3 .wav .mp4 .pyc .so "
    ".jar .whl .egg .class .o .a .dll .dylib .exe .wasm .deb .rpm .iso .woff .woff2 .ttf .otf .ico .webp .tif .tiff "
    ".flac .ogg .mkv .avi .pptx .ppt .h5 .hdf5 .onnx .ckpt .tfrecord .incomplete .partial .crdownload .aria2".split()
)
"""Everything else is read as plain text: source code, Markdown and notes are as good as `.txt`."""

READ = (
    "JSON (.jsonl, .ndjson, .json), CSV (.csv, .tsv) and plain text, all of them also .gz, .zst, .xz and .bz2; Parquet "
    "and Arrow"
)


def compression_of(path: str) -> str | None:
    """`.gz`, `.zst`, `.xz`, `.bz2` or None."""
    return next((suffix for suffix in COMPRESSED if path.lower().endswith(suffix)), None)


def suffix_of(path: str) -> str:
    """The ending that tells the kind: `.jsonl` of `a.JSONL.gz`."""
    stem = path.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    return os.path.splitext(stem)[1]


def unread(path: str) -> str | None:
    """The ending of a file that is not read; None where it is."""
    suffix, packed = suffix_of(path), compression_of(path)
    if packed and SUFFIXES.get(suffix) in ("parquet", "arrow"):  # entered anywhere, which packing takes away
        return suffix + packed
    return suffix if suffix in REFUSED else None
