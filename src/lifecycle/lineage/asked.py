"""Models that a stage asks beside its own, named as `init_from` names a parent: RUN, RUN@STEP, FOLDER, OWNER/NAME.

    stage.reward_model.path=liking             asked where a reward is `reward_model`
    stage.judge.model=chats                    ... or `judge` or `preferred`, by no endpoint
    stage.critic.init_from=reward_model        what a separate critic begins as: the reward model, or another, by name

Tokenizer and chat template are its own, and may be others than those of the run.
"""

from __future__ import annotations

from omegaconf import DictConfig

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, find_parent, finished_runs
from lifecycle.rewards.judge.verdicts import JUDGED
from lifecycle.stages.beside.critic import CRITIC
from lifecycle.stages.reinforcement.reward_names import REWARD_MODEL
from lifecycle.stages.reinforcement.settings import reward_names
from lifecycle.tokenizer.tokenizer import load

JUDGE = "judge"


def asked_models(cfg: DictConfig) -> dict[str, Parent]:
    """By the key of `stage` that names them, which is also their entry in run.json. Raises UserError where there is no
    such model, and where a reward needs one that is not named."""
    plain = config.resolved(cfg)
    stage, rewards = plain["stage"], reward_names(plain)
    found = dict[str, Parent]()
    path = (stage.get(REWARD_MODEL) or {}).get("path")
    if REWARD_MODEL in stage and REWARD_MODEL in rewards:
        if path is None:
            raise UserError(
                "a reward is 'reward_model', and stage.reward_model.path is null: type stage.reward_model.path=RUN, a "
                "run of stage=reward (or a folder or hub id of such a model), or name another reward; "
                f"{finished_runs()}"
            )
        found[REWARD_MODEL] = scoring_model(path, key="stage.reward_model.path")
    if JUDGE in stage and rewards & set(JUDGED) and stage[JUDGE]["url"] is None:
        found[JUDGE] = judging_model(stage[JUDGE]["model"], key="stage.judge.model")
    if (began_as := (stage.get(CRITIC) or {}).get("init_from")) is not None:
        same = began_as == REWARD_MODEL
        named, key = (path, "stage.reward_model.path") if same else (began_as, "stage.critic.init_from")
        found[CRITIC] = critic_of(scoring_model(str(named), key=key), cfg)
    return found


def critic_of(found: Parent, cfg: DictConfig) -> Parent:
    """The model that a critic begins as. Raises UserError where its positions are fewer than a row's."""
    length = config.build_limits(cfg.stage).sequence_length
    if length > found.model.max_positions:
        raise UserError(
            f"stage.sequence_length is {length}, and {found.name}, which the critic begins as, has "
            f"{found.model.max_positions} positions: type stage.sequence_length={found.model.max_positions}, or "
            "stage.critic.init_from=null"
        )
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
