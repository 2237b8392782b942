"""The data of a run before it is cut into steps: its sources under one tokenizer, raw or prepared, whole or split into
levels of a curriculum, and their shares of the tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import xxhash

from lifecycle.batch import Item
from lifecycle.bounds import Count
from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.contamination import Decontaminate, Index
from lifecycle.data.clean.held_out import held_out_items
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.conversation.template_check import open_template
from lifecycle.data.curriculum.buckets import Bucket, described, mix_of_buckets, numbered_sources, split_sources
from lifecycle.data.curriculum.curriculum import Curriculum
from lifecycle.data.curriculum.scores import DocumentLoss
from lifecycle.data.mixture.batch_plan import BatchPlan, Phase, largest, mixture
from lifecycle.data.read.begun import Begun, Listed, listed
from lifecycle.data.read.files.listing import place
from lifecycle.data.read.in_words import ASKED, PLAIN
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.documents import raw_documents
from lifecycle.data.stream.epoch_length import count_positions
from lifecycle.data.stream.open_sources import (
    LISTED,
    check_views,
    evaluation_of,
    files_read,
    held_out_source,
    open_sources,
)
from lifecycle.data.stream.packing import LongExamples, Packing, TrainOn
from lifecycle.data.stream.pieces import Documents, Pieces, State
from lifecycle.data.stream.prepared import Prepared, open_prepared, read_metas, with_formats
from lifecycle.data.stream.run_tokenizer import run_tokenizer
from lifecycle.data.views import Maker
from lifecycle.errors import UserError
from lifecycle.system.cache import made_cache_folder
from lifecycle.tokenizer.tokenizer import TokenizerRecipe


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The keys of conf/data, whose meaning stands there: values alone, of which `Corpus` opens what they name."""

    sources: dict[str, SourceSpec]
    tokenizer: str | TokenizerRecipe
    root: str | None
    chat_template: str
    plain_prompt: str = PLAIN
    prepared: str | None
    streams: Count | None
    shuffle_buffer: Count
    exhausted: Literal["error", "drop"]
    long_examples: LongExamples
    epoch_source: str | None
    bad_rows: BadRows
    decontaminate: Decontaminate | None
    curriculum: Curriculum | None = None

    def __post_init__(self) -> None:
        if self.plain_prompt.count(ASKED) != 1:
            raise UserError(f"data.plain_prompt is {self.plain_prompt!r}; wanted {ASKED} in it, once: the question")
        again = [name for name, source in self.sources.items() if source.shuffle_options]
        if self.prepared and again:
            raise UserError(
                f"data.sources.{again[0]}.shuffle_options is true, and shards hold each prompt in one order: leave out "
                "data.prepared, or type shuffle_options=false"
            )


