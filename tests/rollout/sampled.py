"""A small model, prompts and settings that the tests of the engine share, and what a rollout should hold."""

import random
from typing import Any

from tests.rollout.naive import score
from tests.toy import toy

from lifecycle.batch import Rollout
from lifecycle.model import Decoder
from lifecycle.rollout import Sampling

CONFIG = toy(width=32, ffn_width=48, init_std=0.3)


def prompts(count: int, *, longest: int = 20, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(96) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def settings(**changes: Any) -> Sampling:
    return Sampling(**{"max_new_tokens": 12, **changes})


def completions(rollout: Rollout) -> dict[tuple[int, int], list[int]]:
    """By prompt number and sample."""
    names = zip(rollout.prompt_id.tolist(), rollout.sample.tolist(), strict=True)
    return {name: rollout.completion(row) for row, name in enumerate(names)}


def mismatch(model: Decoder, rollout: Rollout, sampling: Sampling) -> float:
    """The greatest difference from a fresh scoring pass, over all numbers of all tokens."""
    worst = 0.0
    for row, prompt in enumerate(rollout.prompts):
        ids, mask = rollout.completion(row), rollout.exists[row]
        fresh = score(model, prompt, ids, rollout.rows([row]).kept.first(len(ids)), sampling)
        held = (rollout.logprobs, rollout.full_logprobs, rollout.entropy)
        worst = max([worst, *(float((a - b[row][mask]).abs().max()) for a, b in zip(fresh, held, strict=True))])
    return worst
