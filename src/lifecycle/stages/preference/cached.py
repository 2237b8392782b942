"""The reference's log-probabilities, computed once before the first step, while the policy still is the reference.

So no second copy of the weights is held, and no epoch asks for the same answer twice. They are kept on disk, by the
hash of what each answer is (its ids with those of its prompt, and which are trained), in a folder by what computed
them: the parent's weights, the type and the kernel of its products. Other runs from the same parent find them, and so
does the run that goes on. An answer that is not there is an error: by then the policy is no reference any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import DataFeed, UnpairedBatch
from lifecycle.errors import UserError
from lifecycle.model import DocumentMask
from lifecycle.stages.preference.answers import Answers, mismatched
from lifecycle.stages.step.collectives import any_rank
from lifecycle.system import atomic

DIGEST = 16
"""Bytes of an answer's hash."""


class KnownLogprobs:
    """Log-probabilities of the trained tokens of answers, by the hash of the answer, from the files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[bytes, Tensor] = {}
        self._unsaved: list[bytes] = []
        for part in sorted(folder.glob("*.safetensors")):
            tensors = load_file(part)
            keys = tensors["keys"].numpy().tobytes()
            values = tensors["values"].split(tensors["lengths"].tolist())
            self._known |= {keys[at * DIGEST : (at + 1) * DIGEST]: value for at, value in enumerate(values)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def __getitem__(self, key: bytes) -> Tensor:
        return self._known[key]

    def add(self, key: bytes, value: Tensor) -> None:
        """Of one answer; stays as it is where it is known."""
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
        content = save(tensors)
        atomic.write(self.folder / f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors", content)
        self._unsaved = []


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
        self._known: KnownLogprobs | None = None

    def build(self, mesh: DeviceMesh | None) -> None:
        """Nothing stands beside the policy."""

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Read what is known, and compute what the run will ask for."""
        name = hashlib.sha256(json.dumps([self._parent(), *self._key()]).encode()).hexdigest()[:16]
        self._known = KnownLogprobs(self._folder() / name)
        if not self._computes:
            return
        for batch in _asked_for(feed):
            missing = any(key not in self._known for key in answer_keys(batch))
            if any_rank(torch.tensor(missing, device=device), False)[0]:  # sharded, all ranks compute together
                self._add(batch, self._ask(batch).cpu())
        self._known.save()
        self._computes = False

    def logprobs(self, batch: Answers, documents: DocumentMask | None) -> Tensor:
        """Looked up. Raises UserError for an answer that is not there."""
        assert self._known is not None
        keys = answer_keys(batch)
        if missing := sum(key not in self._known for key in keys):
            raise UserError(
                f"{missing} of {len(keys)} answers of this step have no log-probability of the reference in "
                f"{self._known.folder}: it was computed for the steps that the run had when it began, and the policy "
                "has moved since. Give the run the length and the data that it began with, or begin another with "
                "stage.reference=live run=NAME"
            )
        values = [self._known[key] for key in keys] or [torch.zeros(0, dtype=torch.float32, device="cpu")]
        return torch.cat(values).to(batch.places.device)

    def _add(self, batch: Answers, logp_N: Tensor) -> None:
        assert self._known is not None
        for key, value in zip(answer_keys(batch), logp_N.float().split(_trained(batch).tolist()), strict=True):
            self._known.add(key, value.clone())


def answer_keys(batch: Answers) -> list[bytes]:
    """(Q,) hashes: of an answer with its prompt, and of which of its tokens are trained."""
    ids, labels, places, positions = (
        tensor.cpu().flatten().numpy().astype(np.int32)
        for tensor in (
            batch.tokens.input_ids,
            batch.tokens.labels,
            batch.tokens.document_ids,
            batch.tokens.position_ids,
        )
    )
    begins: NDArray[np.intp] = np.nonzero((positions == 0) & (places > 0))[0]
    ends = batch.at.ends.cpu().numpy() + 1
    return [_digest(ids[at:end], labels[at:end]) for at, end in zip(begins, ends, strict=True)]


def _digest(ids: NDArray[np.int32], labels: NDArray[np.int32]) -> bytes:
    return hashlib.blake2b(ids.tobytes() + labels.tobytes(), digest_size=DIGEST).digest()


def _trained(batch: Answers) -> Tensor:
    """(Q,): trained tokens of each answer."""
    return torch.bincount(batch.at.sequence, minlength=len(batch.at.ends))


def _asked_for(feed: DataFeed) -> Iterator[Answers]:
    """This rank's micro-batches of the whole run and of its validations, and what KTO's baseline asks for beside."""
    steps = (micro for batch in feed.whole_run() for micro in batch.micro)
    held_out = (micro for batches in feed.val_dataloader().values() for micro in batches)
    for micro in chain(steps, held_out):
        yield micro
        if isinstance(micro, UnpairedBatch):
            yield mismatched(micro)
