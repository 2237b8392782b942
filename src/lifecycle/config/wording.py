"""What a key wants, in words: its type, the bounds of its numbers, an example to type, and the nearest spelling."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from lifecycle.bounds import Bounds

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "null",
}
EXAMPLES: dict[Any, str] = {bool: "true", int: "N", float: "0.1", str: "NAME", Path: "PATH", type(None): "null"}

OTHER_NAMES = {
    "learning_rate": "stage.optimizer.lr",
    "warmup_ratio": "stage.schedule.warmup_fraction",
    "lr_scheduler_type": "stage.schedule.name",
    "num_epochs": "stage.max_epochs",
    "num_train_epochs": "stage.max_epochs",
    "max_seq_length": "stage.sequence_length",
    "max_seq_len": "stage.sequence_length",
    "max_length": "stage.sequence_length",
    "cutoff_len": "stage.sequence_length",
    "block_size": "stage.sequence_length",
    "loss_type": "stage.loss",
    "lora_rank": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "save_steps": "checkpoint.every_steps",
    "output_dir": "run",
    "out_dir": "run",
    "model_name_or_path": "init_from",
    "num_generations": "stage.samples_per_prompt",
    "group_size": "stage.samples_per_prompt",
    "max_completion_length": "stage.sampling.max_new_tokens",
    "max_new_tokens": "stage.sampling.max_new_tokens",
    "temperature": "stage.sampling.temperature",
    "beta": "stage.kl.coefficient",
    "kl_coef": "stage.kl.coefficient",
    "kl_loss_coef": "stage.kl.coefficient",
    "epsilon": "stage.clip_low",
    "epsilon_high": "stage.clip_high",
    "delta": "stage.dual_clip",
    "num_iterations": "stage.passes_per_rollout",
    "ppo_epochs": "stage.passes_per_rollout",
    "num_ppo_epochs": "stage.passes_per_rollout",
    "mask_truncated_completions": "stage.mask_unfinished",
    "importance_sampling_level": "stage.ratio",
    "ref_model_sync_steps": "stage.kl.refresh_every",
    "ref_model_mixup_alpha": "stage.kl.refresh_mix",
    "entropy_coef": "stage.entropy",
    "reward_funcs": "stage.rewards",
    "reward_model_path": "stage.reward_model.path",
    "eval_steps": "validation.every_steps",
}
"""By the name in TRL, verl, transformers, LitGPT, nanoGPT or LLaMA-Factory: the key here, of the same meaning."""

OTHER_WAYS = {
    "batch_size": "stage.global_batch_tokens, in tokens: sequences of a step times stage.sequence_length",
    "global_batch_size": "stage.global_batch_tokens, in tokens: sequences of a step times stage.sequence_length",
    "micro_batch_size": "hardware.micro_batch_tokens, in tokens",
    "per_device_train_batch_size": "hardware.micro_batch_tokens, in tokens (a step has stage.global_batch_tokens)",
    "gradient_accumulation_steps": "what follows from stage.global_batch_tokens and hardware.micro_batch_tokens",
    "lora": "a choice: adapter=lora",
    "use_lora": "a choice: adapter=lora",
    "use_peft": "a choice: adapter=lora",
    "qlora": "a choice: adapter=qlora",
    "report_to": "a choice: logger=csv, logger=tensorboard or logger=wandb",
    "dataset": "data=files data.sources.mine.path=FILES",
    "dataset_name": "data=files data.sources.mine.hub=OWNER/NAME",
    "scale_rewards": "stage.advantage: group_std, batch_std, or group_mean for none",
    "reward_weights": "a part of the rewards: stage.rewards='{NAME: 1, OTHER: 0.1}'",
    "max_prompt_length": "stage.sequence_length less stage.sampling.max_new_tokens: longer prompts are left out",
    "steps_per_generation": "stage.updates_per_rollout, the updates that the samples of a step are split into",
    "log_completions": "stage.keep_rollouts, the steps from one whose samples are kept to the next",
}
"""By the same names: what is counted or chosen in another way here."""

FEW = 5  # choices with "or" between all of them
OFF = ("false", "none", "off", "no")
ALIKE = 0.7  # a word of three letters with another one is no slip: dpo is not ipo


def nearest(word: str, options: Iterable[str], likeness: float = 0.6) -> str | None:
    """The option that `word` was probably meant to be. likeness: as `difflib` counts it, at least."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=likeness)
    return close[0] if close else None


