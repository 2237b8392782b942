"""THE LightningDataModule: sources -> view -> mixture -> packed rows -> the batches of this rank, and their cursor.

    python -m lifecycle data=files 'data.sources.mine.path=texts/*.jsonl.gz'

Its state is what was *consumed*: a stage hands back the cursor of every step it has finished, and a checkpoint holds
the cursors of all logical streams, so a run resumes at the same token on any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch import Tensor

from lifecycle.batch import Cursor, StepBatch, TokenBatch
from lifecycle.bounds import Count
from lifecycle.cachefolder import made_cache_folder
from lifecycle.data.begun import Begun
from lifecycle.data.contamination import Decontaminate
from lifecycle.data.corpus import Corpus
from lifecycle.data.curriculum import Curriculum
from lifecycle.data.ledger import Ledger, gather, merge, usage, with_tensors
from lifecycle.data.loader import StepLoader, micro_batch_rows
from lifecycle.data.plan import BatchPlan, Phase, largest, mixture, parts, replayed
from lifecycle.data.scores import ParentLoss
from lifecycle.data.source import BadRows
from lifecycle.data.specs import SourceSpec
from lifecycle.data.stream import State, Stream
from lifecycle.data.tokenizer import TokenizerRecipe
from lifecycle.data.validation import held_out_sets
from lifecycle.data.weights import Weight
from lifecycle.errors import UserError

WINDOW_ROWS = 512  # rows that all streams together pack at once: padding falls and a resume reads more as it grows


class DataModule(pl.LightningDataModule):
    """The data of one run. The first block of arguments is conf/data; the second is supplied by the run.

    Raises `UserError` for sources that are missing, cannot give the view, or disagree with a prepared run.
    """

    def __init__(
        self,
        *,
        sources: dict[str, SourceSpec],
        tokenizer: str | TokenizerRecipe,
        root: str | None,
        prepared: str | None,
        streams: Count | None,
        shuffle_buffer: Count,
        exhausted: Literal["error", "drop"],
        epoch_source: str | None,
        bad_rows: BadRows,
        decontaminate: Decontaminate | None,
        view: str,
        seed: int,
        sequence_length: int,
        global_batch_tokens: int,
        micro_batch_tokens: int,
        validation_tokens: int,
        workers: int,
        folder: Path | None,
        replay_share: float | None = None,
        curriculum: Curriculum | None = None,
        parent_loss: ParentLoss | None = None,
        begun: Begun | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.workers, self.cache = seed, workers, made_cache_folder()
        self._dropping, self._wanted_streams, self._stop = exhausted == "drop", streams, 0
        self._micro_rows = micro_batch_rows(micro_batch_tokens)
        self.mix = self._whole_mix = mixture({name: spec.weight for name, spec in sources.items()}, replay_share)
        self.epoch_source = epoch_source or largest(self.mix)
        if self.epoch_source not in sources:
            raise UserError(f"data.epoch_source is '{self.epoch_source}'; the sources are {', '.join(sources)}")
        self.row_length = sequence_length
        rows = global_batch_tokens // sequence_length
        self.phases: Sequence[Phase] = (Phase(step=0, row_length=sequence_length, rows=rows),)
        self.corpus = Corpus(
            sources,
            self.mix,
            tokenizer=tokenizer,
            root=root,
            prepared=prepared,
            shuffle_buffer=shuffle_buffer,
            bad_rows=bad_rows,
            decontaminate=decontaminate,
            view=view,
            seed=seed,
            processes=workers,
            folder=folder,
            cache=self.cache,
            curriculum=curriculum,
            parent_loss=parent_loss,
            begun=begun,
        )
        self.sources, self.tokenizer, self.levels = self.corpus.sources, self.corpus.tokenizer, self.corpus.levels
        self.held_out = held_out_sets(
            self.corpus.whole,  # by level or not, what is measured is the same text
            replace(self.mix, shares=()).mean(),  # and also what is not replayed
            self.corpus.held_out,
            tokens=validation_tokens,
            row_length=sequence_length,
            byte_count=self.tokenizer.bytes_of,
        )
        if self.levels:  # they stand in the mixture for what they were dealt from
            weights = {s.name: Weight.of(s.spec.weight, s.name) for s in self.sources}
            self.mix = replace(self.mix, weights=weights, replay=replayed(weights))
        self.weights = self.mix.mean()
        self._cursor: Cursor | None = None
        self._loaded: Cursor | None = None
        self._loader: StepLoader | None = None

    # -- what a run needs to know before it builds a stage

    @property
    def source_names(self) -> list[str]:
        """Names of the sources in the order of `TokenBatch.source_ids`."""
        return [source.name for source in self.sources]

    @property
    def domains(self) -> dict[str, tuple[float, int]]:
        """Every validation domain's weight in the mixture and the bytes of its held-out text."""
        weight = {d: sum(self.weights[s.name] for s in self.sources if s.domain == d) for d in self.held_out}
        return {domain: (weight[domain], held.bytes) for domain, held in self.held_out.items()}

    def epoch_positions(self) -> int:
        """Trained positions of one pass over `epoch_source`, which turns passes into steps; counted once, cached."""
        return self.corpus.positions(self.epoch_source)

    def epoch_tokens(self, steps: int, phases: Sequence[Phase]) -> float:
        """Positions that a run of `steps` steps, made of `phases`, gives to `epoch_source`."""
        return BatchPlan.of(self._whole_mix, phases, steps).planned(steps)[self.epoch_source]

    def set_plan(self, steps: int, phases: Sequence[Phase] = ()) -> None:
        """The run ends after `steps` steps, beyond which nothing is read; `phases`: what they are made of, if not all
        of the same rows. Raises `UserError` for a phase whose weights do not fit the sources, or weigh one under a
        curriculum."""
        for name in (name for phase in phases for name in phase.weights or {} if name in self.levels):
            raise UserError(
                f"stage.phases weighs {name}, whose levels data.curriculum weighs: leave the weights out of the "
                "phases, or the source out of data.curriculum.sources"
            )
        plan = BatchPlan.of(self.mix, phases or self.phases, steps)
        self._stop, self.phases, self.mix = steps, plan.phases, plan.mix

    @property
    def plan(self) -> BatchPlan:
        """Rows and weights of every step, with all that was decided so far."""
        return BatchPlan(tuple(self.phases), self.mix)

    # -- Lightning's side

    def train_dataloader(self) -> StepLoader:
        """Batches from the consumed cursor on."""
        streams, mine = self._share()
        self._check_loaded(streams)
        self._loader = StepLoader(
            open_streams=partial(self._open_streams, streams),
            streams=mine,
            source_names=self.source_names,
            plan=self.plan,
            cursor=self._loaded,
            stop=self._stop,
            workers=self.workers,
            micro_rows=self._micro_rows,
            pin_memory=torch.cuda.is_available(),
        )
        return self._loader

    def val_dataloader(self) -> EVAL_DATALOADERS:
        """This rank's held-out micro-batches of every domain, by domain."""
        rank, world = self._rank()
        fits = max(self._micro_rows(self.row_length, 2**16))
        size = 2 ** (fits.bit_length() - 1)  # one shape for all of them
        return {domain: held.batches(size, rank, world) for domain, held in self.held_out.items()}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A step's batch stays where it is (the stage moves one micro-batch at a time); others move whole."""
        if isinstance(batch, TokenBatch):
            return batch.to(device)
        if isinstance(batch, StepBatch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def consumed(self, cursor: Cursor) -> None:
        """The stage has finished the step that `cursor` follows."""
        self._cursor = cursor

    # -- replay

    def replayed_rows(self, count: int) -> list[TokenBatch]:
        """`count` rows (fewer if there is less) of the replayed sources' training text, one a batch, the same on every
        rank and whatever was read before."""
        if not self.mix.replay:
            raise UserError(
                "stage.ewc measures on the parent's data, and none is known here: name a source replay in the mixture"
            )
        shares = parts({name: self.mix.weights[name].at(0) for name in sorted(self.mix.replay)})
        return self.corpus.rows(shares, count, self.row_length)

    def replay_share(self) -> float:
        """The share of the replayed sources in the tokens of the next step."""
        weights = self.plan.weights(self._next_step())
        return sum(weights[name] for name in self.mix.replay)

    def set_replay_share(self, share: float) -> int:
        """Give the replayed sources another share of the tokens; the step from which it binds. Every rank must call.

        Not the next step, whose batch may have been fetched: the one after it, whatever was prefetched.
        """
        if not self.mix.replay:
            raise UserError("nothing is replayed in this run, so the share of the replay cannot be changed")
        step = self._next_step() + 1
        self.mix = self.mix.changed(step, share)
        if self._loader is not None:
            self._loader.change(self.plan, step)
        return step

    def _next_step(self) -> int:
        cursor = self._cursor or self._loaded
        return cursor.step if cursor else 0

    def state_dict(self) -> dict[str, Any]:
        """The cursors of all logical streams, gathered from all ranks: every rank must call."""
        cursor = self._cursor or self._loaded
        if cursor is None:
            return {}
        mine = {s: with_tensors(state) for s, state in cursor.streams.items()}
        shares = [list(change) for change in self.mix.shares]
        return {"step": cursor.step, "streams": gather(mine), "sources": self.source_names, "replay_shares": shares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the step at which `state` was taken, on however many ranks."""
        if not state:
            return
        if state["sources"] != self.source_names:
            raise UserError(f"the checkpoint's sources are {state['sources']}; this run's are {self.source_names}")
        self._loaded = Cursor(step=state["step"], streams={int(s): v for s, v in state["streams"].items()})
        self.mix = replace(self.mix, shares=tuple((step, share) for step, share in state["replay_shares"]))
        self._cursor = None

    def usage(self) -> Tensor:
        """(sources, 2) float64: epochs begun and rows left out, this rank's part of them: ranks add up to the whole."""
        cursor = self._cursor or self._loaded
        streams, mine = self._share()  # a cursor that was loaded holds the streams of all ranks
        return usage([cursor.streams[s] for s in mine] if cursor else [], self.source_names, streams)

    def ledger(self) -> Ledger:
        """Planned and seen tokens, epochs and dropped rows by source, over all ranks: every rank must call."""
        cursor = self._cursor or self._loaded
        mine = {s: dict(state) for s, state in cursor.streams.items()} if cursor else {}
        return merge(gather(mine), self.sources, self.plan.planned(self._stop))

    def _open_streams(
        self,
        streams: int,
        owned: Sequence[int],
        states: Mapping[int, State],
        plan: BatchPlan,
        reading: Callable[[int, int, int], None],
    ) -> dict[int, Stream]:
        pieces = self.corpus.open_streams(owned, streams, states, reading)
        return {
            index: Stream(
                index=index,
                streams=streams,
                sources=pieces[index],
                plan=plan,
                seed=self.seed,
                window_rows=WINDOW_ROWS // streams,
                dropping=self._dropping,
                state=states.get(index),
            )
            for index in owned
        }

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _share(self) -> tuple[int, range]:
        """The number of logical streams, and those of this rank."""
        rank, world = self._rank()
        streams = self.plan.streams(self._wanted_streams, world)
        each = streams // world
        return streams, range(rank * each, (rank + 1) * each)

    def _check_loaded(self, streams: int) -> None:
        if self._loaded is not None and sorted(self._loaded.streams) != list(range(streams)):
            raise UserError(
                f"the checkpoint was written with {len(self._loaded.streams)} logical streams, this run has {streams}: "
                f"set data.streams={len(self._loaded.streams)}"
            )
