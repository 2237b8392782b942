"""The data of a run before it is cut into steps: its sources under one tokenizer, raw or prepared, whole or dealt out
by levels, and their shares of the tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from lifecycle.batch import Item
from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.contamination import Index, evaluation_index
from lifecycle.data.clean.held_out import held_out_items
from lifecycle.data.clean.source import Source
from lifecycle.data.config import DataConfig
from lifecycle.data.conversation.template_check import open_template
from lifecycle.data.curriculum.levels import Level, deal, described, numbered_sources, under_curriculum
from lifecycle.data.curriculum.scores import DocumentLoss
from lifecycle.data.making import Maker
from lifecycle.data.mixture.plan import BatchPlan, Mix, Phase, largest, mixture, replayed
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.begun import Begun, Listed, listed, named_tokenizer
from lifecycle.data.read.files.listing import place
from lifecycle.data.read.formats import views
from lifecycle.data.stream.dealer import Dealer
from lifecycle.data.stream.documents import RawDocuments, place_in
from lifecycle.data.stream.epoch_length import count_positions
from lifecycle.data.stream.open_sources import check_views, held_out_source, is_here, open_sources, sample_texts
from lifecycle.data.stream.packing import Packing, Piece
from lifecycle.data.stream.pieces import Documents, Pieces, State
from lifecycle.data.stream.prepared import (
    Prepared,
    PreparedDocuments,
    open_prepared,
    prepared_tokenizer,
    read_metas,
    with_formats,
)
from lifecycle.data.validation import collect, pack
from lifecycle.errors import UserError
from lifecycle.system.cache import made_cache_folder
from lifecycle.tokenizer.tokenizer import Tokenizer, TokenizerRecipe, from_recipe, load

LISTED = 100  # files of a source in run.json, read or passed over


class Corpus:
    """Opens what the streams, the validation and the jobs read. Raises `UserError` for sources that are missing, cannot
    give the view, or disagree with a prepared run.

    sources: those that are read, levels in the place of what they were dealt from; whole: those of the config; levels:
    by the name of what was dealt. mix, weights: of the sources; whole_mix: of the whole ones.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        view: str,
        seed: int,
        processes: int,
        folder: Path | None,
        replay_share: float | None = None,
        parent_loss: DocumentLoss | None = None,
        begun: Begun | None = None,
    ) -> None:
        self.config, self.seed, self.cache, self._processes = config, seed, made_cache_folder(), processes
        self.packing = Packing(view=view, long_examples=config.long_examples)
        metas = read_metas(config.prepared) if config.prepared else {}
        specs = with_formats(config.sources, metas)
        self.whole_mix = mixture({name: spec.weight for name, spec in specs.items()}, replay_share)
        self.epoch_source = config.epoch_source or largest(self.whole_mix)
        if self.epoch_source not in specs:
            raise UserError(f"data.epoch_source is '{self.epoch_source}'; the sources are {', '.join(specs)}")
        evaluation = self._evaluation(metas)
        self.whole = open_sources(
            specs,
            root=config.root,
            bad_rows=config.bad_rows,
            cache=self.cache,
            quarantine=folder / "quarantine" if folder else None,
            processes=processes,
            evaluation=evaluation,
            begun=begun,
            shards={name: meta["training"]["fingerprint"] for name, meta in metas.items()},
            view=view,
        )
        self._held = {
            s.name: held_out_source(s, root=config.root, cache=self.cache, begun=begun, view=view) for s in self.whole
        }
        check_views(self.whole, view, {s.name: views(s.spec) for s in self.whole})
        self.tokenizer, self.template = open_template(
            config.chat_template, self._open_tokenizer(begun), view=view, begun=begun is not None
        )
        self.make = Maker(view=view, tokenizer=self.tokenizer, template=self.template)
        self.levels = self._levels(parent_loss)
        self.sources, self.whole = numbered_sources(self.levels, self.whole)
        self.mix = self._mix_of_levels() if self.levels else self.whole_mix
        self.weights = self.mix.mean()
        self.prepared = self._prepared(metas, evaluation)
        if begun is not None:
            begun.check_files({name: sides for name, sides in self.contents()["files"].items() if "held_out" in sides})
            begun.check_fingerprints(self.contents()["fingerprints"])
        if evaluation and folder and len(self.prepared) < len(self.sources):  # prepared rows were looked at before
            contamination_report.begin(folder, evaluation)

    def _evaluation(self, metas: Mapping[str, Any]) -> Index | None:
        """What no document may hold; None also where all rows are in shards, which were looked at when they were made,
        and the sets are not here."""
        chosen, root = self.config.decontaminate, self.config.root
        if chosen is None:
            return None
        in_shards = self.config.sources.keys() <= metas.keys()
        if in_shards and not all(is_here(one.spec(), root) for one in chosen.sets.values()):
            return None
        return evaluation_index(chosen, root=root, cache=self.cache)

    def _levels(self, parent_loss: DocumentLoss | None) -> dict[str, list[Level]]:
        curriculum = self.config.curriculum
        if curriculum is None:
            return {}
        chosen = under_curriculum(curriculum, self.config.sources, self.whole_mix.replay)
        dealt = [source for source in self.whole if source.name in chosen]
        return {s.name: deal(s, curriculum, self.tokenizer, self.cache, parent_loss) for s in dealt}

    def _mix_of_levels(self) -> Mix:
        """They stand in the mixture for what they were dealt from."""
        weights = {s.name: Weight.of(s.spec.weight, s.name) for s in self.sources}
        return replace(self.whole_mix, weights=weights, replay=replayed(weights))

    def _prepared(self, metas: Mapping[str, Any], evaluation: Index | None) -> dict[str, Prepared]:
        """The shards that are read. What is replayed was in another mixture when this one was prepared: it is read from
        its files."""
        if not self.config.prepared:
            return {}
        return open_prepared(
            self.config.prepared,
            metas,
            self.sources,
            {name: self.held_apart(name) for name in self.config.sources},
            make=self.make,
            evaluation_known=evaluation is not None or self.config.decontaminate is None,
            may_lack=self.whole_mix.replay,
        )

    @property
    def max_epochs(self) -> dict[str, float | None]:
        """How often each source may be read."""
        return {source.name: source.spec.max_epochs for source in self.sources}

    def epoch_positions(self, row_length: int) -> int:
        """Positions of one pass over `epoch_source` in rows of this length (in the view `prompt` its prompts), which
        turn passes into steps; counted once, cached."""
        name = self.epoch_source
        names = [level.source.name for level in self.levels.get(name, [])] or [name]
        if names[0] in self.prepared:
            return sum(self.prepared[one].training.positions(self.packing, row_length) for one in names)
        source = next(s for s in self.whole if s.name == name)
        return count_positions(
            source, self.make, packing=self.packing, row_length=row_length, cache=self.cache, seed=self.seed
        )

    def epoch_tokens(self, steps: int, phases: Sequence[Phase]) -> float:
        """Positions (or prompts) that a run of `steps` steps, made of `phases`, gives to `epoch_source`."""
        return BatchPlan.of(self.whole_mix, self.counted(phases), steps).planned(steps)[self.epoch_source]

    def counted(self, phases: Sequence[Phase]) -> Sequence[Phase]:
        """The phases as the view fills them: by positions, or by prompts."""
        return [replace(phase, is_counted=self.packing.counts) for phase in phases]

    def ends_with(self, passes: float | None) -> bool:
        """Whether a run of so many passes over `epoch_source` is to end with its last row: it may be read so often, and
        no more often. Rows are padded, so that no number of steps says exactly when that is."""
        if self.epoch_source in self.levels:  # their weights move with progress, and each has an end of its own
            return False
        return passes is not None and self.config.sources[self.epoch_source].max_epochs == passes

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
                pieces[stream][source.name] = Pieces(
                    documents[stream], source.index, known[stream], packing=self.packing
                )
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
            epochs, seed = source.spec.max_epochs, self.seed
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
            seed=self.seed,
            buffer=self.config.shuffle_buffer,
            reading=reading,
        )
        return {stream: RawDocuments(dealer, self.make, stream=stream, state=state) for stream, state in states.items()}

    def documents(self, name: str) -> Documents:
        """All training documents of one source, as a single stream reads them."""
        return self.open_documents(name, 1, {0: None})[0]

    def held_out(self, source: Source, tokens: int) -> list[Item]:
        """The items of one of the whole sources that are measured, about `tokens` positions; none of one without.

        The same from shards as from rows.
        """
        if source.spec.validation is None:
            return []
        if (made := self.prepared.get(source.name)) is not None:
            return made.measured(source.spec, tokens)
        if (held := self._held[source.name]) is None:
            return []
        return held_out_items(held, self.make, tokens=tokens, cache=self.cache, processes=self._processes)

    def held_apart(self, name: str) -> Source | None:
        """Of a source: the one that its held-out rows have files of their own in."""
        source = next((s for s in self.whole if s.name == name), None)
        return self._held[name] if source is not None and source.held_out is None else None

    def rows(self, shares: Mapping[str, float], count: int, row_length: int) -> list[Any]:
        """`count` rows (fewer if there is less) of the training data of the sources in `shares`, one a batch, the same
        on every rank and whatever was read before."""
        pieces: list[Piece] = []
        for name, share in shares.items():
            wanted = math.ceil(count * row_length * share / sum(shares.values()))
            index = next(s.index for s in self.sources if s.name == name)
            pieces += collect(self.documents(name), tokens=wanted, source=index)
        packed = pack(",".join(shares), pieces, row_length, self.packing, self.tokenizer.bytes_of)
        return packed.batches(1, 0, 1)[:count]

    def lineage(self) -> dict[str, Any]:
        """For run.json: where every source's rows come from, and one hash over all of them and their treatment."""
        whole = xxhash.xxh3_128_hexdigest("|".join(s.fingerprint for s in self.sources).encode())
        paths = {s.name: [url for url, *_ in self._files(s)[:LISTED]] for s in self.whole}
        levels = {"levels": described(self.levels)} if self.levels else {}
        return {
            "fingerprint": whole,
            "root": place("", self.config.root),
            "paths": paths,
            **self.files_read(),
            **levels,
        }

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

    def _open_tokenizer(self, begun: Begun | None) -> Tokenizer:
        """The one that the config names, but a run that goes on keeps its own."""
        prepared, tokenizer = self.config.prepared, self.config.tokenizer
        if begun is not None:
            named = prepared_tokenizer(prepared, tokenizer) if prepared else named_tokenizer(tokenizer)
            place = f"data.prepared={prepared}" if prepared else f"data.tokenizer={tokenizer}"
            if (own := begun.own_tokenizer(named, place)) is not None:
                return own
            return begun.check_trained(self._named_or_trained(tokenizer))
        return prepared_tokenizer(prepared, tokenizer) if prepared else self._named_or_trained(tokenizer)

    def _named_or_trained(self, tokenizer: str | TokenizerRecipe) -> Tokenizer:
        if isinstance(tokenizer, str):
            return load(tokenizer)
        weights = self.whole_mix.mean()
        key = "|".join(f"{s.name}:{s.fingerprint}:{weights[s.name]!r}" for s in self.whole)
        texts = sample_texts(self.whole, weights, tokenizer.max_bytes, self.seed)
        return from_recipe(tokenizer, texts, self.cache / "tokenizers", f"{key}|{self.seed}")
