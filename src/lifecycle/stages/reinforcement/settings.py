"""The keys that the stages of reinforcement learning share, and what of them does not work together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from lifecycle.bounds import Count, Every, FromZero, NotNegative, PartOrAll, PartOrNone, Positive
from lifecycle.losses.policy.advantages import ACROSS_PROMPTS, AdvantageName
from lifecycle.losses.policy.kl import KlName
from lifecycle.losses.policy.masks import SamplerMasks
from lifecycle.losses.policy.normalisers import NormaliserName
from lifecycle.losses.policy.objectives import Ratio, RatioName
from lifecycle.rewards.graded import GradingKeys
from lifecycle.rewards.judge.faults import faults as judge_faults
from lifecycle.rewards.judge.settings import JudgeKeys
from lifecycle.rollout.drawing import DrawingKeys
from lifecycle.rollout.environments.named import EnvironmentKeys, fault_of
from lifecycle.stages.reinforcement.reward_names import faults_of


@dataclass(frozen=True, kw_only=True)
class KlKeys:
    """Distance from a reference, the parent at first. kind: how it is estimated. coefficient: its weight in the loss;
    0: no reference is asked. target: KL of a token in nats that the coefficient is moved towards; None: it stays.
    horizon: samples, the more the slower it moves. refresh_every: steps after which the reference becomes the policy;
    None: it stays the parent. refresh_mix: the policy's share of it then, the rest is the reference before."""

    kind: KlName
    coefficient: NotNegative
    target: Positive | None
    horizon: Positive
    refresh_every: Count | None
    refresh_mix: PartOrAll


@dataclass(frozen=True, kw_only=True)
class SamplingKeys:
    """How a step's samples come about.

    slots: sequences decoded at a time. updates_per_rollout: updates of the weights, each on a part of the prompts.
    passes_per_rollout: how often each sample is used. drop_solved, varying_prompts: see choice_of_prompts.py.
    keep_rollouts: steps between those whose samples are written; None: none are. head_dtype: of the product that gives
    logits, where it is wider; None: as others. environment: what answers in between. keep_routing: whether tokens are
    trained through the experts visited in sampling. keep_engine: whether it stays in updates; None: see KeptEngine.
    """

    sampling: DrawingKeys
    slots: Count
    updates_per_rollout: Count
    passes_per_rollout: Count
    drop_solved: bool
    varying_prompts: Count | None
    keep_rollouts: Every
    head_dtype: Literal["float32"] | None
    environment: EnvironmentKeys
    keep_routing: bool
    keep_engine: bool | None

    @property
    def head(self) -> torch.dtype | None:
        """The dtype of the product that gives logits; None: that of the others."""
        return None if self.head_dtype is None else torch.float32


@dataclass(frozen=True, kw_only=True)
class RewardModelKeys:
    """The reward `reward_model`: what a model of stage=reward, or one like it, gives an answer.

    path: the model; None where no reward is by one. reads_to: where its score is read: at the token that ends the
    answer (`turn`), or at the last one that its chat template writes (`text`); auto: `turn` for a run of ours, else
    `text`. mean, std: the mark is (score - mean) / std, ... clip: ... within minus and plus this; None: no bound.
    sigmoid: the mark is that of it, 0 to 1. unfinished: mark of an answer that was cut off; None: it is read as if it
    had ended there.
    """

    path: str | None
    reads_to: Literal["auto", "turn", "text"]
    mean: float
    std: Positive
    clip: Positive | None
    sigmoid: bool
    unfinished: float | None


@dataclass(frozen=True, kw_only=True)
class PreflightKeys:
    """Samples of the policy as it stands, before the first update of a new run. prompts: at most; 0: none. samples: of
    each. refuse_below, warn_below: a share of the completions that stop, of those that a grader can read, and of the
    prompts whose samples differ in their reward; below the first the run is refused (0: it never is)."""

    prompts: FromZero
    samples: Count
    refuse_below: PartOrNone
    warn_below: PartOrNone


