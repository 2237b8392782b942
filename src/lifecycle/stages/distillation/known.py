"""What a teacher said of the sequences of a run, computed once before the first step: its K likeliest tokens and the
tail.

Kept on disk by the hash of each sequence (ids, and which are trained), in a folder by all else that it depends on: the
teacher's weights, K, the temperature, the ids that are compared, type and kernel of the products. Later epochs, the run
that goes on and other students of this teacher find it there. A sequence that is not there is computed by the teacher.

Shapes: N trained tokens, K tokens kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import DataFeed, Micro
from lifecycle.losses.distillation import TopK
from lifecycle.stages.beside.known import KnownValues, made_by
from lifecycle.stages.distillation.lesson import Lesson
from lifecycle.stages.distillation.sequences import sequences_of
from lifecycle.stages.distillation.teacher import Teacher
from lifecycle.stages.step.collectives import any_rank


class KnownTeacher:
    """A teacher whose K likeliest tokens are looked up. ask: them, of a lesson, by the teacher. key: what they
    depend on beside the teacher's weights and the sequence."""

    def __init__(
        self, teacher: Teacher, *, k: int, ask: Callable[[Lesson], TopK], key: Callable[[], list[str]]
    ) -> None:
        self._teacher, self._k, self._ask, self._key = teacher, k, ask, key
        self._known: KnownValues | None = None

    def build(self, mesh: DeviceMesh | None) -> None:
        """With the student."""
        self._teacher.build(mesh)

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Read what is known, and compute what else the steps of the run will ask for."""
        self._teacher.begin(device, feed)
        self._known = KnownValues(self._teacher.cache() / made_by([self._teacher.sha256(), *self._key()]))
        for batch in feed.whole_run():
            for micro in batch.micro:
                lesson = Lesson.of(micro)
                keys = [one.key for one in sequences_of(micro)]
                missing = torch.tensor(any(key not in self._known for key in keys), device=device)
                if any_rank(missing, False)[0]:  # sharded, all ranks compute together
                    self._add(lesson, self._ask(lesson))
        self._known.save()

    def looked_up(self, batch: Micro) -> Micro:
        """`lesson` has done it, before the step: where something is missing, all ranks compute together."""
        return batch

    def lesson(self, lesson: Lesson) -> Lesson:
        """With what the teacher says of it: what is known, where all of it is; else it is asked. Every rank must
        call."""
        assert self._known is not None
        keys = [one.key for one in sequences_of(lesson.tokens)]
        missing = torch.tensor(any(key not in self._known for key in keys), device="cpu")
        if any_rank(missing.to(self._teacher.network.embedding.weight.device), False)[0]:
            return replace(lesson, said=self._ask(lesson))
        rows = torch.cat([torch.zeros(0, dtype=torch.float32, device="cpu"), *(self._known[key] for key in keys)]).view(
            -1, 2 * self._k + 1
        )
        return replace(lesson, said=TopK(rows[:, : self._k].long(), rows[:, self._k :]))

    def _add(self, lesson: Lesson, said: TopK) -> None:
        """Ids and log-probabilities of a token side by side, in fp32, which holds every id below 2^24 exactly."""
        assert self._known is not None
        rows: Tensor = torch.cat([said.ids.float(), said.logp.float()], -1).cpu()
        found = sequences_of(lesson.tokens)
        for one, part in zip(found, rows.split([one.trained for one in found]), strict=True):
            self._known.add(one.key, part.flatten().clone())
