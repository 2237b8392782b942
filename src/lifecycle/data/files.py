"""Where the rows of a source lie: a spec resolved to a sorted tuple of files, local or remote.

files = resolve(spec, name="web", root="/data", cache=Path("cache"))   # (File(url, size, kind, stamp), ...)
identity = fingerprint(files)

Files are known by what they hold: those of this machine by a hash of their bytes, remote ones by the hash that their
store gives, and by size and time where it gives none.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lifecycle.data.contents import content_hashes
from lifecycle.data.specs import SourceSpec
from lifecycle.data.stdlib import KINDS, materialise
from lifecycle.errors import UserError

Kind = Literal["jsonl", "csv", "tsv", "parquet", "arrow", "document", "line", "paragraph"]
"""How rows are cut out of a file; the last three are plain text."""

READING = 2
"""Raised when the same bytes are cut or parsed into other rows: what was derived from files is then made anew."""

MOST_ROW_BYTES = 10_000_000
"""A longer row is a bad row: it is passed over without being held in memory."""

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
    ".pickle .pkl .safetensors .gguf .xlsx .xls .ods .db .sqlite .png .jpg .jpeg .gif .mp3 .wav .mp4 .pyc .so".split()
)
"""Everything else is read as plain text: source code, Markdown and notes are as good as `.txt`."""

CONTENT_STAMPS = ("blob_id", "md5Hash", "md5", "content_md5", "ETag", "etag", "sha", "generation")
"""What stores say of a file that is another for another content, the strongest first."""

TIME_STAMPS = ("LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True, slots=True)
class File:
    """One data file: absolute path or URL, size in bytes as stored, kind of its rows, and what tells its content.

    stamp: a hash of a local file's bytes, or what a store says of a remote one; empty where nothing is known or asked.

    columns: the only ones to read, where columns can be read alone (Parquet, Arrow); None: all.
    encoding: of its text.
    """

    url: str
    size: int
    kind: Kind
    stamp: str = ""
    columns: tuple[str, ...] | None = None
    encoding: str = "utf-8"

    @property
    def is_utf8(self) -> bool:
        """Whether its text is UTF-8 as it is stored."""
        return codecs.lookup(self.encoding).name == "utf-8"

    @property
    def compression(self) -> str | None:
        """`.gz`, `.zst`, `.xz`, `.bz2` or None."""
        return next((suffix for suffix in COMPRESSED if self.url.lower().endswith(suffix)), None)


def resolve(
    spec: SourceSpec,
    *,
    name: str,
    cache: Path,
    root: str | None = None,
    split: str | None = None,
    where: str | None = None,
    hashed: bool = True,
) -> tuple[File, ...]:
    """The files of a source's `split` (None: `spec.split`), sorted by URL and each named once.

    `hashed`: local files are read for their stamps, once a machine; else they have none. `root` is put before relative
    paths; `python://` texts are materialised under `cache`. Raises UserError when nothing matches, a kind is not known,
    or a remote place cannot be reached; `where` is the dotted key that it names (None: the source's).
    """
    where, split = where or f"data.sources.{name}", split or spec.split
    if spec.hub is not None:
        urls = _hub_files(spec, split, where=where, root=root)
    elif isinstance(spec.path, dict):
        if split not in spec.path:
            raise UserError(f"{where}.path has no split {split!r}; it has {', '.join(spec.path)}")
        urls = _as_list(spec.path[split])
    else:
        urls = _as_list(spec.path or [])
    files = _files(urls, where=f"{where}.{'hub' if spec.hub else 'path'}", root=root, cache=cache, spec=spec)
    return _with_hashes(files, cache) if hashed else files


def fingerprint(files: Iterable[File]) -> str:
    """sha256 over what the files hold, in order, and how their rows are cut out; names, places and times of local ones
    do not enter."""
    rows = [[file.kind, file.compression, file.encoding, file.size, file.stamp] for file in files]
    return hashlib.sha256(json.dumps([READING, *rows]).encode()).hexdigest()


def _with_hashes(files: tuple[File, ...], cache: Path) -> tuple[File, ...]:
    known = content_hashes([file.url for file in files if not is_remote(file.url)], cache=cache)
    return tuple(replace(file, stamp=known.get(file.url, file.stamp)) for file in files)


def is_remote(url: str) -> bool:
    """Whether fsspec, not the local file system, opens `url`."""
    return "://" in url


def place(url: str, root: str | None) -> str:
    """An absolute path, or an address: `url` as it is read where relative paths start at `root` (None: right here)."""
    if is_remote(url):
        return url
    url = os.path.expanduser(url)
    if root and is_remote(root) and not os.path.isabs(url):
        return f"{root.rstrip('/')}/{url}"
    return os.path.abspath(os.path.join(os.path.expanduser(root or ""), url))


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _files(urls: list[str], *, where: str, root: str | None, cache: Path, spec: SourceSpec) -> tuple[File, ...]:
    found: dict[str, tuple[int, str]] = {}
    for url in urls:
        if url.startswith("python://"):
            found |= _python_text(url, where=where, cache=cache)
        elif is_remote(placed := place(url, root)):
            found |= _remote(placed, where=where)
        else:
            found |= _local(placed, where=where)
    files = tuple(
        File(url, size, _kind(url, spec, where=where), stamp, spec.columns, spec.encoding)
        for url, (size, stamp) in sorted(found.items())
    )
    _refuse_giant_documents(files, where)
    return files


def _python_text(url: str, *, where: str, cache: Path) -> dict[str, tuple[int, str]]:
    kind = url.removeprefix("python://")
    if kind not in KINDS:
        known = ", ".join(f"python://{name}" for name in KINDS)
        raise UserError(f"{where} is {url!r}; this Python's own texts are {known}")
    path = materialise(kind, cache)
    return {str(path): (path.stat().st_size, "")}


def _local(pattern: str, *, where: str) -> dict[str, tuple[int, str]]:
    """Size of each matching file, by path; what it holds is read later."""
    if os.path.isdir(pattern):
        matches = [p for p in glob.glob(os.path.join(glob.escape(pattern), "**"), recursive=True) if os.path.isfile(p)]
        matches = [path for path in matches if suffix_of(path) not in REFUSED]
    elif os.path.exists(pattern):
        matches = [pattern]
    else:
        matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    if not matches:
        raise UserError(f"{where}: nothing matches {pattern}{_nearest(pattern)}")
    closed = [path for path in matches if not os.access(path, os.R_OK)]
    if closed:
        raise UserError(f"{where}: {closed[0]} cannot be read (permission denied): mend its rights, or leave it out")
    return {path: (os.stat(path).st_size, "") for path in matches}


def _remote(url: str, *, where: str) -> dict[str, tuple[int, str]]:
    import fsspec  # a remote source is the exception: its packages load only when there is one

    cause: BaseException | None = None
    try:
        fs, path = fsspec.core.url_to_fs(url)
        infos: Mapping[str, Any] = fs.glob(path, detail=True) if glob.has_magic(path) else _listed(fs, path)
    except FileNotFoundError as error:  # HTTP says so of an unreachable server as well, and keeps the cause
        infos, cause = {}, error.__cause__
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{where}: {url} cannot be reached ({type(error).__name__}: {error}). {_ADVICE}") from error
    found = {
        fs.unstrip_protocol(path): (int(info.get("size") or 0), _stamp(info))
        for path, info in infos.items()
        if info.get("type") != "directory"
    }
    _say_weak([url for url, (_, stamp) in found.items() if not stamp.startswith(CONTENT_STAMPS)], where)
    if not found:
        because = f" ({type(cause).__name__}: {cause})" if cause else ""
        raise UserError(f"{where}: nothing matches {url}{because}; check the address, the network and your access")
    return found


def _stamp(info: Mapping[str, Any]) -> str:
    """The strongest that the store says of a file's content, with its name."""
    return next((f"{key} {info[key]}" for key in (*CONTENT_STAMPS, *TIME_STAMPS) if info.get(key)), "")


def _say_weak(urls: list[str], where: str) -> None:
    if urls:
        sys.stderr.write(
            f"{where}: the store of {urls[0]} gives no hash of what a file holds: that one has changed is noticed by "
            "its size and time alone\n"
        )


def _listed(fs: Any, path: str) -> Mapping[str, Any]:
    info = fs.info(path)
    return fs.find(path, detail=True) if info.get("type") == "directory" else {path: info}


def _hub_files(spec: SourceSpec, split: str, *, where: str, root: str | None) -> list[str]:
    """The data files of one split of a hub data set, or of a local folder that is laid out like one."""
    import datasets  # takes a second to import, and only hub names need it

    hub = str(spec.hub)
    local = place(hub, root)
    found = local if os.path.isdir(local) else hub
    try:
        builder = datasets.load_dataset_builder(found, spec.config, data_dir=spec.data_dir)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise UserError(
            f"{where}.hub is {hub!r}: {error} Check the name; a gated set needs `hf auth login`."
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{where}.hub: {hub!r} cannot be resolved ({type(error).__name__}: {error}). {_ADVICE}"
        ) from error
    by_split = builder.config.data_files or {}
    if split not in by_split:
        raise UserError(f"{where}: {hub!r} has no split {split!r}; it has {', '.join(by_split) or 'no data files'}")
    return [str(url) for url in by_split[split]]


_ADVICE = (
    "Check the network, and that HF_HUB_OFFLINE is not set; where there is no network, name local files by path, or "
    "prepare the data elsewhere (stage=prepare, then data.prepared=RUN)"
)


def suffix_of(path: str) -> str:
    """The ending that tells the kind: `.jsonl` of `a.JSONL.gz`."""
    stem = path.lower()
    for suffix in COMPRESSED:
        stem = stem.removesuffix(suffix)
    return os.path.splitext(stem)[1]


def _kind(path: str, spec: SourceSpec, *, where: str) -> Kind:
    suffix = suffix_of(path)
    if suffix in REFUSED:
        raise UserError(
            f"{where}: {path} is a {suffix} file; wanted JSON (.jsonl, .json), CSV, plain text (all of them also .gz, "
            ".zst, .xz, .bz2), Parquet or Arrow: convert it (`datasets` reads most formats: "
            "load_dataset(...).to_parquet(...)), or narrow the pattern"
        )
    return SUFFIXES.get(suffix, spec.sample_by)


def _nearest(pattern: str) -> str:
    """What lies near a pattern that matches nothing."""
    folder, name = os.path.split(pattern)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    names = sorted(entry for entry in os.listdir(folder or ".") if not entry.startswith("."))[:2000]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    return f"; {folder or '.'} has {', '.join(near)}" if near else f"; {folder or '.'} is empty"


def _refuse_giant_documents(files: Iterable[File], where: str) -> None:
    for file in files:
        if file.kind == "document" and file.size > MOST_ROW_BYTES:
            raise UserError(
                f"{where}: {file.url} is one text file of {file.size:,} bytes, and sample_by is document (one file, "
                f"one document, {MOST_ROW_BYTES:,} bytes at most): set sample_by to line or paragraph"
            )
