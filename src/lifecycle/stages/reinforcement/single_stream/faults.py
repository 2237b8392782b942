"""Values of stage=spo that do not work together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lifecycle.stages.reinforcement import settings


def faults(config: Mapping[str, Any]) -> list[str]:
    """A line for each."""
    stage = config["stage"]
    asked, chosen = stage.get("prompts_per_step"), stage.get("chosen_per_step")
    found = settings.faults({**config, "stage": {**stage, "prompts_per_step": chosen}})
    if isinstance(asked, int) and isinstance(chosen, int) and chosen > asked:
        found.append(
            f"stage.chosen_per_step is {chosen}, and they are chosen from the step's stage.prompts_per_step={asked}: "
            f"type stage.prompts_per_step={4 * chosen}"
        )
    return [*found, *_of_groups(stage), *_of_rewards(stage, settings.reward_names(config))]


def _of_groups(stage: Mapping[str, Any]) -> list[str]:
    """What compares samples of one prompt, of which there is one; and a temperature that moves."""
    found = list[str]()
    if (samples := stage.get("samples_per_prompt", 1)) != 1:
        found.append(
            f"stage.samples_per_prompt is {samples}, and stage=spo compares one answer with the tracker of its prompt: "
            "take stage=grpo for groups of samples, or type stage.samples_per_prompt=1"
        )
    phases = [line for line in stage.get("phases") or [] if isinstance(line, Mapping)]
    if any(line.get("samples_per_prompt", 1) not in (1, None) for line in phases):
        found.append(
            "stage.phases has samples_per_prompt, and stage=spo compares one answer with the tracker of its prompt: "
            "leave it out, or take stage=grpo for groups of samples"
        )
    if any(line.get("temperature") for line in phases):
        found.append(
            "stage.phases has temperature, and stage=spo measures how far the policy has moved on the last answer to a "
            "prompt, at the temperature of its draw: leave it out, and set stage.sampling.temperature for the whole run"
        )
    for key, wanted, typed in (
        ("advantage", "batch", "batch"),
        ("drop_solved", False, "false"),
        ("varying_prompts", None, "null"),
    ):
        if (value := stage.get(key, wanted)) != wanted:
            found.append(
                f"stage.{key} is {value}, which compares samples of one prompt: stage=spo has one, so type "
                f"stage.{key}={typed}"
            )
    return found


def _of_rewards(stage: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Rewards that are not from 0 to 1. names: of the rewards of all sources."""
    found = list[str]()
    if stage.get("overlong_buffer") is not None:
        found.append(
            "stage.overlong_buffer gives rewards below 0, and stage=spo counts rewards from 0 to 1 as successes: type "
            "stage.overlong_buffer=null"
        )
    model = stage.get("reward_model") or {}
    if "reward_model" in names and not model.get("sigmoid"):
        found.append(
            "a reward is reward_model, whose marks have no bounds, and stage=spo counts rewards from 0 to 1 as "
            "successes: type stage.reward_model.sigmoid=true"
        )
    if isinstance(least := model.get("unfinished"), int | float) and not 0 <= least <= 1:
        found.append(
            f"stage.reward_model.unfinished is {least}, and stage=spo counts rewards from 0 to 1 as successes: type "
            "stage.reward_model.unfinished=0"
        )
    rewards = stage.get("rewards")
    if isinstance(rewards, Mapping):
        weights = [w for w in rewards.values() if isinstance(w, int | float)]
        if any(w < 0 for w in weights) or sum(weights) > 1 + 1e-9:
            found.append(
                f"stage.rewards has weights {weights}, and stage=spo counts their sum as a success from 0 to 1: give "
                "weights of 0 or more that add up to 1 at most"
            )
    return found
