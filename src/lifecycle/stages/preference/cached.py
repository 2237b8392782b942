"""The reference's log-probabilities, computed once before the first step, while the policy still is the reference.

So no second copy of the weights is held, and no epoch asks for the same answer twice. They are kept on disk, by the
hash of what each answer is (its ids with those of its prompt, and which are trained), in a folder by what computed
them: the parent's weights, the type and the kernel of its products. Other runs from the same parent find them, and so
does the run that goes on. An answer that is not there is an error: by then the policy is no reference any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import DataFeed, Micro, PairBatch, UnpairedBatch
from lifecycle.errors import UserError
from lifecycle.model import DocumentMask
from lifecycle.stages.beside.known import KnownValues, digest, made_by
from lifecycle.stages.preference.answers import Answers, mismatched
from lifecycle.stages.step.collectives import any_rank


class CachedReference:
    """ask: the log-probabilities (N,) that the policy gives a micro-batch, without gradients. key: what they depend on
    beside the answers. folder: of the caches of all keys. parent: checks that the weights are those that the run began
    with, and gives their hash. computes: whether the policy is the reference when the run begins; not in one that goes
    on."""

    def __init__(
        self,
        *,
        ask: Callable[[Answers], Tensor],
        key: Callable[[], list[str]],
        folder: Callable[[], Path],
        parent: Callable[[], str],
        computes: bool,
    ) -> None:
        self._ask, self._key, self._folder, self._parent, self._computes = ask, key, folder, parent, computes
        self._known: KnownValues | None = None

    def build(self, mesh: DeviceMesh | None) -> None:
        """Nothing stands beside the policy."""

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Read what is known, and compute what the run will ask for."""
        self._known = KnownValues(self._folder() / made_by([self._parent(), *self._key()]))
        if not self._computes:
            return
        for batch in _asked_for(feed):
            missing = any(key not in self._known for key in answer_keys(batch))
            if any_rank(torch.tensor(missing, device=device), False)[0]:  # sharded, all ranks compute together
                self._add(batch, self._ask(batch))
        self._known.save()
        self._computes = False

    def looked_up(self, batch: Micro) -> Micro:
        """With the log-probabilities. Raises UserError for an answer that is not there."""
        if self._computes or not isinstance(batch, PairBatch | UnpairedBatch):  # not computed yet
            return batch
        assert self._known is not None
        keys = answer_keys(batch)
        if missing := sum(key not in self._known for key in keys):
            raise UserError(
                f"{missing} of {len(keys)} answers of this step have no log-probability of the reference in "
                f"{self._known.folder}: {self._why()}, or begin another with stage.reference=live run=NAME"
            )
        values = [self._known[key] for key in keys] or [torch.zeros(0, dtype=torch.float32, device="cpu")]
        return replace(batch, known=torch.cat(values))

    def _why(self) -> str:
        """What has become of them, and what brings them back."""
        assert self._known is not None
        if self._known.damaged:
            return (
                f"of its files {', '.join(self._known.damaged)} are damaged, and the policy has moved since they were "
                "written. Put copies of them back for the run that goes on"
            )
        if not self._known:
            return (
                "nothing is there, as on another machine or after the cache folder was emptied, and the policy has "
                "moved since it was computed. Put that folder back for the run that goes on"
            )
        return (
            "it was computed for the steps that the run had when it began, and the policy has moved since. Give the "
            "run the length and the data that it began with"
        )

    def logprobs(self, batch: Answers, documents: DocumentMask | None) -> Tensor:
        """Those that were looked up."""
        assert batch.known is not None
        return batch.known

    def _add(self, batch: Answers, logp_N: Tensor) -> None:
        assert self._known is not None
        values = logp_N.float().cpu().split(torch.bincount(batch.at.sequence, minlength=len(batch.at.ends)).tolist())
        for key, value in zip(answer_keys(batch), values, strict=True):
            self._known.add(key, value.clone())


def answer_keys(batch: Answers) -> list[bytes]:
    """(Q,) hashes: of an answer with its prompt, and of which of its tokens are trained. Of a batch on the CPU, whose
    prompts are not shared."""
    tokens = batch.tokens
    ids, labels, documents, positions = (
        tensor.flatten().numpy().astype(np.int32)
        for tensor in (tokens.input_ids, tokens.labels, tokens.document_ids, tokens.position_ids)
    )
    begins, ends = np.flatnonzero((positions == 0) & (documents > 0)), batch.at.ends.numpy() + 1
    return [digest(ids[at:end].tobytes() + labels[at:end].tobytes()) for at, end in zip(begins, ends, strict=True)]


def _asked_for(feed: DataFeed) -> Iterator[Answers]:
    """This rank's micro-batches of the whole run and of its validations, and what KTO's baseline asks for beside."""
    steps = (micro for batch in feed.whole_run() for micro in batch.micro)
    held_out = (micro for batches in feed.val_dataloader().values() for micro in batches)
    for micro in chain(steps, held_out):
        yield micro
        if isinstance(micro, UnpairedBatch):
            yield mismatched(micro)
