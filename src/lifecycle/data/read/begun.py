"""The tokenizer and the data that a resumed run was started with: it continues with the same ones, or is refused.

    outputs/<run>/tokenizer     its tokenizer, whose hash is in run.json: a recipe is not trained again for old weights
    outputs/<run>/data.json     its files by content (size and hash of each), and a fingerprint of each source

The place of a run in its data is counted in rows, so changed files are other data. The same files in another folder,
under another name or with another time stamp are the same data: they are read in the order that the run began with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.data.read.files.listing import File
from lifecycle.errors import Refusal
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, load, place_of

NAME = "data.json"
SHOWN = 5  # files named of each kind of change
Listed = Sequence[Sequence[Any]]  # of each file its address, size and stamp


def listed(files: Iterable[File]) -> list[list[Any]]:
    """Files as data.json lists them: address, size and stamp of each."""
    return [[file.url, file.size, file.stamp] for file in files]


def changes(before: Listed, now: Listed) -> str:
    """The changes of a source's files in words; empty where they have the same content in the same order."""
    then, here = ([(size, stamp) for _, size, stamp in files] for files in (before, now))
    if then == here:
        return ""
    gone, new = _names(before, set(here)), _names(now, set(then))
    found = [
        _some("changed", [name for name in new if name in gone]),
        _some("new", [name for name in new if name not in gone]),
        _some("gone", [name for name in gone if name not in new]),
    ]
    return "; ".join(filter(None, found)) or "the same files, in another order or number"


def in_order(files: Sequence[File], before: Listed) -> tuple[File, ...]:
    """The files in the order in which files of the same content stand in `before`; unchanged where they are not the
    same files."""
    places: dict[tuple[int, str], list[int]] = {}
    for place, (_, size, stamp) in enumerate(before):
        places.setdefault((size, stamp), []).append(place)
    at = [places.get((file.size, file.stamp), []) for file in files]
    if len(files) != len(before) or any(not places for places in at):
        return tuple(files)
    found = {one.pop(0): file for one, file in zip(at, files, strict=True) if one}
    return tuple(found[place] for place in sorted(found)) if len(found) == len(files) else tuple(files)


def _names(files: Listed, others: set[tuple[int, str]]) -> list[str]:
    """Paths, below the folder that all files are in, of files whose content (size, stamp) is not in `others`."""
    folder = os.path.commonprefix([os.path.dirname(url) + "/" for url, _, _ in files]).rpartition("/")[0]
    return [url[len(folder) :].lstrip("/") for url, size, stamp in files if (size, stamp) not in others]


def _some(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}" if names else ""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The content of the folder of a run that is resumed.

    step: of its last checkpoint; None for a job, which continues from its output. tokenizer: the hash of the one that
    the run began with; None: that of the one in its folder. data: the content of data.json; None where there is none,
    and data is not compared.
    """

    folder: Path
    step: int | None
    tokenizer: str | None
    data: Mapping[str, Any] | None

    @classmethod
    def of(cls, folder: Path, *, step: int, tokenizer: str | None) -> Begun:
        """Of a training run, which continues from a checkpoint."""
        path = folder / NAME
        return cls(
            folder=folder,
            step=step,
            tokenizer=tokenizer,
            data=json.loads(path.read_text()) if path.exists() else None,
        )

    @property
    def _where(self) -> str:
        return "what it has made" if self.step is None else f"step {self.step}"

    def in_order(self, name: str, files: Sequence[File], side: str = "training") -> tuple[File, ...]:
        """The files of one side of a source in the order that the run began with, whatever their names are now."""
        before = self.data["files"].get(name, {}).get(side, []) if self.data is not None else []
        return in_order(files, before)

    def check(self, now: Mapping[str, Any]) -> None:
        """Raise Refusal where the held-out files are other ones than the run began with, or rows are treated in another
        way; now: the present content for data.json."""
        self.check_files({name: sides for name, sides in now["files"].items() if "held_out" in sides})
        self.check_fingerprints(now["fingerprints"])

    def check_files(self, found: Mapping[str, Mapping[str, Listed]]) -> None:
        """Raise Refusal that names the sources and files whose content has changed since the run began.

        found: by source the files of each side (training, held_out), as in data.json.
        """
        if self.data is None:
            return
        faults = []
        for name, sides in found.items():
            for side, files in sides.items():
                if changed := changes(self.data["files"].get(name, {}).get(side, []), files):
                    faults.append(f"{name} ({changed})" if side == "training" else f"{name}, held out ({changed})")
        if faults:
            raise self._refused("files of its sources hold something else now", faults)

    def check_fingerprints(self, now: Mapping[str, str]) -> None:
        """Raise Refusal for sources whose files are the same and whose rows are read, filtered or left out in another
        way."""
        if self.data is None:
            return
        before = self.data["fingerprints"]
        other = [name for name, fingerprint in now.items() if before.get(name) != fingerprint]
        if other:
            reason = (
                "their files are the same, and the treatment of their rows is not (an evaluation set, a function of"
            )
            raise self._refused(f"{reason} yours, another source that they are compared with, raw or prepared)", other)

    def _refused(self, reason: str, faults: Sequence[str]) -> Refusal:
        return Refusal(
            f"run {self.folder} goes on from {self._where}, and {reason}: {'; '.join(faults)}. Where it stands is "
            f"counted in rows of the files that it began with (sizes and hashes: {self.folder / NAME}). Put them back "
            f"as they were, or go on with these in a new run that starts from its weights "
            f"(init_from={self.folder.name}@{self.step} run=NAME)"
        )

    def own_tokenizer(self, named: Tokenizer | None, place: str) -> Tokenizer | None:
        """The run's own tokenizer; None where its folder has none and the config names none on this machine.

        named: the one that the config names now, at `place`; None for a recipe. Raises Refusal where one of the two
        is not the one that the run was begun with.
        """
        kept = self.folder / "tokenizer"
        own = load(str(kept)) if kept.is_dir() else None
        wanted = own.sha256 if self.tokenizer is None and own is not None else self.tokenizer
        if own is not None and wanted is not None and own.sha256 != wanted:
            raise self._other(str(kept), own, wanted, "put back what the run wrote there")
        if named is not None and wanted is not None and named.sha256 != wanted:
            raise self._other(place, named, wanted, "name the tokenizer that it began with, or choose another run=NAME")
        return own or named

    def check_trained(self, made: Tokenizer) -> Tokenizer:
        """A recipe's tokenizer, made again for a run that has lost its own. Raises Refusal for another."""
        if self.tokenizer is not None and made.sha256 != self.tokenizer:
            raise self._other("the recipe in data.tokenizer", made, self.tokenizer, "put its tokenizer/ folder back")
        return made

    def _other(self, place: str, found: Tokenizer, wanted: str, advice: str) -> Refusal:
        return Refusal(
            f"run {self.folder} goes on from {self._where} and was begun with the tokenizer of hash {wanted[:16]}, but "
            f"{place} has the hash {found.sha256[:16]}: the same ids would mean other words to its weights; {advice}"
        )


def named_tokenizer(wanted: str | TokenizerRecipe) -> Tokenizer | None:
    """The tokenizer that the config names, where it is on this machine; None for a recipe and a hub id."""
    if isinstance(wanted, str) and place_of(wanted).exists():
        return load(wanted)
    return None
