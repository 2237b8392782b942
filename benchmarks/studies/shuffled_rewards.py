"""The control of a study of reinforcement learning: a run whose rewards are permuted among all samples of a step.

    python benchmarks/studies/shuffled_rewards.py experiment=demo/grpo run=shuffled

What is drawn, how much of it is rewarded and what an update costs stay as they are; which answer a reward belongs to is
lost. What such a run gains, it does not owe to its rewards. The sum over held-out answers is that of the true rewards,
and answers.jsonl marks every answer by itself.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from lifecycle.__main__ import main
from lifecycle.batch import PromptBatch, Rollout
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting.scoring import SampleScores, Scoring

TRUE = Scoring.scores


def shuffled(self: Scoring, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
    """The true rewards in another order, the same for the same samples."""
    scores = TRUE(self, stage, rollout, prompts)
    draw = torch.Generator(device="cpu").manual_seed(int(rollout.prompt_id.sum()) % 2**31)
    return replace(scores, rewards=scores.rewards[torch.randperm(len(rollout), generator=draw, device="cpu")])


if __name__ == "__main__":
    Scoring.scores = shuffled  # type: ignore[method-assign]
    main()