def describe(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([describe(inner[0]), *map(str, bounds_of(hint))])
    if origin in (Union, types.UnionType):
        return _either(inner)
    if origin is Literal:
        choices = [typed(choice) for choice in inner]
        return " or ".join(choices if len(choices) <= FEW else [", ".join(choices[:-1]), choices[-1]])
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"a list of {len(inner)}: {', '.join(describe(member) for member in inner)}"
    if origin in (list, tuple, collections.abc.Sequence):
        return f"a list of ({describe(inner[0])})"
    if origin in (dict, collections.abc.Mapping) or hint is dict:
        return "a mapping"
    if is_dataclass(hint):
        return f"a mapping with {', '.join(field.name for field in dataclasses.fields(hint))}"
    return WORDS.get(hint, "a value" if hint is Any else getattr(hint, "__name__", str(hint)))


def _either(members: Iterable[Any]) -> str:
    """Types of which each will do; a list of what was named before is one "of them"."""
    said = list[str]()
    for member in members:
        words = describe(member)
        said.append("a list of them" if any(words == f"a list of ({one})" for one in said) else words)
    return " or ".join(dict.fromkeys(said))


def wanted(hint: Any, key: str, value: Any = None, default: Any = None) -> str:
    """What the type of `key` takes, and how that is typed; `value` came, its config file says `default`."""
    in_list = any(part.isdigit() for part in key.split("."))  # which the command line replaces as a whole
    known = None if hint is bool else _plain(default)  # 1 for a flag means true, whatever its file says
    example = None if in_list else _meant(hint, value) or known or _example(hint, value)
    return f"wanted {describe(hint)}" + (f": type {key}={example}" if example else "")


def _meant(hint: Any, value: Any) -> str | None:
    """The choice that `value` is nearly spelt as, or `null` for what switches off."""
    if type(None) in get_args(hint) and str(value).lower() in OFF:
        return "null"
    choices = [one for member in (hint, *get_args(hint)) if get_origin(member) is Literal for one in get_args(member)]
    return nearest(str(value), map(str, choices), ALIKE) if isinstance(value, str) else None


def _plain(value: Any) -> str | None:
    """A number, a word or a list of them as it is typed; None for what the shell or Hydra would read in another way."""
    if isinstance(value, list):
        items = [_plain(item) for item in value]
        return f"'[{','.join(map(str, items))}]'" if items and None not in items else None
    word = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    return typed(value) if word or isinstance(value, bool | int | float) else None


def _example(hint: Any, value: Any) -> str | None:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next((b.example for b in bounds_of(hint) if inner[0] is float), _example(inner[0], value))
    if origin in (Union, types.UnionType):
        examples = [example for member in inner if (example := _example(member, value))]
        # Its files hold no number, and one of ours may do harm (0.1 as a learning rate): null lets the run choose.
        number_or_null = "null" in examples and not re.search("[A-Za-z]", examples[0])
        return "null" if number_or_null else next(iter(examples), None)
    if origin is Literal:
        return nearest(str(value), [str(choice) for choice in inner], ALIKE) or typed(inner[0])
    if origin in (list, tuple, collections.abc.Sequence):
        items = [_example(member, None) for member in inner if member is not Ellipsis]
        return f"'[{','.join(item for item in items if item)}]'"
    return EXAMPLES.get(hint)


def typed(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def bounds_of(hint: Any) -> list[Bounds]:
    """Those of an annotation."""
    return [one for one in get_args(hint)[1:] if isinstance(one, Bounds)]


def shown(value: Any) -> str:
    """What came, in words."""
    if value is None or isinstance(value, bool):
        return typed(value)
    large = isinstance(value, int | float) and math.isfinite(value) and abs(value) >= 2**63
    return f"{value!r}, more than 64 bits hold" if large else repr(value)


def fits(value: Any) -> bool:
    """Whether a number is one that anything here can count with; True for what is no number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def is_dataclass(hint: Any) -> TypeGuard[type]:
    """Whether an annotation is one."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)
