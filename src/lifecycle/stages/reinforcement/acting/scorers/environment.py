"""What an environment gave its completions, as a reward: the sum over their turns; 0 where it was never asked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lifecycle.stages.reinforcement.acting.scorers.scorer import SampleMarks, SamplesToMark
from lifecycle.stages.reinforcement.reward_names import ENVIRONMENT
from lifecycle.stages.step.watched import Carried


class EnvironmentReward:
    """The reward `environment`."""

    names = (ENVIRONMENT,)
    beside = None
    carried: Mapping[str, Carried] = {}

    def marked(self, asked: SamplesToMark) -> SampleMarks:
        """The same for every source that has it."""
        dialogues = asked.rollout.dialogues
        assert dialogues is not None  # `settings.faults` has seen to it
        given = torch.tensor([one.reward for one in dialogues], dtype=torch.float64, device="cpu")
        return SampleMarks(marks={ENVIRONMENT: given})

    def told(self) -> dict[str, Tensor]:
        """Nothing beside its marks."""
        return {}

    def close(self) -> None:
        """It has no processes."""
