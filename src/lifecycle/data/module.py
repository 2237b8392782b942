"""THE LightningDataModule: sources -> view -> mixture -> packed rows -> the batches of this rank, and their cursor.

    python -m lifecycle data=files 'data.sources.mine.path=texts/*.jsonl.gz'

Its state is what was *consumed*: a stage hands back the cursor of every step it has finished, and a checkpoint holds
the cursors of all logical streams, so a run resumes at the same token on any number of ranks and workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import EVAL_DATALOADERS
from torch import Tensor

from lifecycle.batch import Cursor, StepBatch, TokenBatch
from lifecycle.bounds import Count
from lifecycle.data.clean.contamination import Decontaminate
from lifecycle.data.clean.source import BadRows
from lifecycle.data.corpus import Corpus
from lifecycle.data.curriculum.levels import refuse_weighed
from lifecycle.data.curriculum.schedule import Curriculum
from lifecycle.data.curriculum.scores import ParentLoss
from lifecycle.data.ledger import Ledger, merge, usage
from lifecycle.data.loading.cursors import check_streams, cursor_in, gathered, states_of
from lifecycle.data.loading.ends import Ending, Ends, fault_of
from lifecycle.data.loading.exchange import gather
from lifecycle.data.loading.loader import StepLoader, micro_batch_rows
from lifecycle.data.loading.opening import Opener
from lifecycle.data.mixture.plan import BatchPlan, Phase, largest, mixture, replayed
from lifecycle.data.mixture.weight import Weight
from lifecycle.data.read.begun import Begun
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.validation import held_out_sets
from lifecycle.errors import UserError
from lifecycle.system.cache import made_cache_folder
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

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
        self._ends = Ends(last=0)
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

    def set_plan(
        self, steps: int, phases: Sequence[Phase] = (), *, last: int | None | Literal["steps"] = "steps"
    ) -> None:
        """The run is planned for `steps` steps; `phases`: what they are made of, if not all of the same rows.

        It ends after `last` steps, beyond which nothing is read: these; or more, or None, where it ends with the last
        row of `epoch_source`, for padding makes the steps of a pass a few more than its tokens need. Raises `UserError`
        for a phase whose weights do not fit the sources, or weigh one under a curriculum.
        """
        refuse_weighed(self.levels, (phase.weights or {} for phase in phases))
        plan = BatchPlan.of(self.mix, phases or self.phases, steps)
        self._stop, self.phases, self.mix = steps, plan.phases, plan.mix
        self._ends = Ends(last=steps if last == "steps" else last, dropping=self._dropping)
        if self._ends.last != steps:
            self._ends = replace(self._ends, source=self.epoch_source)

    def ends_with(self, passes: float | None) -> bool:
        """Whether a run of so many passes over `epoch_source` is to end with its last row: it may be read so often, and
        no more often. Rows are padded, so that no number of steps says exactly when that is."""
        if self.epoch_source in self.levels:  # their weights move with progress, and each has an end of its own
            return False
        source = next(source for source in self.sources if source.name == self.epoch_source)
        return passes is not None and source.spec.max_epochs == passes

    def is_last(self, step: int) -> bool:
        """Whether the run is done after `step` steps, for the data has come to its end, or to that of the plan."""
        return self._ends.is_last(step, self._ending)

    def fails_after(self, step: int) -> bool:
        """Whether no batch follows `step` steps because reading failed, or a source was used up."""
        return self._ending is not None and self._ending.fault is not None and self._ending.step == step

    def fault(self) -> Exception | None:
        """What ended the data early, on whichever rank: every rank must call, once what was trained is saved."""
        return fault_of(self._ending)

    @property
    def _ending(self) -> Ending | None:
        return self._loader.ending if self._loader else None

    @property
    def plan(self) -> BatchPlan:
        """Rows and weights of every step, with all that was decided so far."""
        return BatchPlan(tuple(self.phases), self.mix)

    # -- Lightning's side

    def train_dataloader(self) -> StepLoader:
        """Batches from the consumed cursor on."""
        streams, mine = self._share()
        check_streams(self._loaded, streams)
        opener = self._opener(streams)
        self._loader = StepLoader(
            open_streams=opener.streams,
            open_tail=opener.tail,
            streams=mine,
            all_streams=streams,
            source_names=self.source_names,
            plan=self.plan,
            cursor=opener.going_on(self._loaded, self.plan, self.corpus.max_epochs),
            stop=self._ends.last,
            ends=any(cap is not None for cap in self.corpus.max_epochs.values()),
            may_end=self._ends.may_end,
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
        return self.corpus.rows(self.mix.replayed(), count, self.row_length)

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
        return {
            **gathered(cursor),
            "over": cursor.tail is not None and self.is_last(cursor.step),
            "max_epochs": self.corpus.max_epochs,
            "sources": self.source_names,
            "replay_shares": [list(change) for change in self.mix.shares],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the step at which `state` was taken, on however many ranks."""
        if not state:
            return
        if state["sources"] != self.source_names:
            raise UserError(f"the checkpoint's sources are {state['sources']}; this run's are {self.source_names}")
        self._loaded = cursor_in(state)
        over = state["over"] and state["max_epochs"] == self.corpus.max_epochs and self._ends.may_end
        self._ends = replace(self._ends, over=state["step"] if over else None)
        self.mix = replace(self.mix, shares=tuple((step, share) for step, share in state["replay_shares"]))
        self._cursor = None

    def usage(self) -> Tensor:
        """(sources, 2) float64: epochs begun and rows left out, this rank's part of them: ranks add up to the whole."""
        streams, mine = self._share()  # a cursor that was loaded holds the streams of all ranks
        return usage(states_of(self._cursor or self._loaded, mine).values(), self.source_names, streams)

    def ledger(self) -> Ledger:
        """Planned and seen tokens, epochs and dropped rows by source, over all ranks: every rank must call."""
        streams, mine = self._share()
        states = gather(states_of(self._cursor or self._loaded, mine))
        return merge(states, self.sources, self.plan.planned(self._stop), streams=streams)

    def _opener(self, streams: int) -> Opener:
        return Opener(
            corpus=self.corpus,
            number=streams,
            seed=self.seed,
            window_rows=WINDOW_ROWS,
            dropping=self._dropping,
            end=self._ends.source,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _share(self) -> tuple[int, range]:
        """The number of logical streams, and those of this rank."""
        rank, world = self._rank()
        streams = self.plan.streams(self._wanted_streams, world)
        each = streams // world
        return streams, range(rank * each, (rank + 1) * each)