@dataclass(frozen=True, kw_only=True)
class RewardKeys:
    """Rewards whose sum is that of a sample: a name, or several with their weights; a source may name its own.
    overlong_buffer: tokens before the most new ones over which a penalty for length grows to 1; None: there is none.
    preflight: how they are looked at before the first update."""

    rewards: str | dict[str, float]
    grading: GradingKeys
    reward_model: RewardModelKeys
    judge: JudgeKeys
    overlong_buffer: Count | None
    preflight: PreflightKeys

    @property
    def weights(self) -> dict[str, float]:
        """Each with its weight."""
        return {self.rewards: 1.0} if isinstance(self.rewards, str) else self.rewards


@dataclass(frozen=True, kw_only=True)
class PolicyKeys:
    """What the policy is trained on: see `losses.policy`. length: of the normaliser `constant`; None: the most new
    tokens. mask_unfinished: whether samples that were cut off are left out. entropy: weight of the entropy; with
    entropy_target the first one, which moves by entropy_delta a step, up to entropy_most (`losses.policy.entropy`)."""

    advantage: AdvantageName
    ratio: RatioName
    clip_low: PartOrAll | None
    clip_high: Positive | None
    dual_clip: Positive | None
    ratio_cap: Positive | None
    tau_positive: Positive
    tau_negative: Positive
    normaliser: NormaliserName
    length: Count | None
    entropy: NotNegative
    entropy_target: Positive | None
    entropy_delta: Positive
    entropy_most: Positive
    mask_unfinished: bool
    masks: SamplerMasks
    kl: KlKeys

    @property
    def bounded(self) -> Ratio:
        """The objective with its bounds."""
        return Ratio(
            kind=self.ratio,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual_clip=self.dual_clip,
            ratio_cap=self.ratio_cap,
            tau_positive=self.tau_positive,
            tau_negative=self.tau_negative,
        )


def frozen_copies(config: Mapping[str, Any]) -> int:
    """Of the weights, that a run of this config holds beside its own: a reference."""
    stage = config["stage"]
    return int(weighs_distance(stage) and not config.get("adapter") and not trained_copies(config))


def weighs_distance(stage: Mapping[str, Any]) -> bool:
    """Whether the distance from a reference has a weight in the run, or in a phase of it."""
    weights = [(stage.get("kl") or {}).get("coefficient"), *(one.get("kl_coefficient") for one in _phases(stage))]
    return any(weights)


def trained_copies(config: Mapping[str, Any]) -> int:
    """Numbers in fp32 that a run of this config keeps of each weight, and in its checkpoints: a refreshed reference.
    Where weights are sharded it counts as a frozen copy, which is sharded, too."""
    keys = config["stage"].get("kl") or {}
    refreshed = weighs_distance(config["stage"]) and keys.get("refresh_every") and not config.get("adapter")
    return int(bool(refreshed) and (config.get("hardware") or {}).get("strategy") != "fsdp")


def faults(config: Mapping[str, Any]) -> list[str]:
    """Values that do not work together."""
    stage = config["stage"]
    found = [*_of_samples(config), *_refresh_faults(config), *_moves_nothing(stage), *_names_nothing(config)]
    found += faults_of(_named(config))
    return [*found, *_unbounded(config), *_environment(config), *judge_faults(stage, reward_names(config))]


