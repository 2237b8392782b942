"""What of the values of stage=rlaif does not work together, and what it holds beside the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lifecycle.stages.preference import settings as preference
from lifecycle.stages.reinforcement import settings


def frozen_copies(config: Mapping[str, Any]) -> int:
    """Of the weights, that a run of this config holds beside its own: a reference."""
    stage = config["stage"]
    if stage.get("optimise") != "online_dpo":
        return settings.frozen_copies(config)
    return preference.frozen_copies({**config, "stage": stage["online_dpo"]})


def trained_copies(config: Mapping[str, Any]) -> int:
    """Numbers in fp32 that a run of this config keeps of each weight: a refreshed reference, which pairs have none
    of."""
    return settings.trained_copies(config) if config["stage"].get("optimise") != "online_dpo" else 0


def faults(config: Mapping[str, Any]) -> list[str]:
    """A line for each."""
    found, stage = settings.faults(config), config["stage"]
    if stage.get("optimise") != "online_dpo" or not isinstance(stage.get("online_dpo"), Mapping):
        return found
    own = stage["online_dpo"]
    names = set(preference.weights_of(own.get("loss")))
    if unfit := names & (preference.UNPAIRED | preference.SORTING):
        return [
            *found,
            f"stage.online_dpo.loss has {', '.join(sorted(unfit))}, which is no loss of a pair alone: type "
            "stage.online_dpo.loss=sigmoid, or another loss of stage=dpo",
        ]
    if own.get("reference") == "cached":
        found.append(
            "stage.online_dpo.reference is cached, and the answers of a step are new ones: type "
            "stage.online_dpo.reference=live"
        )
    if where := settings.of_one_sample(stage):
        found.append(f"{where} is 1, and a pair is made of two samples: give it 4, or type stage.optimise=grpo")
    as_dpo = {**config, "stage": {**own, "view": "preference"}}
    return [*found, *(line.replace("stage.", "stage.online_dpo.") for line in preference.faults(as_dpo))]
