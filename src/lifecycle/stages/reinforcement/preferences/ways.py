"""The two ways in which stage=rlaif learns from the marks of a step's samples: as rewards, or by pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from lifecycle.batch import PromptBatch, StepBatch
from lifecycle.model import Decoder, ModelConfig
from lifecycle.stages.base import Stage
from lifecycle.stages.preference.settings import PreferenceKeys
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.stages.reinforcement.acting.choice_of_prompts import Sampled
from lifecycle.stages.reinforcement.acting.scoring import comparable
from lifecycle.stages.reinforcement.learning.experience import Experience, finished
from lifecycle.stages.reinforcement.learning.learner import Learner
from lifecycle.stages.reinforcement.preferences.learner import PairLearner, best_and_worst
from lifecycle.stages.reinforcement.settings import PolicyKeys
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.step.watched import Carried


class ByRewards:
    """As stage=grpo learns. reference, kept: for the stage (`PolicyReference`). carried: what its checkpoints hold."""

    def __init__(self, *, model: ModelConfig, policy: PolicyKeys, actor: Actor, setup: Setup) -> None:
        self._policy, self._actor = policy, actor
        self._learner = Learner(model=model, policy=policy, drawn=actor.drawn, setup=setup)
        self.reference, self.kept = self._learner.reference.beside, self._learner.reference.kept
        self.carried: Mapping[str, Carried] = self._learner.carried

    def learn(self, stage: Stage, batch: StepBatch[PromptBatch], sampled: Sampled, facts: Mapping[str, Tensor]) -> None:
        """The updates of a step. facts: what is told of its samples. Every rank must call."""
        self._learner.learn(stage, batch, self._actor.experience(stage, sampled, self._policy, batch.step), facts)


class ByPairs:
    """By pairs of the best and the worst sample of a prompt. mask_unfinished: whether those that were cut off take no
    part."""

    carried: Mapping[str, Carried] = {}
    kept: nn.Module | None = None

    def __init__(
        self,
        *,
        model: ModelConfig,
        keys: PreferenceKeys,
        mask_unfinished: bool,
        actor: Actor,
        setup: Setup,
        network: Callable[[], Decoder],
    ) -> None:
        self._actor, self._mask_unfinished = actor, mask_unfinished
        self._learner = PairLearner(model=model, keys=keys, drawn=actor.drawn, setup=setup, network=network)
        self.reference = self._learner.reference

    def learn(self, stage: Stage, batch: StepBatch[PromptBatch], sampled: Sampled, facts: Mapping[str, Tensor]) -> None:
        """The same; in the files of kept samples the advantage is 1 of the best, -1 of the worst."""
        prompts, rollout, scores = sampled
        total_N = comparable(scores)
        if self._mask_unfinished:
            total_N[[n for n, ended in enumerate(finished(rollout)) if not ended]] = float("nan")
        choice = best_and_worst(total_N, scores.place, [rollout.completion(n) for n in range(len(rollout))])
        experience = Experience.of(prompts, rollout, choice, mask_unfinished=False)
        self._actor.keep(stage, experience, scores, batch.step)
        self._learner.learn(stage, batch, experience, total_N, facts)
