"""Models that a stage asks beside its own, named as `init_from` names a parent: a reward model.

    stage.reward_model.path=RUN, RUN@STEP, FOLDER, OWNER/NAME       asked where a reward is `reward_model`

Tokenizer and chat template are its own, and may be others than those of the run.
"""

from __future__ import annotations

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, find_parent, finished_runs
from lifecycle.stages.reinforcement.settings import reward_names

REWARD_MODEL = "reward_model"


def asked_models(cfg: DictConfig) -> dict[str, Parent]:
    """By the key of `stage` that names them, which is also their entry in run.json. Raises UserError where there is no
    such model, and where a reward needs one that is not named."""
    plain = config.resolved(cfg)
    stage = plain["stage"]
    if REWARD_MODEL not in stage:
        return {}
    path = stage[REWARD_MODEL]["path"]
    if REWARD_MODEL not in reward_names(plain):
        return {}
    if path is None:
        raise UserError(
            "a reward is 'reward_model', and stage.reward_model.path is null: type stage.reward_model.path=RUN, a run "
            f"of stage=reward (or a folder or hub id of such a model), or name another reward; {finished_runs()}"
        )
    return {REWARD_MODEL: scoring_model(path, key="stage.reward_model.path")}


def scoring_model(name: str, *, key: str) -> Parent:
    """The reward model that `key` names. Raises UserError for one that predicts tokens, or has no tokenizer."""
    found = find_parent(name, key=key)
    if not found.model.score_head:
        raise UserError(
            f"{key}={name} predicts tokens, and a reward model ends in a score: name a run of stage=reward, or a model "
            "of the class AutoModelForSequenceClassification with one label"
        )
    if found.tokenizer is None:
        raise UserError(
            f"{key}={name} has no tokenizer, without which it reads nothing: put its tokenizer.json and "
            "tokenizer_config.json there"
        )
    return found