def _of_samples(config: Mapping[str, Any]) -> list[str]:
    """Samples that there cannot be, or that could not be trained on."""
    stage, found = config["stage"], list[str]()
    sampling: Mapping[str, Any] = stage.get("sampling") or {}
    new: Any
    prompts, updates = stage.get("prompts_per_step"), stage.get("updates_per_rollout")
    if _numbers(prompts, updates) and updates > prompts:
        found.append(
            f"stage.updates_per_rollout is {updates}, and each update takes an equal part of the step's {prompts} "
            f"prompts: type stage.updates_per_rollout={prompts} or less (stage.passes_per_rollout uses them again)"
        )
    new, length = sampling.get("max_new_tokens"), stage.get("sequence_length")
    if _numbers(new, length) and new >= length:
        found.append(
            f"stage.sampling.max_new_tokens is {new}, and a prompt with its completion has at most "
            f"stage.sequence_length={length} positions: raise that, or lower the other"
        )
    if sampling.get("temperature") == 0:
        found.append(
            "stage.sampling.temperature is 0, which draws one completion for all samples of a prompt: there would "
            "be nothing to compare; type stage.sampling.temperature=1"
        )
    if sampling.get("repetition_penalty", 1) != 1:
        found.append(
            "stage.sampling.repetition_penalty changes the distribution that samples are drawn from, and the policy's "
            "own is trained: type stage.sampling.repetition_penalty=1"
        )
    buffer = stage.get("overlong_buffer")
    if _numbers(buffer, new) and buffer > new:
        found.append(
            f"stage.overlong_buffer is {buffer} tokens of the {new} that a completion may have "
            f"(stage.sampling.max_new_tokens): type stage.overlong_buffer={max(1, new // 5)}"
        )
    return found


def _names_nothing(config: Mapping[str, Any]) -> list[str]:
    """Rewards without a weight, or with none that is a number."""
    found = list[str]()
    for where, held in ((where, held) for where, held in _named(config) if isinstance(held, Mapping)):
        if not any(held.values()):
            found.append(f"{where} names nothing that counts: type '{where}={{choice: 1}}', or others of its names")
        if odd := [f"{name}: {w}" for name, w in held.items() if isinstance(w, float) and not math.isfinite(w)]:
            found.append(f"{where} has {odd[0]}, which is no weight: give it a number, as {{choice: 1, format: 0.1}}")
    return found


def _moves_nothing(stage: Mapping[str, Any]) -> list[str]:
    """A target that nothing is moved towards, and groups of one."""
    found, target = list[str](), (stage.get("kl") or {}).get("target")
    if target is not None and not weighs_distance(stage):
        found.append(
            f"stage.kl.target is {target}, and stage.kl.coefficient is 0, from which no factor moves it: type "
            "stage.kl.coefficient=0.01, or stage.kl.target=null"
        )
    kind, within_groups = stage.get("advantage"), {*get_args(AdvantageName)} - {*ACROSS_PROMPTS}
    if (where := of_one_sample(stage)) and kind in within_groups and stage.get("optimise") != "online_dpo":
        found.append(
            f"{where} is 1, and stage.advantage={kind} compares the samples of a prompt with one another, so that "
            "nothing would be learnt: give it 8, or type stage.advantage=batch"
        )
    return found


def of_one_sample(stage: Mapping[str, Any]) -> str | None:
    """The key by which a prompt has one sample, in the run or in a phase of it."""
    if stage.get("samples_per_prompt") == 1:
        return "stage.samples_per_prompt"
    lines = [number for number, line in enumerate(_phases(stage)) if line.get("samples_per_prompt") == 1]
    return f"stage.phases[{lines[0]}].samples_per_prompt" if lines else None


def reward_names(config: Mapping[str, Any]) -> set[str]:
    """The rewards of a stage and of its sources."""
    return {name for _, one in _named(config) for name in ([one] if isinstance(one, str) else one or ())}


