"""What TRL's GRPOTrainer and RLOOTrainer make of given log-probabilities and rewards, as numbers in a file of tests.

    python tests/losses/parity/dump_trl_policy.py      in an environment with trl 1.16.0; writes trl_policy.json

TRL's own code runs: `_compute_loss` of both trainers with a model that answers with given log-probabilities, and, as
advantages and the ratios to the sampler are computed in the middle of a method that also samples, those lines of it,
cut out of its source by what they start and end with. Every tensor is float64.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SAMPLES, TOKENS, GROUP = 6, 7, 3
SETTINGS = {
    "low": 0.2,
    "high": 0.28,
    "delta": 1.6,
    "cap": 1.5,
    "gspo_low": 0.03,
    "gspo_high": 0.04,
    "tau_positive": 1.0,
    "tau_negative": 1.05,
    "beta": 0.3,
    "threshold": 0.05,
    "least": 0.7,
    "most": 1.3,
    "length": 9,
    "entropy": 0.02,
}
CASES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "bnpo": {"loss_type": "bnpo"},
    "dapo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "cispo": {"loss_type": "cispo", "epsilon_high": SETTINGS["cap"]},
    "sapo": {"loss_type": "sapo"},
    "gspo": {
        "importance_sampling_level": "sequence",
        "epsilon_low": SETTINGS["gspo_low"],
        "epsilon_high": SETTINGS["gspo_high"],
    },
    "delta": {"args": {"delta": SETTINGS["delta"]}},
    "k3": {"beta": SETTINGS["beta"]},
    "unbiased": {"beta": SETTINGS["beta"], "args": {"use_bias_correction_kl": True}},
    "off_policy": {"off_policy_mask_threshold": SETTINGS["threshold"]},
    "off_policy+k3": {"off_policy_mask_threshold": SETTINGS["threshold"], "beta": SETTINGS["beta"]},
    "truncated": {"vllm_importance_sampling_mode": "token_truncate"},
    "masked": {"vllm_importance_sampling_mode": "token_mask"},
    "truncated+k3": {"vllm_importance_sampling_mode": "token_truncate", "beta": SETTINGS["beta"]},
    "entropy": {"loss_type": "dapo", "_entropy_bonus_enabled": True},
}
ADVANTAGES = {
    "group_std": {"scale_rewards": "group"},
    "group_mean": {"scale_rewards": "none"},
    "batch_std": {"scale_rewards": "batch"},
    "gdpo": {"scale_rewards": "group", "multi_objective_aggregation": "normalize_then_sum"},
}


class Accelerator:
    """One process: what is gathered is what is there."""

    num_processes = 1
    sync_gradients = True

    def gather(self, value: Tensor) -> Tensor:
        return value

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def made() -> dict[str, Tensor]:
    """(S, T) log-probabilities now, before the update, of the sampler and of the reference; (S,) advantages."""
    generator = torch.Generator().manual_seed(0)
    shape = (SAMPLES, TOKENS)
    lengths = torch.tensor([7, 3, 5, 1, 6, 7])
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()

    def between(low: int, high: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).double() / 1000

    now = between(-4000, -600)
    old = now + between(-600, 500)
    return {
        "now": now,
        "old": old,
        "sampler": old + between(-400, 400),
        "reference": now + between(-500, 500),
        "entropy": between(0, 2000),
        "mask": mask,
        "advantages": torch.tensor([1.5, -0.5, -1.0, 0.8, 0.2, -1.0], dtype=torch.float64),
    }


def trainer(given: dict[str, Tensor], policy: Tensor, entropy: Tensor, **changed: Any) -> Any:
    """What `_compute_loss` reads of a trainer."""
    from trl import GRPOTrainer

    args: dict[str, Any] = {"delta": None, "use_bias_correction_kl": False, "steps_per_generation": 1}
    args |= {"sapo_temperature_pos": SETTINGS["tau_positive"], "sapo_temperature_neg": SETTINGS["tau_negative"]}
    facts: dict[str, Any] = {
        "_get_per_token_logps_and_entropies": lambda *_, **__: (policy, entropy, None),
        "get_off_policy_mask": GRPOTrainer.get_off_policy_mask,
        "model": SimpleNamespace(training=True),
        "accelerator": Accelerator(),
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": SETTINGS["low"],
        "epsilon_high": SETTINGS["high"],
        "beta": 0.0,
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "aux_loss_enabled": False,
        "use_vllm": "vllm_importance_sampling_mode" in changed,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_clip_min": SETTINGS["least"],
        "vllm_importance_sampling_clip_max": SETTINGS["most"],
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": SETTINGS["length"],
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "entropy_coef": SETTINGS["entropy"],
        "_metrics": {"train": defaultdict(list)},
    }
    return SimpleNamespace(**facts | changed | {"args": SimpleNamespace(**args | changed.get("args", {}))})


def grpo(given: dict[str, Tensor], **changed: Any) -> dict[str, Any]:
    """Loss and gradients by token."""
    from trl import GRPOTrainer

    policy, entropy = (given[name].clone().requires_grad_() for name in ("now", "entropy"))
    one = trainer(given, policy, entropy, **changed)
    inputs = {
        "prompt_ids": torch.ones(SAMPLES, 1, dtype=torch.long),
        "prompt_mask": torch.ones(SAMPLES, 1, dtype=torch.long),
        "completion_ids": torch.ones_like(given["mask"]),
        "completion_mask": given["mask"],
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "sampling_per_token_logps": given["sampler"],
        "ref_per_token_logps": given["reference"],
        "num_items_in_batch": given["mask"].sum(),
    }
    if one.use_vllm:
        inputs["importance_sampling_ratio"] = sampler_ratios(one, given)
    loss = GRPOTrainer._compute_loss(one, None, inputs)
    loss.backward()
    assert policy.grad is not None
    found = {"loss": float(loss.detach()), "gradient": policy.grad.tolist()}
    return found if entropy.grad is None else found | {"entropy_gradient": entropy.grad.tolist()}


def rloo(given: dict[str, Tensor]) -> dict[str, Any]:
    """Loss and gradient of RLOOTrainer, whose ratio is that of whole answers."""
    from trl import RLOOTrainer

    policy = given["now"].clone().requires_grad_()
    one = trainer(given, policy, given["entropy"])
    old = 1.5 * given["now"] - 0.5 * given["old"]
    inputs = {
        "prompt_ids": torch.ones(SAMPLES, 1, dtype=torch.long),
        "prompt_mask": torch.ones(SAMPLES, 1, dtype=torch.long),
        "completion_ids": torch.ones_like(given["mask"]),
        "completion_mask": given["mask"],
        "advantages": given["advantages"],
        "old_logps": (old * given["mask"]).sum(1),
    }
    loss = RLOOTrainer._compute_loss(one, None, inputs)
    loss.backward()
    assert policy.grad is not None
    return {"loss": float(loss.detach()), "gradient": policy.grad.tolist(), "old": old.tolist()}


def lines_of(method: Any, first: str, last: str) -> str:
    """From the line that starts with `first` to the next one that starts with `last`, both included."""
    lines = inspect.getsource(method).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(last))
    return textwrap.dedent("\n".join(lines[start : stop + 1]))


def sampler_ratios(one: Any, given: dict[str, Tensor]) -> Tensor:
    """rho after the bounds, as `_generate_and_score_completions` computes it."""
    import math

    from trl import GRPOTrainer

    code = lines_of(
        GRPOTrainer._generate_and_score_completions,
        "if self.use_vllm and self.vllm_importance_sampling_correction:",
        "# Compute the per-token log probabilities for the reference model",
    )
    names = {
        "self": one,
        "torch": torch,
        "math": math,
        "completion_mask": given["mask"],
        "tool_mask": None,
        "old_per_token_logps": given["old"],
        "sampling_per_token_logps": given["sampler"],
    }
    exec(code, names)
    found = names["vllm_importance_sampling_ratio"]
    assert isinstance(found, Tensor)
    return found


def advantages(kind: str, rewards: Tensor, weights: Tensor) -> list[float]:
    """Of groups of GROUP samples."""
    from trl import GRPOTrainer, RLOOTrainer
    from trl.trainer.utils import nanstd

    of = RLOOTrainer if kind == "leave_one_out" else GRPOTrainer
    first, last = "unscorable_mask = ", "advantages = torch.nan_to_num(advantages"
    code = lines_of(of._generate_and_score_completions, first, last)
    facts: dict[str, Any] = {
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_clip_range": None,
        "beta": 0.0,
    }
    facts |= {"reward_weights": weights, "reward_funcs": [None] * rewards.shape[1], "normalize_advantages": False}
    names: dict[str, Any] = {"self": SimpleNamespace(**facts | ADVANTAGES.get(kind, {})), "torch": torch}
    names |= {"rewards_per_func": rewards.clone(), "num_generations": GROUP, "device": torch.device("cpu")}
    exec(code, names | {"nanstd": nanstd}, names)
    found: list[float] = names["advantages"].tolist()
    return found


def main() -> None:
    """Write trl_policy.json."""
    given, nan = made(), float("nan")
    rewards = torch.tensor(
        [
            [1, 0.5],
            [0, 0.2],
            [1, 0],
            [0.3, nan],
            [0.3, nan],
            [0.9, nan],
            [nan, nan],
            [1, 2],
            [0, 4],
            [1, 1],
            [1, 1],
            [1, 1],
        ],
        dtype=torch.float64,
    )
    weights = torch.tensor([1.0, 0.25], dtype=torch.float64)
    found = {name: grpo(given, **changed) for name, changed in CASES.items()} | {"rloo": rloo(given)}
    of_rewards = {kind: advantages(kind, rewards, weights) for kind in (*ADVANTAGES, "leave_one_out")}
    made_by = f"trl {version('trl')}, torch {version('torch')}"
    content = {
        "made_by": made_by,
        "settings": SETTINGS,
        "inputs": {name: value.tolist() for name, value in given.items()},
        "found": found,
        "rewards": [[None if math_nan(r) else r for r in row] for row in rewards.tolist()],
        "weights": weights.tolist(),
        "group": GROUP,
        "advantages": of_rewards,
    }
    Path(__file__).with_name("trl_policy.json").write_text(json.dumps(content))
    print(made_by, *(f"{name}: {one['loss']:.6f}" for name, one in found.items()), sep="\n")
    print(*(f"{kind}: {values}" for kind, values in of_rewards.items()), sep="\n")


def math_nan(value: float) -> bool:
    """Whether it is missing."""
    return value != value


if __name__ == "__main__":
    main()
