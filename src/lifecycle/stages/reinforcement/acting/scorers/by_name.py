"""The scorers of a run, by the names of its rewards."""

from __future__ import annotations

from collections.abc import Mapping

from lifecycle.errors import UserError
from lifecycle.rewards.graders import GRADERS
from lifecycle.rewards.judge.verdicts import JUDGED
from lifecycle.stages.reinforcement.acting.scorers.environment import ENVIRONMENT, EnvironmentReward
from lifecycle.stages.reinforcement.acting.scorers.graders import Graders
from lifecycle.stages.reinforcement.acting.scorers.judge import Judge
from lifecycle.stages.reinforcement.acting.scorers.reward_model import REWARD_MODEL, RewardModel
from lifecycle.stages.reinforcement.acting.scorers.scorer import Scorer
from lifecycle.stages.reinforcement.settings import RewardKeys
from lifecycle.stages.run.setup import Setup

BY_NETWORKS = (REWARD_MODEL, *JUDGED)
NO_GRADERS = (*BY_NETWORKS, ENVIRONMENT)
"""Rewards that are no graders."""


def scorers_of(keys: RewardKeys, setup: Setup, by_source: Mapping[str, Mapping[str, float]]) -> list[Scorer]:
    """What marks all rewards of a run. by_source: the weights of sources that have their own. Raises UserError for a
    reward that there is not, and for one whose settings are missing."""
    named = {"stage.rewards": keys.weights, **{f"data.sources.{name}.rewards": own for name, own in by_source.items()}}
    for where, weights in named.items():
        for name in weights:
            if name not in GRADERS and name not in NO_GRADERS:
                known = ", ".join([*GRADERS, *NO_GRADERS])
                raise UserError(f"{where} names '{name}', which is no reward: take of {known}")
    names = {name for weights in named.values() for name in weights}
    found = list[Scorer]()
    if names - set(NO_GRADERS):
        own = {source: _graders(weights) for source, weights in by_source.items()}
        found.append(Graders(_graders(keys.weights), by_source=own, grading=keys.grading))
    if REWARD_MODEL in names:
        found.append(RewardModel(keys.reward_model, setup))
    if names & set(JUDGED):
        found.append(Judge(keys.judge, setup))
    if ENVIRONMENT in names:
        found.append(EnvironmentReward())
    return found


def _graders(weights: Mapping[str, float]) -> dict[str, float]:
    """Those that are graders."""
    return {name: weight for name, weight in weights.items() if name not in NO_GRADERS}