class Corpus:
    """Opens what the streams, the validation and the jobs read. Raises `UserError` for sources that are missing, cannot
    give the view, or disagree with a prepared run.

    passes: over `epoch_source`, that the run is to end with; where items are not cut it is read no further.
    sources: those that are read, with levels in place of the source that was split into them; whole: those of the
    config; levels: by the name of the source that was split. mix, weights: of `sources`; whole_mix: of `whole`.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        view: str,
        seed: int,
        processes: int,
        folder: Path | None,
        train_on: TrainOn = "assistant",
        passes: float | None = None,
        replay_share: float | None = None,
        parent_loss: DocumentLoss | None = None,
        begun: Begun | None = None,
    ) -> None:
        self.config, self.seed, self.cache, self._processes = config, seed, made_cache_folder(), processes
        self.packing = Packing(view=view, long_examples=config.long_examples, train_on=train_on)
        metas = read_metas(config.prepared) if config.prepared else {}
        specs = with_formats(config.sources, metas)
        self.whole_mix = mixture({name: spec.weight for name, spec in specs.items()}, replay_share)
        self.epoch_source = self._epoch_source(specs)
        if passes and self.packing.pads and config.curriculum is None and specs[self.epoch_source].max_epochs is None:
            specs[self.epoch_source] = replace(specs[self.epoch_source], max_epochs=passes)
        evaluation = evaluation_of(
            config.decontaminate, root=config.root, cache=self.cache, in_shards=config.sources.keys() <= metas.keys()
        )
        self.whole, self._held = self._open(specs, folder, evaluation, begun, metas)
        self.make = self._maker(begun)
        self.tokenizer, self.template = self.make.tokenizer, self.make.template
        self.levels = self._levels(parent_loss)
        self.sources, self.whole = numbered_sources(self.levels, self.whole)
        self.mix = mix_of_buckets(self.whole_mix, self.sources) if self.levels else self.whole_mix
        self.weights = self.mix.mean()
        self.prepared = self._prepared(metas, evaluation)
        if begun is not None:
            begun.check(self.contents())
        if evaluation and folder and len(self.prepared) < len(self.sources):  # prepared rows were looked at before
            contamination_report.begin(folder, evaluation)

    def _epoch_source(self, specs: Mapping[str, SourceSpec]) -> str:
        """The source that passes are counted by: `data.epoch_source`, else the one with the largest share."""
        name = self.config.epoch_source or largest(self.whole_mix)
        if name not in specs:
            raise UserError(f"data.epoch_source is '{name}'; the sources are {', '.join(specs)}")
        return name

    def _open(
        self,
        specs: Mapping[str, SourceSpec],
        folder: Path | None,
        evaluation: Index | None,
        begun: Begun | None,
        metas: Mapping[str, Any],
    ) -> tuple[list[Source], dict[str, Source | None]]:
        """The training side of every source, and by name its validation side; each can give the view."""
        view, root = self.packing.view, self.config.root
        whole = open_sources(
            specs,
            root=root,
            bad_rows=self.config.bad_rows,
            cache=self.cache,
            quarantine=folder / "quarantine" if folder else None,
            processes=self._processes,
            evaluation=evaluation,
            begun=begun,
            shards={name: meta["training"]["fingerprint"] for name, meta in metas.items()},
            view=view,
        )
        held = {s.name: held_out_source(s, root=root, cache=self.cache, begun=begun, view=view) for s in whole}
        check_views({source.name: source.spec for source in whole}, view)
        return whole, held

    def _maker(self, begun: Begun | None) -> Maker:
        config, weights = self.config, self.whole_mix.mean()
        tokenizer = run_tokenizer(
            config.tokenizer,
            config.prepared,
            begun,
            sources=self.whole,
            weights=weights,
            seed=self.seed,
            cache=self.cache,
        )
        view = self.packing.view
        tokenizer, template = open_template(config.chat_template, tokenizer, view=view, begun=begun is not None)
        return Maker(view=view, tokenizer=tokenizer, template=template, plain=config.plain_prompt)

    def _levels(self, parent_loss: DocumentLoss | None) -> dict[str, list[Bucket]]:
        config, never, tokenizer = self.config, self.whole_mix.replay, self.make.tokenizer
        return split_sources(self.whole, config.sources, config.curriculum, never, tokenizer, self.cache, parent_loss)

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
            make={source.name: self.maker(source) for source in self.sources},
            evaluation_known=evaluation is not None or self.config.decontaminate is None,
            may_lack=self.whole_mix.replay,
        )

    def maker(self, source: Source) -> Maker:
        """What makes the items of a source."""
        return self.make.in_view(source.spec.view_in(self.packing.view))

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
            source, self.maker(source), packing=self.packing, row_length=row_length, cache=self.cache, seed=self.seed
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
        return passes is not None and self.max_epochs[self.epoch_source] == passes

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
    ) -> Mapping[int, Documents]:
        """The training documents of one source that each of some streams reads, from its state on."""
        source = next(s for s in self.sources if s.name == name)
        if (made := self.prepared.get(name)) is not None:
            return made.documents(source, streams=streams, states=states, seed=self.seed)
        buffer = self.config.shuffle_buffer
        return raw_documents(
            source, self.maker(source), streams=streams, states=states, seed=self.seed, buffer=buffer, reading=reading
        )

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
        return held_out_items(held, self.maker(source), tokens=tokens, cache=self.cache, processes=self._processes)

    def held_apart(self, name: str) -> Source | None:
        """Of a source: the one that its held-out rows have files of their own in."""
        source = next((s for s in self.whole if s.name == name), None)
        return self._held[name] if source is not None and source.held_out is None else None

    def lineage(self) -> dict[str, Any]:
        """For run.json: where every source's rows come from, and one hash over all of them and their treatment."""
        whole = xxhash.xxh3_128_hexdigest("|".join(s.fingerprint for s in self.sources).encode())
        paths = {s.name: [url for url, *_ in self._files(s)[:LISTED]] for s in self.whole}
        levels = {"levels": described(self.levels)} if self.levels else {}
        root = place("", self.config.root)
        return {"fingerprint": whole, "root": root, "paths": paths, **files_read(self.whole), **levels}

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
