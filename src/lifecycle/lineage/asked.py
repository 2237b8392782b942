"""Models that a stage asks beside its own, named as `init_from` names a parent: a reward model, a judge.

    stage.reward_model.path=RUN, RUN@STEP, FOLDER, OWNER/NAME       asked where a reward is `reward_model`
    stage.judge.model=RUN, RUN@STEP, FOLDER, OWNER/NAME             ... or `judge` or `preferred`, by no endpoint

Tokenizer and chat template are its own, and may be others than those of the run.
"""

from __future__ import annotations

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, find_parent, finished_runs
from lifecycle.rewards.judge.verdicts import JUDGED
from lifecycle.stages.reinforcement.settings import reward_names
from lifecycle.tokenizer.tokenizer import load

REWARD_MODEL = "reward_model"
JUDGE = "judge"


def asked_models(cfg: DictConfig) -> dict[str, Parent]:
    """By the key of `stage` that names them, which is also their entry in run.json. Raises UserError where there is no
    such model, and where a reward needs one that is not named."""
    plain = config.resolved(cfg)
    stage, rewards = plain["stage"], reward_names(plain)
    found = dict[str, Parent]()
    if REWARD_MODEL in stage and REWARD_MODEL in rewards:
        path = stage[REWARD_MODEL]["path"]
        if path is None:
            raise UserError(
                "a reward is 'reward_model', and stage.reward_model.path is null: type stage.reward_model.path=RUN, a "
                "run of stage=reward (or a folder or hub id of such a model), or name another reward; "
                f"{finished_runs()}"
            )
        found[REWARD_MODEL] = scoring_model(path, key="stage.reward_model.path")
    if JUDGE in stage and rewards & set(JUDGED) and stage[JUDGE]["url"] is None:
        found[JUDGE] = judging_model(stage[JUDGE]["model"], key="stage.judge.model")
    return found


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


def judging_model(name: str, *, key: str) -> Parent:
    """The judge that `key` names. Raises UserError for one that does not answer, or is no chat model."""
    found = find_parent(name, key=key)
    if found.model.score_head:
        raise UserError(
            f"{key}={name} ends in a score, as a reward model does, and answers nothing: type "
            f"stage.rewards=reward_model stage.reward_model.path={name}, or name a model that predicts tokens"
        )
    if found.tokenizer is None or not load(found.tokenizer).hf.chat_template:
        raise UserError(
            f"{key}={name} has no tokenizer with a chat template, by which it would be asked: name a model that was "
            "fine-tuned to answer (a run of stage=sft, or an instruct model)"
        )
    return found
