"""The scorers of a run, by the names of its rewards."""

from __future__ import annotations

from collections.abc import Mapping

from lifecycle.errors import UserError
from lifecycle.rewards.judge.verdicts import JUDGED
from lifecycle.stages.reinforcement.acting.scorers.environment import EnvironmentReward
from lifecycle.stages.reinforcement.acting.scorers.functions import Functions
from lifecycle.stages.reinforcement.acting.scorers.graders import Graders
from lifecycle.stages.reinforcement.acting.scorers.judge import Judge
from lifecycle.stages.reinforcement.acting.scorers.reward_model import RewardModel
from lifecycle.stages.reinforcement.acting.scorers.scorer import Scorer
from lifecycle.stages.reinforcement.reward_names import ENVIRONMENT, NO_GRADERS, REWARD_MODEL, faults_of, is_own
from lifecycle.stages.reinforcement.settings import RewardKeys
from lifecycle.stages.run.setup import Setup


def scorers_of(keys: RewardKeys, setup: Setup, by_source: Mapping[str, Mapping[str, float]]) -> list[Scorer]:
    """What marks all rewards of a run. by_source: the weights of sources that have their own. Raises UserError for a
    reward that there is not, and for one whose settings are missing."""
    named = {"stage.rewards": keys.weights, **{f"data.sources.{name}.rewards": own for name, own in by_source.items()}}
    if faults := faults_of(named.items()):
        raise UserError(faults[0])
    names = {name for weights in named.values() for name in weights}
    own_functions = [(where, name) for where, weights in named.items() for name in weights if is_own(name)]
    found = list[Scorer]()
    if any(_is_grader(name) for name in names):
        own = {source: _graders(weights) for source, weights in by_source.items()}
        found.append(Graders(_graders(keys.weights), by_source=own, grading=keys.grading))
    if own_functions:
        found.append(Functions(own_functions, keys.grading))
    if REWARD_MODEL in names:
        found.append(RewardModel(keys.reward_model, setup))
    if names & set(JUDGED):
        found.append(Judge(keys.judge, setup))
    if ENVIRONMENT in names:
        found.append(EnvironmentReward())
    return found


def _graders(weights: Mapping[str, float]) -> dict[str, float]:
    """Those that are graders."""
    return {name: weight for name, weight in weights.items() if _is_grader(name)}


def _is_grader(name: str) -> bool:
    return name not in NO_GRADERS and not is_own(name)