def _named(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The keys that name rewards, with what they hold."""
    sources = ((config.get("data") or {}).get("sources") or {}).items()
    own = [(f"data.sources.{name}.rewards", one.get("rewards")) for name, one in sources if isinstance(one, Mapping)]
    return [("stage.rewards", config["stage"].get("rewards")), *own]


def _unbounded(config: Mapping[str, Any]) -> list[str]:
    """A reward that has no full mark, where one is asked for."""
    model = config["stage"].get("reward_model") or {}
    found, names = list[str](), reward_names(config)
    critic = config["stage"].get("critic") or {}
    if "reward_model" not in names and critic.get("init_from") != "reward_model" and model.get("path") is not None:
        found.append(
            f"stage.reward_model.path is {model['path']}, and no reward is reward_model: type "
            "stage.rewards=reward_model, or stage.reward_model.path=null"
        )
    for name, what in (("reward_model", "a reward model"), ("environment", "an environment")):
        if name in names and config["stage"].get("drop_solved") is True:
            found.append(
                f"stage.drop_solved leaves out prompts whose answers all have the full reward, and {what} gives none: "
                "type stage.drop_solved=false"
            )
    return found


def _environment(config: Mapping[str, Any]) -> list[str]:
    """A name that is none, and a reward that nothing gives."""
    name = (config["stage"].get("environment") or {}).get("name")
    if isinstance(name, str) and (fault := fault_of(name)):
        return [fault]
    if name is None and "environment" in reward_names(config):
        return [
            "the reward environment is what an environment gives, and there is none: type "
            "stage.environment.name=calculator, or MODULE:CLASS of your own, or another reward"
        ]
    return []


def _refresh_faults(config: Mapping[str, Any]) -> list[str]:
    stage = config["stage"]
    keys, found = stage.get("kl") or {}, list[str]()
    every, mix = keys.get("refresh_every"), keys.get("refresh_mix")
    if every is None:
        return found
    if not weighs_distance(stage):
        found.append(
            f"stage.kl.refresh_every is {every}, and stage.kl.coefficient is 0, so that no reference is held: type "
            "stage.kl.coefficient=0.01, or stage.kl.refresh_every=null"
        )
    if config.get("adapter") and mix != 1:
        found.append(
            f"stage.kl.refresh_mix is {mix}, and the mean of two adapters is no adapter of their rank: type "
            "stage.kl.refresh_mix=1, or adapter=none"
        )
    if any(line.get("rope_theta") for line in _phases(stage)):
        found.append(
            "stage.phases has rope_theta, and a refreshed reference is of several of them: leave it out, or type "
            "stage.kl.refresh_every=null"
        )
    return found


def notices(config: Mapping[str, Any]) -> list[str]:
    """What is set and cannot do anything, or not what one may think, though it is no fault."""
    return [*_cannot_fire(config["stage"]), *_equally_long(config["stage"])]


def _equally_long(stage: Mapping[str, Any]) -> list[str]:
    """The mean over the tokens of few groups, under a bound on the norm."""
    varying, clip = stage.get("varying_prompts"), (stage.get("optimizer") or {}).get("grad_clip")
    averages = stage.get("normaliser") == "token" and stage.get("optimise") != "online_dpo"
    if varying is None or clip is None or not averages:
        return []
    return [
        f"stage.varying_prompts={varying} trains on few groups, and stage.normaliser=token takes the mean over their "
        "tokens alone, which may be ten times that over all: the bound on the gradient's norm "
        f"(stage.optimizer.grad_clip={clip:g}) then makes every step equally long, however little it has to say; "
        "stage.normaliser=constant with stage.optimizer.grad_clip=null lets few groups move little"
    ]


def _cannot_fire(stage: Mapping[str, Any]) -> list[str]:
    """A mask whose ratio is 1."""
    masks, updates = stage.get("masks") or {}, (stage.get("updates_per_rollout"), stage.get("passes_per_rollout"))
    if masks.get("off_policy_threshold") is None or updates != (1, 1):
        return []
    return [
        "one update a rollout (stage.updates_per_rollout=1): the weights that are trained are those that drew the "
        "samples, so the ratio is 1, nothing is clipped, and the off-policy mask "
        f"(stage.masks.off_policy_threshold={masks['off_policy_threshold']}) cannot fire"
    ]


def _phases(stage: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [line for line in stage.get("phases") or [] if isinstance(line, Mapping)]


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)
