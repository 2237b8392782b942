"""Functions of the user's own as a scorer: each marks the text of a completion, in a pool of processes beside the run.

What they read is the whole completion, what an environment answered in it too, and a record whose prompt is the text
of its turns and whose meta has the columns that the source keeps (`fields: {columns: [...]}`). Equal samples are marked
each: nothing says that a function gives them the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lifecycle.batch import KEPT, TURNS
from lifecycle.rewards.graded import GradingKeys
from lifecycle.rewards.pool.own_worker import imported
from lifecycle.rewards.pool.pool import GradingPool
from lifecycle.rewards.pool.task import FAILED, TIMED_OUT, Task
from lifecycle.rewards.record import Answered
from lifecycle.stages.reinforcement.acting.scorers.judge import plain_record
from lifecycle.stages.reinforcement.acting.scorers.scorer import SampleMarks, SamplesToMark, unmarked
from lifecycle.stages.step.watched import Carried
from lifecycle.system.foreign import check_text, text_of


class Functions:
    """named: by the key that names it, each function. Raises UserError where one cannot be imported."""

    beside = None

    def __init__(self, named: Sequence[tuple[str, str]], grading: GradingKeys) -> None:
        self.carried: Mapping[str, Carried] = {"functions": _Texts(named)}
        self.names = tuple(dict.fromkeys(name for _, name in named))
        self._pool = GradingPool(graders=self.names, workers=grading.workers, limits=grading.limits, own=True)

    def marked(self, asked: SamplesToMark) -> SampleMarks:
        """By the texts of the samples; one that takes too long gets 0, and one that fails has no mark."""
        records = [_told(asked, i) for i in range(len(asked.records))]
        places = [(name, n) for name in self.names for n in asked.of(name)]
        tasks = [
            Task(grader=name, completion=asked.rollout.text[n], record=records[asked.index[n]]) for name, n in places
        ]
        marks = {name: unmarked(len(asked)) for name in self.names}
        lost = {name: torch.zeros(len(asked), dtype=torch.bool, device="cpu") for name in self.names}
        failed, timed_out, said = Counter[str](), Counter[str](), dict[str, str]()
        for (name, n), outcome in zip(places, self._pool.map(tasks), strict=True):
            if outcome.state == FAILED:
                failed[name] += 1
                lost[name][n] = True
                said.setdefault(name, outcome.text)
                continue
            timed_out[name] += outcome.state == TIMED_OUT
            marks[name][n] = outcome.mark or 0.0
        return SampleMarks(marks=marks, lost=lost, failed=failed, timed_out=+timed_out, said=said)

    def told(self) -> dict[str, Tensor]:
        """Nothing beside its marks."""
        return {}

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


class _Texts:
    """The files of the functions, as they were when the run began or went on: what they give may depend on them."""

    def __init__(self, named: Sequence[tuple[str, str]]) -> None:
        self._of = {name: text_of(imported(name, where)) for where, name in named}

    def state(self) -> dict[str, str | None]:
        """For the checkpoint."""
        return self._of

    def restore(self, state: Mapping[str, str | None] | None) -> None:
        """Raise UserError where the run began with another text; there is no state in a checkpoint of an older
        version."""
        for name, text in (state or {}).items():
            check_text(text, self._of.get(name, text), of=f"the reward {name}", does="gives")


def _told(asked: SamplesToMark, i: int) -> Answered:
    record = plain_record(asked, i)
    meta = {key: value for key, value in record.meta.items() if key not in (TURNS, KEPT)}
    return Answered(answer=record.answer, prompt=record.prompt, meta={**meta, **record.meta.get(KEPT, {})})
