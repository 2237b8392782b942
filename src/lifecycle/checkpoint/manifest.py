"""The manifest of a committed checkpoint: its files with sizes and hashes, and the check of the files against it.

A folder without a manifest, with a missing, extra, short or long file, or with another hash is damaged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.errors import UserError

MANIFEST = "manifest.json"
SCHEMA = 1
CHUNK = 2**22  # bytes hashed and written or read at a time: they stay in the processor's cache in between


class CheckpointError(UserError):
    """A checkpoint cannot be written or does not verify; names it, the file, what came and what was wanted."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json. tokens: trained so far; None where the writer did not give them."""

    step: int
    tokens: int | None
    files: dict[str, Entry]
    created: str
    versions: dict[str, str]
    schema: int = SCHEMA


def read_manifest(path: Path) -> Manifest:
    """The manifest of `path`, the sizes of all its files checked; raises `CheckpointError`.

    Another schema is no damage: it raises a plain `UserError`.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"checkpoint {path} has no {MANIFEST}: it was never committed")
    content = file.read_bytes()
    manifest = _decode(content)
    if manifest is None or encode(manifest) != content:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is not what was written (its own sha256 differs)")
    if manifest.schema != SCHEMA:
        raise UserError(
            f"checkpoint {path} has schema {manifest.schema}, wanted {SCHEMA}: read it with its own version"
        )
    for other in path.iterdir():
        if not other.is_file():  # a pipe would be waited for, a folder or a dangling link has no size
            raise damage(path, other.name, "no plain file", "one")
    there = {f.name: f.stat().st_size for f in path.iterdir() if f.name != MANIFEST}
    for name in sorted(manifest.files.keys() | there.keys()):
        wanted = manifest.files.get(name)
        if wanted is None or there.get(name) != wanted.bytes:
            came = f"{there[name]:,} bytes" if name in there else "no such file"
            raise damage(path, name, came, f"{wanted.bytes:,} bytes" if wanted else "no such file")
    return manifest


def damage(path: Path, name: str, came: str, wanted: str) -> CheckpointError:
    """The error for a file that is not what the manifest says."""
    return CheckpointError(f"checkpoint {path} is damaged: {name}: got {came}, wanted {wanted}")


def verify(path: Path) -> Manifest:
    """Read every file of the checkpoint and compare; raises `CheckpointError` naming the first that differs."""
    manifest = read_manifest(path)
    check_hashes(path, manifest, list(manifest.files))
    return manifest


def check_hashes(path: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Read the files `names` of the checkpoint; raises `CheckpointError` naming the first that differs."""
    with ThreadPoolExecutor(thread_name_prefix="verify") as threads:
        hashes = list(threads.map(lambda name: _sha256(path / name), names))
    for name, came in zip(names, hashes, strict=True):
        if came != manifest.files[name].sha256:
            raise damage(path, name, f"sha256 {came}", manifest.files[name].sha256)


def encode(manifest: Manifest) -> bytes:
    """JSON with the hash of the rest in front; equal manifests give equal bytes."""
    rest = asdict(manifest)
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, **rest}, indent=1).encode() + b"\n"


def _decode(content: bytes) -> Manifest | None:
    """The manifest that `content` holds, None if it holds none."""
    try:
        raw: dict[str, Any] = json.loads(content)
        del raw["sha256"]
        raw["files"] = {name: Entry(**entry) for name, entry in raw["files"].items()}
        return Manifest(**raw)
    except (ValueError, KeyError, TypeError, AttributeError):  # any bytes may stand in a damaged file
        return None


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
