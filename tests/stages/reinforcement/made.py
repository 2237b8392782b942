"""A stage on groups of samples, at toy size: prompts, a tokenizer of letters, and a reward that differs by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from tests.rewards.judge.served import KEYS as JUDGE
from tests.stages.test_step import MODEL, optimization, stage
from tests.toy import toy
from torch import Tensor

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.batch.prompts import PLACES
from lifecycle.duration import Timeline
from lifecycle.losses.policy.masks import SamplerMasks
from lifecycle.model import ModelConfig, build
from lifecycle.rewards.graded import GradingKeys
from lifecycle.rollout.drawing import DrawingKeys
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.stages.base import Stage
from lifecycle.stages.beside.critic import CriticKeys
from lifecycle.stages.grpo import Grpo
from lifecycle.stages.ppo import Ppo
from lifecycle.stages.reinforcement.acting.scoring import SampleScores
from lifecycle.stages.reinforcement.learning.experience import place_of
from lifecycle.stages.reinforcement.learning.values import ValueKeys
from lifecycle.stages.reinforcement.settings import (
    KlKeys,
    PolicyKeys,
    PreflightKeys,
    RewardKeys,
    RewardModelKeys,
    SamplingKeys,
)
from lifecycle.stages.run.setup import ParentWeights

POLICY: ModelConfig = replace(MODEL, init_std=0.3)
LONG = toy(width=32, heads=2, kv_heads=1, head_dim=16, ffn_width=64, vocab_size=64, init_std=0.3, max_positions=256)
DRAWING = DrawingKeys(
    max_new_tokens=9, temperature=0.8, top_k=None, top_p=None, min_p=None, repetition_penalty=1.0, stop=[]
)
GRADING = GradingKeys(
    workers=1, cpu_s=5, wall_s=30.0, memory_mb=512, file_mb=1, tags=["think"], target_words=4, repeat_words=3
)
PREFLIGHT = PreflightKeys(prompts=32, samples=8, refuse_below=0.02, warn_below=0.2)
NO_MODEL = RewardModelKeys(path=None, reads_to="auto", mean=0.0, std=1.0, clip=None, sigmoid=False, unfinished=None)
GRADED = RewardKeys(
    rewards={"exact_match": 1.0},
    grading=GRADING,
    overlong_buffer=None,
    reward_model=NO_MODEL,
    judge=JUDGE,
    preflight=PREFLIGHT,
)
ALONE = EnvironmentKeys(name=None, max_turns=3, max_observation_tokens=3)
TALKS = replace(ALONE, name="tests.stages.reinforcement.talker:Talker")

KEYS = PolicyKeys(
    advantage="group_mean",
    ratio="token",
    clip_low=0.2,
    clip_high=0.2,
    dual_clip=None,
    ratio_cap=None,
    tau_positive=1.0,
    tau_negative=1.05,
    normaliser="token",
    length=None,
    entropy=0.0,
    entropy_target=None,
    entropy_delta=0.005,
    entropy_most=1.0,
    mask_unfinished=False,
    masks=SamplerMasks(),
    kl=KlKeys(kind="unbiased", coefficient=0.0, target=None, horizon=100.0, refresh_every=None, refresh_mix=1.0),
)


class Letters:
    """A tokenizer of 62 letters; what is above fills the matrix up."""

    vocab_size = 62
    end_ids = (0,)

    class hf:  # noqa: N801
        added_tokens_decoder: dict[int, Any] = {}

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        return "".join(chr(65 + i) for i in ids if i)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) - 65 for letter in text] for text in texts]


class ByTokens:
    """A reward that every completion has by its own tokens."""

    names: tuple[str, ...] = ("sum",)

    def told(self) -> dict[str, Tensor]:
        return {}

    def scores(self, stage: Stage, rollout: Rollout, prompts: PromptBatch) -> SampleScores:
        value = ((rollout.token_ids * rollout.exists).sum(1) % 7).double() / 7
        place = place_of(rollout)
        return SampleScores(names=["sum"], weights=[1.0], rewards=value[:, None], place=place, failed={}, timed_out={})


def prompts(step: int, sizes: Sequence[int] = (3, 7, 1, 5), *, first: int = 0) -> PromptBatch:
    drawn = torch.Generator().manual_seed(step)
    whole = [torch.randint(1, 62, (size,), generator=drawn).tolist() for size in sizes]
    return PromptBatch(
        number=step * PLACES + torch.arange(len(sizes)),
        id=[str(i) for i in range(len(sizes))],
        ids=whole,
        answer=["x"] * len(sizes),
        meta=[{} for _ in sizes],
        source_ids=torch.arange(len(sizes)) % 2,
    )


def parent(config: ModelConfig = POLICY, seed: int = 3) -> ParentWeights:
    def read() -> dict[str, Tensor]:
        return build(config, seed=seed).state_dict()

    return ParentWeights(read=read, sha256=lambda: "", cache=lambda: None)  # type: ignore[arg-type,return-value]


def grpo(
    *,
    samples: int = 4,
    steps: int = 3,
    drawing: DrawingKeys = DRAWING,
    updates: int = 1,
    passes: int = 1,
    drop_solved: bool = False,
    varying_prompts: int | None = None,
    keep_rollouts: int | None = None,
    head_dtype: Literal["float32"] | None = None,
    environment: EnvironmentKeys = ALONE,
    keep_routing: bool = False,
    keep_engine: bool | None = None,
    micro_tokens: int = 4096,
    model: ModelConfig = POLICY,
    lr: float = 1e-2,
    setup: dict[str, Any] | None = None,
    **keys: Any,
) -> Grpo:
    line = Timeline.even(steps, rows=4, row_length=24)
    line = replace(line, segments=tuple(replace(one, samples=samples) for one in line.segments))
    facts: dict[str, Any] = {
        "timeline": line,
        "tokenizer": Letters(),
        "tokens": 62,
        "micro_batch_tokens": micro_tokens,
        "source_rewards": [None, None],
        "parent": parent(model),
        **(setup or {}),
    }
    made = Grpo(
        model=model,
        optimization=optimization(lr),
        drawn=SamplingKeys(
            sampling=drawing,
            slots=5,
            updates_per_rollout=updates,
            passes_per_rollout=passes,
            drop_solved=drop_solved,
            varying_prompts=varying_prompts,
            keep_rollouts=keep_rollouts,
            head_dtype=head_dtype,
            environment=environment,
            keep_routing=keep_routing,
            keep_engine=keep_engine,
        ),
        graded=GRADED,
        policy=replace(KEYS, **keys),
        setup=replace(stage().setup_facts, **facts),
    )
    made.actor.scoring = ByTokens()  # type: ignore[assignment]
    return made


HEAD = CriticKeys(kind="head", init_from=None, lr=None, coefficient=0.5, clip=0.5, warmup_steps=0)
VALUES = ValueKeys(gamma=0.97, lam=0.9, whiten=True, kl_in="reward")


def ppo(
    *,
    steps: int = 3,
    updates: int = 1,
    passes: int = 1,
    micro_tokens: int = 4096,
    critic: CriticKeys = HEAD,
    values: ValueKeys = VALUES,
    environment: EnvironmentKeys = ALONE,
    model: ModelConfig = POLICY,
    lr: float = 1e-2,
    setup: dict[str, Any] | None = None,
    **keys: Any,
) -> Ppo:
    """With the facts of `grpo`, and a critic."""
    facts: dict[str, Any] = {"read_weights": lambda: build(model, seed=3).state_dict(), **(setup or {})}
    like = grpo(steps=steps, micro_tokens=micro_tokens, setup=facts, environment=environment, model=model)
    made = Ppo(
        model=model,
        optimization=optimization(lr),
        drawn=replace(like.actor.drawn, updates_per_rollout=updates, passes_per_rollout=passes),
        graded=GRADED,
        policy=replace(KEYS, **{"advantage": "none", "kl": replace(KEYS.kl, kind="k1"), **keys}),
        values=values,
        critic=critic,
        setup=like.setup_facts,
    )
    made.actor.scoring = ByTokens()  # type: ignore[assignment]
    return made
