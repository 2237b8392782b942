"""THE LightningDataModule: sources -> view -> mixture -> packed rows -> the batches of this rank, and their cursor.

    python -m lifecycle data=files 'data.sources.mine.path=texts/*.jsonl.gz'

Its state is what was *consumed*: a stage hands back the cursor of every step it has finished, and a checkpoint holds
the cursors of all logical streams, so a run resumes at the same token on any number of ranks and workers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lifecycle.batch import Cursor, PairBatch, PromptBatch, StepBatch, TokenBatch, UnpairedBatch
from lifecycle.data.corpus import Corpus
from lifecycle.data.curriculum.buckets import refuse_weighed
from lifecycle.data.ledger import Ledger, merge, too_long, usage
from lifecycle.data.mixture.batch_plan import BatchPlan, Phase
from lifecycle.data.stream.loading.cursors import check_streams, cursor_in, gathered, states_of
from lifecycle.data.stream.loading.ends import Ending, Ends, fault_of
from lifecycle.data.stream.loading.exchange import gather
from lifecycle.data.stream.loading.loader import StepLoader, micro_batch_rows
from lifecycle.data.stream.loading.opening import Opener
from lifecycle.data.stream.packing import Piece
from lifecycle.data.validation import HeldOutQuestion, collect, held_out_sets, pack
from lifecycle.errors import UserError

WINDOW_ROWS = 512  # rows that all streams together pack at once: padding falls and a resume reads more as it grows


class DataModule(pl.LightningDataModule):
    """The data of one run of `steps` steps, made of `phases`.

    last: steps beyond which nothing is read: `steps`; or more, or None, where the run ends with the last row of the
    corpus's `epoch_source`, for padding makes the steps of a pass a few more than its tokens need. row_length:
    positions of the longest rows, and of those that are measured. Raises `UserError` for a phase whose weights do not
    fit the sources, or weigh one under a curriculum.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        steps: int,
        phases: Sequence[Phase],
        last: int | None,
        row_length: int,
        micro_batch_tokens: int,
        validation_tokens: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.corpus, self.workers, self.row_length = corpus, workers, row_length
        self.sources, self.tokenizer, self.weights = corpus.sources, corpus.tokenizer, corpus.weights
        self._micro_rows = micro_batch_rows(micro_batch_tokens)
        refuse_weighed(corpus.levels, (phase.weights or {} for phase in phases))
        plan = BatchPlan.of(corpus.mix, corpus.counted(phases), steps)
        self._stop, self.phases, self.mix = steps, plan.phases, plan.mix
        self._dropping = corpus.config.exhausted == "drop"
        self._ends = Ends(last=last, dropping=self._dropping, source=None if last == steps else corpus.epoch_source)
        self.held_out = held_out_sets(
            corpus.whole,  # by level or not, what is measured is the same text
            replace(corpus.whole_mix, shares=()).mean(),  # and also what is not replayed
            corpus.held_out,
            tokens=validation_tokens,
            row_length=row_length,
            packing=corpus.packing,
            byte_count=self.tokenizer.bytes_of,
        )
        self._cursor: Cursor | None = None
        self._loaded: Cursor | None = None
        self._loader: StepLoader | None = None

    # -- what a stage reads

    @property
    def source_names(self) -> list[str]:
        """Names of the sources in the order of `TokenBatch.source_ids`."""
        return [source.name for source in self.sources]

    @property
    def domains(self) -> dict[str, tuple[float, int | None]]:
        """Every validation domain's weight in the mixture and the bytes of its held-out text, None where it is none:
        see `HeldOutSet`."""
        weight = {d: sum(self.weights[s.name] for s in self.sources if s.domain == d) for d in self.held_out}
        return {domain: (weight[domain], held.bytes) for domain, held in self.held_out.items()}

    def questions(self, count: int) -> list[tuple[str, HeldOutQuestion]]:
        """The first `count` held-out questions of every domain that has such, with the domain; the same at every
        measurement."""
        return [(domain, one) for domain, held in self.held_out.items() for one in held.questions[:count]]

    def is_last(self, step: int) -> bool:
        """Whether the run is done after `step` steps, for the data has come to its end, or to that of the plan."""
        return self._ends.is_last(step, self._ending)

    def fails_after(self, step: int) -> bool:
        """Whether no batch follows `step` steps because reading failed, or a source was used up."""
        return self._ending is not None and self._ending.fault is not None and self._ending.step == step

    def row_length_at(self, step: int) -> int:
        """Positions of each row of the step that follows `step` steps."""
        return self.plan.at(step).row_length

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
        check_streams(self._loaded, self._share()[0])
        self._loader = self._batches_from(self._loaded)
        return self._loader

    def whole_run(self) -> Generator[StepBatch[Any]]:
        """This rank's batches from the first step to the last as it is planned, read beside the training, whose place
        in the data stays. Every rank must call."""
        yield from self._batches_from(None)

    def _batches_from(self, cursor: Cursor | None) -> StepLoader:
        streams, mine = self._share()
        opener = self._opener(streams)
        return StepLoader(
            open_streams=opener.streams,
            open_tail=opener.tail,
            streams=mine,
            all_streams=streams,
            source_names=self.source_names,
            plan=self.plan,
            cursor=opener.going_on(cursor, self.plan, self.corpus.max_epochs),
            stop=self._ends.last,
            ends=any(cap is not None for cap in self.corpus.max_epochs.values()),
            may_end=self._ends.may_end,
            workers=self.workers,
            micro_rows=self._micro_rows,
            packing=self.corpus.packing,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> dict[str, list[TokenBatch]]:
        """This rank's held-out micro-batches of every domain, by domain."""
        rank, world = self._rank()
        fits = max(self._micro_rows(self.row_length, 2**16))
        size = 2 ** (fits.bit_length() - 1)  # one shape for all of them
        return {domain: held.batches(size, rank, world) for domain, held in self.held_out.items()}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """A step's batch stays where it is (the stage moves one micro-batch at a time); others move whole."""
        if isinstance(batch, TokenBatch | PairBatch | UnpairedBatch | PromptBatch):
            return batch.to(device)
        if isinstance(batch, StepBatch):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def consumed(self, cursor: Cursor) -> None:
        """The stage has finished the step that `cursor` follows."""
        self._cursor = cursor

    # -- replay

    def replayed_rows(self, count: int) -> list[Any]:
        """`count` rows (fewer if there is less) of the replayed sources' training data, one a batch, the same on every
        rank and whatever was read before."""
        shares, pieces = self.mix.replayed(), list[Piece]()
        for name, share in shares.items():
            wanted = math.ceil(count * self.row_length * share / sum(shares.values()))
            index = next(s.index for s in self.sources if s.name == name)
            pieces += collect(self.corpus.documents(name), tokens=wanted, source=index)
        packed = pack(",".join(shares), pieces, self.row_length, self.corpus.packing, self.tokenizer.bytes_of)
        return packed.batches(1, 0, 1)[:count]

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

    def too_long(self, cursor: Cursor) -> Tensor:
        """(sources, 2) float64: rows that were left out for their length up to `cursor`, and those that were not left
        out for anything else, this rank's part."""
        return too_long(states_of(cursor, self._share()[1]).values(), self.source_names)

    def ledger(self) -> Ledger:
        """Planned and seen tokens, epochs and dropped rows by source, over all ranks: every rank must call."""
        streams, mine = self._share()
        states = gather(states_of(self._cursor or self._loaded, mine))
        return merge(states, self.sources, self.plan.planned(self._stop), streams=streams)

    def _opener(self, streams: int) -> Opener:
        return Opener(
            open_pieces=self.corpus.open_streams,
            sources=self.source_names,
            number=streams,
            seed=self.corpus.seed,
            window_rows=WINDOW_ROWS,
            dropping=self._dropping,
            end=self._ends.source,
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _share(self) -> tuple[int, range]:
        """The number of logical streams, and those of this rank."""
        rank, world = self._rank()
        streams = self.plan.streams(self.corpus.config.streams, world)
        each = streams // world
        return streams, range(rank * each, (rank + 1) * each)
