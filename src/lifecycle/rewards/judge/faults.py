"""Values of `stage.judge` that do not work with others of the stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lifecycle.rewards.judge.verdicts import JUDGED, PREFERRED


def faults(stage: Mapping[str, Any], rewards: Collection[str]) -> list[str]:
    """A line for each. stage: its values. rewards: the names of those that it and its sources have."""
    judge: Mapping[str, Any] = stage.get("judge") or {}
    named = [name for name in JUDGED if name in rewards]
    model, url = judge.get("model"), judge.get("url")
    if not named:
        if model is None and url is None:
            return []
        key = "model" if model is not None else "url"
        return [
            f"stage.judge.{key} is {judge[key]}, and no reward is judge or preferred: type stage.rewards=judge, or "
            f"stage.judge.{key}=null"
        ]
    found = []
    if model is None:
        found.append(
            f"a reward is '{named[0]}', and stage.judge.model is null: type stage.judge.model=RUN (or a Hugging Face "
            "folder) for a model of yours, or stage.judge.url=http://HOST:PORT/v1 and the model's name there"
        )
    if url is None and judge.get("max_new_tokens") is None:
        found.append("stage.judge.max_new_tokens is null, and a local judge needs a number: type 512, or so")
    samples, pairs = stage.get("samples_per_prompt"), judge.get("pairs_per_prompt")
    if PREFERRED in named and isinstance(samples, int) and isinstance(pairs, int) and 2 * pairs < samples:
        found.append(
            f"stage.judge.pairs_per_prompt is {pairs}, and of stage.samples_per_prompt={samples} samples some would be "
            f"in no pair: type stage.judge.pairs_per_prompt={-(-samples // 2)} or more"
        )
    return found
