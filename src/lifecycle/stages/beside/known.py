"""What a network that is never trained gives for the sequences of a run, computed once and kept on disk.

A folder belongs to all that the values depend on beside the sequence (`made_by`): weights, precision, kernel. Later
epochs, a resumed run and other runs with the same parent or teacher find them there. A file is named by its content, so
that one that a disk has damaged is known, and not read; it says which folder it is of, so that one that was put into
another is not read either.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from lifecycle.system import atomic

DIGEST = 16
"""Bytes of a sequence's hash."""

SUFFIX = ".safetensors"

HOME = "made_by"
"""The entry of a file's header that names its folder."""


def digest(content: bytes) -> bytes:
    """The hash of a sequence from the bytes that it consists of."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def made_by(facts: Sequence[Any]) -> str:
    """The name of the folder of what these plain values have made."""
    return hashlib.sha256(json.dumps(list(facts)).encode()).hexdigest()[:16]


class KnownValues:
    """One-dimensional tensors by the hash of their sequence (`digest`), from the files of a folder.

    damaged: names of files that were not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[bytes, Tensor] = {}
        self._unsaved: list[bytes] = []
        self.damaged: list[str] = []
        for part in sorted(folder.glob(f"*{SUFFIX}")):
            if not _is_whole(part):
                self.damaged.append(part.name)
                continue
            if not _is_at_home(part):
                continue
            tensors = load_file(part)
            keys = tensors["keys"].numpy().tobytes()
            values = tensors["values"].split(tensors["lengths"].tolist())
            self._known |= {keys[at * DIGEST : (at + 1) * DIGEST]: value for at, value in enumerate(values)}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> Tensor:
        return self._known[key]

    def add(self, key: bytes, value: Tensor) -> None:
        """Of one sequence; stays as it is where it is known."""
        if key not in self._known:
            self._known[key] = value
            self._unsaved.append(key)

    def save(self) -> None:
        """Put what is new into a file of its own, named by its content: ranks and runs never write over another's."""
        if not self._unsaved:
            return
        values = [self._known[key] for key in self._unsaved]
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(self._unsaved)), dtype=torch.uint8),
            "lengths": torch.tensor([len(value) for value in values], dtype=torch.int64, device="cpu"),
            "values": torch.cat(values),
        }
        content = save(tensors, metadata={HOME: self.folder.name})
        atomic.write(self.folder / _named(hashlib.sha256(content).hexdigest()), content)
        self._unsaved = []


def _named(sha256: str) -> str:
    return sha256[:16] + SUFFIX


def _is_whole(part: Path) -> bool:
    """Whether a file holds what was written there; says so of one that does not."""
    with part.open("rb") as opened:
        whole = part.name == _named(hashlib.file_digest(opened, "sha256").hexdigest())
    if not whole:
        print(
            f"{part} is damaged (cut off, or changed) and is not read: what stood there is computed again where it can "
            "be. The file may be deleted",
            file=sys.stderr,
        )
    return whole


def _is_at_home(part: Path) -> bool:
    """Whether a file was made for the folder that it lies in; says so of one that was not. Those of older versions name
    none."""
    with safe_open(part, "pt") as opened:
        home = (opened.metadata() or {}).get(HOME, part.parent.name)
    if home != part.parent.name:
        print(
            f"{part} was made for the folder {home}, by other weights or settings, and is not read: what it says is "
            "computed again where it can be. The file may be deleted",
            file=sys.stderr,
        )
    return bool(home == part.parent.name)
