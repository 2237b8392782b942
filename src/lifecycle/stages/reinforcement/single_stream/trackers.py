"""What is known of every prompt that was a candidate: its tracker, its visits, its last answer.

All ranks hold the same, and every checkpoint holds all of it. A prompt is known by its record, not by its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lifecycle.errors import UserError
from lifecycle.losses.policy.spo import Tracker
from lifecycle.stages.reinforcement.single_stream.last_answers import LastAnswer, packed, unpacked


@dataclass(frozen=True, kw_only=True)
class TrackedPrompt:
    """Of one prompt. visits: how often it was trained on."""

    alpha: float
    beta: float
    visits: int
    last: LastAnswer


class Trackers:
    """By the key of the prompt. start_samples: completions that were drawn to start trackers, in the whole run."""

    def __init__(self) -> None:
        self._known = dict[int, TrackedPrompt]()
        self.start_samples = 0

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: int) -> bool:
        return key in self._known

    def of(self, keys: Sequence[int]) -> Tracker:
        """Trackers of prompts that are known."""
        found = [(self._known[key].alpha, self._known[key].beta) for key in keys]
        both = torch.tensor(found, dtype=torch.float64, device="cpu").reshape(-1, 2)
        return Tracker(both[:, 0], both[:, 1])

    def last(self, keys: Sequence[int]) -> list[LastAnswer]:
        """Last answers of prompts that are known."""
        return [self._known[key].last for key in keys]

    def visits(self, keys: Sequence[int]) -> list[int]:
        """How often each was trained on."""
        return [self._known[key].visits for key in keys]

    def begin(self, keys: Sequence[int], tracker: Tracker, answers: Sequence[LastAnswer], *, samples: int) -> None:
        """Prompts that were not known. samples: drawn for all of them."""
        self._put(keys, tracker, [0] * len(keys), answers)
        self.start_samples += samples

    def note(self, keys: Sequence[int], tracker: Tracker, answers: Sequence[LastAnswer]) -> None:
        """What is known after one more visit of each."""
        self._put(keys, tracker, [count + 1 for count in self.visits(keys)], answers)

    def _put(self, keys: Sequence[int], tracker: Tracker, visits: Sequence[int], answers: Sequence[LastAnswer]) -> None:
        values = zip(keys, tracker.alpha_P.tolist(), tracker.beta_P.tolist(), visits, answers, strict=True)
        for key, alpha, beta, count, last in values:
            self._known[key] = TrackedPrompt(alpha=alpha, beta=beta, visits=count, last=last)

    def state(self) -> dict[str, Any]:
        """For the checkpoint: tensors."""
        keys = sorted(self._known)
        return {
            "keys": torch.tensor(keys, dtype=torch.long, device="cpu"),
            **self.of(keys)._asdict(),
            "visits": torch.tensor(self.visits(keys), dtype=torch.long, device="cpu"),
            "start_samples": self.start_samples,
            **packed(self.last(keys)),
        }

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from `state`."""
        if state is None:
            raise UserError(
                "resume: the checkpoint holds no trackers of stage=spo, and training on without them would begin all "
                "prompts anew: start another run from its weights (init_from=, run=)"
            )
        self._known = {}
        tracker = Tracker(state["alpha_P"], state["beta_P"])
        self._put(state["keys"].tolist(), tracker, state["visits"].tolist(), unpacked(state))
        self.start_samples = state["start_samples"]
