"""The documents of a run: its sources under one tokenizer, raw or prepared, whole or dealt out by levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from lifecycle.batch import TokenBatch
from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.contamination import Decontaminate, evaluation_index
from lifecycle.data.clean.held_out import held_out_documents
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.curriculum.levels import Level, deal, described, in_order, under_curriculum
from lifecycle.data.curriculum.schedule import Curriculum
from lifecycle.data.curriculum.scores import ParentLoss
from lifecycle.data.mixture.plan import Mix
from lifecycle.data.read.begun import Begun, Listed, listed, named_tokenizer
from lifecycle.data.read.files.listing import place
from lifecycle.data.read.formats import views
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.dealer import Dealer
from lifecycle.data.stream.documents import RawDocuments, place_in
from lifecycle.data.stream.epoch_length import count_positions
from lifecycle.data.stream.open_sources import check_views, held_out_source, is_here, open_sources, sample_texts
from lifecycle.data.stream.packing import Piece
from lifecycle.data.stream.pieces import Documents, Pieces, State
from lifecycle.data.stream.prepared import Prepared, PreparedDocuments, open_prepared, prepared_tokenizer, read_metas
from lifecycle.data.validation import collect, pack
from lifecycle.tokenizer.tokenizer import Ids, Tokenizer, TokenizerRecipe, from_recipe, load

LISTED = 100  # files of a source in run.json, read or passed over


class Corpus:
    """Opens what the streams and the validation read.

    sources: those that are read, levels in the place of what they were dealt from; whole: those of the config; levels:
    by the name of what was dealt. mix: the mixture of the whole ones.
    """

    def __init__(
        self,
        specs: Mapping[str, SourceSpec],
        mix: Mix,
        *,
        tokenizer: str | TokenizerRecipe,
        root: str | None,
        prepared: str | None,
        shuffle_buffer: int,
        bad_rows: BadRows,
        decontaminate: Decontaminate | None,
        view: str,
        seed: int,
        processes: int,
        folder: Path | None,
        cache: Path,
        curriculum: Curriculum | None,
        parent_loss: ParentLoss | None,
        begun: Begun | None = None,
    ) -> None:
        self._root, self._buffer, self._seed, self._cache = root, shuffle_buffer, seed, cache
        self._processes = processes
        metas = read_metas(prepared) if prepared else {}
        # shards alone need no evaluation sets: their rows were looked at when they were made
        known = not (decontaminate and specs.keys() <= metas.keys()) or all(
            is_here(one.spec(), root) for one in decontaminate.sets.values()
        )
        evaluation = evaluation_index(decontaminate, root=root, cache=cache) if decontaminate and known else None
        self.whole = open_sources(
            specs,
            root=root,
            bad_rows=bad_rows,
            cache=cache,
            quarantine=folder / "quarantine" if folder else None,
            processes=processes,
            evaluation=evaluation,
            begun=begun,
            shards={name: meta["training"]["fingerprint"] for name, meta in metas.items()},
        )
        self._held = {s.name: held_out_source(s, root=root, cache=cache) for s in self.whole}
        check_views(self.whole, view, {s.name: views(s.spec) for s in self.whole})
        self.tokenizer = self._open_tokenizer(tokenizer, prepared, mix.mean(), begun)
        self.levels: dict[str, list[Level]] = {}
        if curriculum is not None:
            chosen = under_curriculum(curriculum, specs, mix.replay)
            dealt = [source for source in self.whole if source.name in chosen]
            self.levels = {s.name: deal(s, curriculum, self.tokenizer, cache, parent_loss) for s in dealt}
        self.sources, self.whole = in_order(self.levels, self.whole)
        # what is replayed was in another mixture when this one was prepared: it is read from its files
        self.prepared: dict[str, Prepared] = {}
        if prepared:
            self.prepared = open_prepared(
                prepared,
                metas,
                self.sources,
                {name: self.held_apart(name) for name in specs},
                tokenizer=self.tokenizer.sha256,
                evaluation_known=known,
                may_lack=mix.replay,
            )
        if begun is not None:
            begun.check_files({name: sides for name, sides in self.contents()["files"].items() if "held_out" in sides})
            begun.check_fingerprints(self.contents()["fingerprints"])
        if evaluation and folder and len(self.prepared) < len(self.sources):  # prepared rows were looked at before
            contamination_report.begin(folder, evaluation)

    @property
    def max_epochs(self) -> dict[str, float | None]:
        """How often each source may be read."""
        return {source.name: source.spec.max_epochs for source in self.sources}

    def open_streams(
        self,
        owned: Sequence[int],
        streams: int,
        states: Mapping[int, State],
        reading: Callable[[int, int, int], None],
    ) -> dict[int, dict[str, Pieces]]:
        """What each of the streams `owned`, of `streams`, reads of every source, from the anchors of their `states` on.

        One reader a source serves all of them.
        """
        at = {s: state["anchor"]["sources"] for s, state in states.items()}
        pieces: dict[int, dict[str, Pieces]] = {stream: {} for stream in owned}
        for source in self.sources:
            known = {stream: at[stream][source.name] if stream in at else None for stream in owned}
            documents = self.open_documents(
                source.name,
                streams,
                {stream: one and one["documents"] for stream, one in known.items()},
                partial(reading, source.index),
            )
            for stream in owned:
                pieces[stream][source.name] = Pieces(documents[stream], source.index, known[stream])
        return pieces

    def open_documents(
        self,
        name: str,
        streams: int,
        states: Mapping[int, State | None],
        reading: Callable[[int, int], None] | None = None,
    ) -> dict[int, Documents]:
        """The training documents of one source that each of some streams reads, from its state on."""
        source = next(s for s in self.sources if s.name == name)
        if (made := self.prepared.get(name)) is not None:
            epochs, seed = source.spec.max_epochs, self._seed
            return {
                stream: PreparedDocuments(
                    made.training, epochs, stream, streams, seed, state, name=name, counts=made.counts
                )
                for stream, state in states.items()
            }
        dealer = Dealer(
            source,
            at={stream: place_in(state) for stream, state in states.items()},
            streams=streams,
            seed=self._seed,
            buffer=self._buffer,
            reading=reading,
        )
        encode = self.tokenizer.documents
        return {stream: RawDocuments(dealer, encode, stream=stream, state=state) for stream, state in states.items()}

    def documents(self, name: str) -> Documents:
        """All training documents of one source, as a single stream reads them."""
        return self.open_documents(name, 1, {0: None})[0]

    def held_out(self, source: Source, tokens: int) -> list[Ids]:
        """The documents of one of the whole sources that are measured, about `tokens` positions; none of one without.

        The same from shards as from rows.
        """
        if source.spec.validation is None:
            return []
        if (made := self.prepared.get(source.name)) is not None:
            return made.measured(source.spec, tokens)
        if (held := self._held[source.name]) is None:
            return []
        return held_out_documents(held, self.tokenizer, tokens=tokens, cache=self._cache, processes=self._processes)

    def held_apart(self, name: str) -> Source | None:
        """Of a source: the one that its held-out rows have files of their own in."""
        source = next((s for s in self.whole if s.name == name), None)
        return self._held[name] if source is not None and source.held_out is None else None

    def rows(self, shares: Mapping[str, float], count: int, row_length: int) -> list[TokenBatch]:
        """`count` rows (fewer if there is less) of the training text of the sources in `shares`, one a batch, the same
        on every rank and whatever was read before."""
        pieces: list[Piece] = []
        for name, share in shares.items():
            wanted = math.ceil(count * row_length * share / sum(shares.values()))
            index = next(s.index for s in self.sources if s.name == name)
            pieces += collect(self.documents(name), tokens=wanted, source=index)
        return pack(",".join(shares), pieces, row_length, 0).batches(1, 0, 1)[:count]

    def positions(self, name: str) -> int:
        """Trained positions of one pass over one of the whole sources; counted once, cached."""
        source = next(s for s in self.whole if s.name == name)
        names = [level.source.name for level in self.levels.get(name, [])] or [name]
        if names[0] in self.prepared:
            sides = [self.prepared[name].training for name in names]
            return sum(training.tokens - training.documents for training in sides)
        return count_positions(source, self.tokenizer, cache=self._cache, seed=self._seed)

    def lineage(self) -> dict[str, Any]:
        """For run.json: where every source's rows come from, and one hash over all of them and their treatment."""
        whole = xxhash.xxh3_128_hexdigest("|".join(s.fingerprint for s in self.sources).encode())
        paths = {s.name: [url for url, *_ in self._files(s)[:LISTED]] for s in self.whole}
        levels = {"levels": described(self.levels)} if self.levels else {}
        return {"fingerprint": whole, "root": place("", self._root), "paths": paths, **self.files_read(), **levels}

    def files_read(self) -> dict[str, Any]:
        """By source: one line of what is read, and why files that were met beside it are not."""
        passed = {s.name: dict(list(s.passed.items())[:LISTED]) for s in self.whole if s.passed}
        return {"files": {s.name: str(s.listing) for s in self.whole if s.files}, "passed_over": passed}

    def contents(self) -> dict[str, Any]:
        """For data.json: what the run reads, by content; held-out rows with files of their own are a side apart."""
        files = {}
        for source in self.whole:
            files[source.name] = {"training": self._files(source)}
            made = self.prepared.get(source.name)
            if (held := self.held_apart(source.name)) is not None:
                files[source.name]["held_out"] = listed(held.files)
            elif made and isinstance(source.spec.validation, str):
                files[source.name]["held_out"] = made.held_files
        forms = {s.name: "shards" if s.name in self.prepared else "rows" for s in self.sources}
        return {"files": files, "fingerprints": {s.name: f"{forms[s.name]} {s.fingerprint}" for s in self.sources}}

    def _files(self, source: Source) -> Listed:
        made = self.prepared.get(source.name)
        return made.files if made else listed(source.files)

    def _open_tokenizer(
        self,
        tokenizer: str | TokenizerRecipe,
        prepared: str | None,
        weights: Mapping[str, float],
        begun: Begun | None,
    ) -> Tokenizer:
        """The one that the config names, but a run that goes on keeps its own."""
        if begun is not None:
            named = prepared_tokenizer(prepared, tokenizer) if prepared else named_tokenizer(tokenizer)
            place = f"data.prepared={prepared}" if prepared else f"data.tokenizer={tokenizer}"
            if (own := begun.own_tokenizer(named, place)) is not None:
                return own
            return begun.check_trained(self._named_or_trained(tokenizer, weights))
        return prepared_tokenizer(prepared, tokenizer) if prepared else self._named_or_trained(tokenizer, weights)

    def _named_or_trained(self, tokenizer: str | TokenizerRecipe, weights: Mapping[str, float]) -> Tokenizer:
        if isinstance(tokenizer, str):
            return load(tokenizer)
        key = "|".join(f"{s.name}:{s.fingerprint}:{weights[s.name]!r}" for s in self.whole)
        texts = sample_texts(self.whole, weights, tokenizer.max_bytes, self._seed)
        return from_recipe(tokenizer, texts, self._cache / "tokenizers", f"{key}|{self._seed}")
