"""Prepared sources: items made once and kept in memory-mapped shards, read through a full permutation.

    outputs/<run>/prepared/<source>/{training,validation}/<part>.*     the items (`shards.py`)
                                                          meta.json    counts, and what they were made from; last

Item k of pass e is the permutation's k-th element under a key derived from the pass, so the state of a stream is
one number, and a resume costs the same anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import Item
from lifecycle.data.clean.held_out import share_read
from lifecycle.data.clean.source import Source
from lifecycle.data.read.begun import Listed, changes, in_order, listed
from lifecycle.data.read.formats import AUTO
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.permutation import permute
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.data.stream.shards import Shards
from lifecycle.data.views import Maker
from lifecycle.errors import UserError
from lifecycle.system.seeds import derive
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, load

VERSION = 2  # of the shards and their meta.json
SIDES = ("training", "validation")
IDS = ("uint16", "uint32")  # how they lie in shards
LOOKED_UP_AT_ONCE = 512  # elements of the permutation computed together


@dataclass(frozen=True)
class Prepared:
    """One source of a prepared run; files, held_files: what its two sides were made from, as data.json has it."""

    training: Shards
    validation: Shards
    counts: dict[str, int]
    files: Listed
    held_files: Listed

    def measured(self, spec: SourceSpec, tokens: int) -> list[Item]:
        """The held-out items that are measured, about `tokens` positions."""
        sizes = [(str(url), int(size)) for url, size, *_ in self.held_files]
        return self.validation.measured(tokens, share_read(sizes, spec, tokens))

    def documents(
        self, source: Source, *, streams: int, states: Mapping[int, dict[str, Any] | None], seed: int
    ) -> dict[int, PreparedDocuments]:
        """Training items of `source` for each stream in `states`, of `streams` in all, from its state on."""
        epochs, name = source.spec.max_epochs, source.name
        return {
            stream: PreparedDocuments(
                self.training, epochs, stream, streams, seed, state, name=name, counts=self.counts
            )
            for stream, state in states.items()
        }


class PreparedDocuments:
    """Training items that stream `stream` of `streams` reads: every S-th of the endless permuted sequence."""

    def __init__(
        self,
        shards: Shards,
        max_epochs: float | None,
        stream: int,
        streams: int,
        seed: int,
        state: dict[str, Any] | None,
        *,
        name: str = "",
        counts: dict[str, int] | None = None,
    ) -> None:
        self.name = name
        self.max_epochs = max_epochs
        self._shards, self._seed = shards, seed
        self._streams, self._counts = streams, counts or {}
        self._stream, self._next = stream, state["next"] if state else stream
        self._counted = stream == 0  # the counts are the source's, not a stream's: stream 0 reports them
        self._block: NDArray[np.int64] = np.zeros(0, np.int64)
        self._at = 0

    def next(self) -> Item:
        """The next item; raises `Exhausted` past `max_epochs`."""
        size = self._shards.documents
        if self.max_epochs is not None and self._next >= self.max_epochs * size:
            raise Exhausted(self.name)
        if self._at == len(self._block):
            self._block, self._at = self._look_up(), 0
        index = int(self._block[self._at])
        self._at += 1
        self._next += self._streams
        return self._shards.item(index)

    def _look_up(self) -> NDArray[np.int64]:
        """Document numbers of the next elements of this stream, within the pass that they begin in."""
        size = self._shards.documents
        epoch = self._next // size
        positions = np.arange(
            self._next, min((epoch + 1) * size, self._next + LOOKED_UP_AT_ONCE * self._streams), self._streams
        )
        return permute(positions - epoch * size, size, derive(self._seed, "permutation", self.name, epoch))

    def state(self) -> dict[str, Any]:
        """Plain state: the next element of the sequence."""
        return {"next": self._next}

    def totals(self) -> dict[str, Any]:
        """Passes given out (of which the source's are the mean of all streams), and what preparing has counted."""
        return {
            "epochs": (self._next - self._stream) / self._shards.documents,
            "counts": self._counts if self._counted else {},
        }


def open_shards(folder: Path, meta: Mapping[str, Any]) -> Shards:
    """One side of a prepared source. Raises UserError for a folder that `stage=prepare` did not write."""
    strange = [part for part in meta["parts"] if Path(part).name != part]
    if strange or meta["dtype"] not in IDS:
        raise UserError(
            f"{folder / 'meta.json'} names {', '.join(strange) or meta['dtype']}; shards are files of "
            f"{' or '.join(IDS)} beside it: run stage=prepare again, under another run=NAME"
        )
    view = meta.get("view", "text").partition(" ")[0]
    return Shards(folder, tuple(meta["parts"]), meta["dtype"], meta["documents"], meta["tokens"], view)


def read_metas(run: str) -> dict[str, dict[str, dict[str, Any]]]:
    """What the shards of run folder `run` were made from: by source and side the content of meta.json. Raises
    `UserError` where one is unfinished, or was written by an earlier version."""
    metas = {}
    for path in sorted(path for path in (prepared_folder(run) / "prepared").iterdir() if path.is_dir()):
        metas[path.name] = {side: _meta(path / side, run) for side in SIDES}
    return metas


def _meta(folder: Path, run: str) -> dict[str, Any]:
    path = folder / "meta.json"
    if not path.exists():
        raise UserError(f"{folder} is not a finished prepared source (no meta.json): run stage=prepare again")
    meta: dict[str, Any] = json.loads(path.read_text())
    if meta.get("version") != VERSION:
        raise UserError(
            f"data.prepared={run} was written by another version: {path} does not say by content what the shards "
            "were made from. Run stage=prepare again, under another run=NAME"
        )
    return meta


def prepared_tokenizer(run: str, wanted: str | TokenizerRecipe) -> Tokenizer:
    """The tokenizer that made the shards of run folder `run`; raises `UserError` where it prepared nothing, or where
    `wanted` lies on this machine, as a parent's does, and is another one."""
    made_by = load(str(prepared_folder(run) / "tokenizer"))
    here = isinstance(wanted, str) and Path(wanted).expanduser().exists()
    if here and load(str(wanted)).sha256 != made_by.sha256:
        raise UserError(
            f"data.prepared={run} holds the ids of another tokenizer than {wanted}, the one of this run: prepare the "
            "data again with it (stage=prepare init_from=PARENT, or data.tokenizer=FOLDER), under another run=NAME"
        )
    return made_by


def prepared_folder(run: str) -> Path:
    """The folder of a run that has prepared data, by its name or path. Raises `UserError` where it has none."""
    folder = Path(run).expanduser()
    if not folder.exists() and not folder.is_absolute():
        folder = Path("outputs") / run
    if not (folder / "prepared").is_dir():
        raise UserError(
            f"data.prepared={run}: {folder / 'prepared'} does not exist; make it with stage=prepare run={run}"
        )
    return folder


def open_prepared(
    run: str,
    metas: Mapping[str, Mapping[str, Any]],
    sources: Sequence[Source],
    held: Mapping[str, Source | None],
    *,
    make: Mapping[str, Maker],
    evaluation_known: bool,
    may_lack: Collection[str] = (),
) -> dict[str, Prepared]:
    """The prepared form of `sources` in run folder `run`, but for those of `may_lack` that it does not have; raises
    `UserError` naming what does not fit.

    metas: as `read_metas` gives them. held: held-out sources with files of their own, where these are here. make:
    what makes the items of each in this run, under the tokenizer in the folder. evaluation_known: whether the
    evaluation sets of this run were read.
    """
    sources = [s for s in sources if s.name in metas or s.name not in may_lack]
    faults = [f"{s.name}: not in {run} (it has {', '.join(metas)})" for s in sources if s.name not in metas]
    for source in sources:
        if source.name in metas:
            fault = _misfit(source, metas[source.name], held.get(source.name), make[source.name], evaluation_known)
            faults += [f"{source.name}: {fault}"] if fault else []
    if faults:
        raise UserError(
            f"data.prepared={run} does not fit data.sources: {'; '.join(faults)}. Run stage=prepare again, "
            "with this run's init_from if it has one: its evaluation sets are inherited"
        )
    out = {}
    for source in sources:
        folder, meta = prepared_folder(run) / "prepared" / source.name, metas[source.name]
        training, validation = (open_shards(folder / side, meta[side]) for side in SIDES)
        files, held_files = (meta[side]["files"] for side in SIDES)
        out[source.name] = Prepared(training, validation, meta["training"]["counts"], files, held_files)
        if not training.documents:
            raise UserError(f"data.sources.{source.name} has no training document in prepared run {run}")
    return out


def with_formats(specs: Mapping[str, SourceSpec], metas: Mapping[str, Any]) -> dict[str, SourceSpec]:
    """The sources, those whose format is to be recognised as it was when their shards were made: rows need not be
    here."""
    forms = {name: meta["training"].get("form", {"format": "text"}) for name, meta in metas.items()}
    return {
        name: replace(spec, **forms[name]) if spec.format == AUTO and name in forms else spec
        for name, spec in specs.items()
    }


def other_view(made: Mapping[str, Any], key: str) -> str | None:
    """Why shards that were `made` for a view cannot be read as the items of another one, whose `Maker.key` this is."""
    known = str(made.get("view", "text"))
    if known == key:
        return None
    view, reads = (one.partition(" ")[0] for one in (known, key))
    if view == reads:
        return f"its shards were made for stage.view={view} with another chat template than this run's"
    return f"its shards were made for stage.view={view}, and this run reads {reads}"


def _misfit(
    source: Source, meta: Mapping[str, Any], held: Source | None, make: Maker, evaluation_known: bool
) -> str | None:
    """Why the shards of `meta` are not those of `source`; files are compared where they are here."""
    made, apart = meta["training"], meta["validation"]
    if {made["tokenizer"], apart["tokenizer"]} != {make.tokenizer.sha256}:
        return "its shards hold the ids of another tokenizer than the one in the folder (preparing was cut short)"
    if (fault := other_view(made, make.key)) is not None:
        return fault
    evaluation = source.evaluation.key if source.evaluation else None
    if source.shards is None:  # a level of a source, known as a whole
        return None if made["fingerprint"] == source.fingerprint else "its files or their treatment changed"
    if made["treatment"] != source.treatment:
        return "the treatment of its rows (format, fields, filters, validation, max_rows) changed"
    if evaluation_known and made["evaluation"] != evaluation:
        return "the evaluation sets in data.decontaminate changed"
    if source.files and (changed := changes(made["files"], listed(in_order(source.files, made["files"])))):
        return f"its files hold something else ({changed})"
    if isinstance(source.spec.validation, str):
        if held is not None:
            changed = changes(apart["files"], listed(in_order(held.files, apart["files"])))
            return f"its held-out files hold something else ({changed})" if changed else None
        if apart["named"] != source.spec.validation:
            return f"its held-out rows were {apart['named'] or 'not prepared'}, not {source.spec.validation}"
    return None
