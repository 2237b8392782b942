"""What TRL makes of random log-probabilities: losses and gradients of its trainers, as numbers in a file of the tests.

    python tests/losses/parity/dump_trl.py      in an environment with trl 1.16.0 and torch; writes trl.json beside it

TRL's own methods are called, with a model that answers with given log-probabilities. Every tensor is float64, but what
TRL computes in float32 whatever it is given.
"""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

PAIRS, TOKENS = 6, 9
DPO = {
    "sigmoid": ["sigmoid"],
    "hinge": ["hinge"],
    "ipo": ["ipo"],
    "exo": ["exo_pair"],
    "nca": ["nca_pair"],
    "robust": ["robust"],
    "bco_pair": ["bco_pair"],
    "sppo": ["sppo_hard"],
    "apo_zero": ["apo_zero"],
    "apo_down": ["apo_down"],
    "discopop": ["discopop"],
    "sigmoid_norm": ["sigmoid_norm"],
    "nll": ["sft"],
    "aot": ["aot"],
    "aot_unpaired": ["aot_unpaired"],
    "sigmoid+nll": ["sigmoid", "sft"],
}
DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence"}
WEIGHTS = {"sigmoid+nll": [1.0, 0.3]}
SETTINGS = {"beta": 0.3, "smoothing": 0.1, "tau": 0.05, "gamma": 0.5, "alpha": 0.7, "tail": 0.4}


class Accelerator:
    """One process: what is gathered is what is there."""

    device = torch.device("cpu")

    def gather_for_metrics(self, value: Any) -> Any:
        return value

    gather = unwrap_model = gather_for_metrics


class Answers:
    """A model whose tokens have the given log-probabilities."""

    training = True

    def __init__(self, logp_BT: Tensor, collision_BT: Tensor) -> None:
        self._logp, self._collision = logp_BT, collision_BT

    def __call__(self, **inputs: Any) -> Any:
        zeros = torch.zeros_like(self._logp)
        return SimpleNamespace(
            log_probs=self._logp,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
            log_sum_sq_probs=self._collision,
        )


def made(seed: int = 0) -> dict[str, Tensor]:
    """Log-probabilities (2 P, T) of the chosen answers and then of the rejected ones, 0 behind their ends."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, TOKENS + 1, (2 * PAIRS,), generator=generator)
    mask = torch.arange(TOKENS) < lengths[:, None]
    policy, reference, collision = (
        torch.randint(-3000, -1, (2 * PAIRS, TOKENS), generator=generator).double() / 1000 for _ in range(3)
    )
    policy, reference = policy * mask, reference * mask
    return {"policy": policy, "reference": reference, "mask": mask, "collision": collision}


def trainer(**changed: Any) -> Any:
    """What the methods of a trainer read of it."""
    args = SimpleNamespace(
        discopop_tau=SETTINGS["tau"], gradient_checkpointing=False, gradient_checkpointing_kwargs=None
    )
    facts: dict[str, Any] = {
        "model": torch.nn.Identity(),
        "accelerator": Accelerator(),
        "args": args,
        "beta": SETTINGS["beta"],
        "label_smoothing": SETTINGS["smoothing"],
        "aux_loss_enabled": False,
        "ld_alpha": None,
        "precompute_ref_logps": False,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": SETTINGS["alpha"],
        "use_weighting": False,
        "loss_weights": [1.0],
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**facts | changed)


def dpo(given: dict[str, Tensor], **changed: Any) -> dict[str, Any]:
    """Loss and gradient by token of DPOTrainer."""
    from trl.trainer import dpo_trainer

    policy = given["policy"].clone().requires_grad_()
    completion = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.bool), given["mask"]], 1).long()
    inputs = {
        "input_ids": torch.ones_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
    }
    one = trainer(**changed, ref_model=Answers(given["reference"], given["collision"]))
    with mock.patch.object(dpo_trainer, "disable_gradient_checkpointing", lambda *_: nullcontext()):
        loss = dpo_trainer.DPOTrainer._compute_loss(one, Answers(policy, given["collision"]), inputs, False)
    return told(loss, policy)


def kto(given: dict[str, Tensor], baseline: dict[str, Tensor], wanted: Tensor) -> dict[str, Any]:
    """Loss and gradient by token of KTOTrainer; baseline: of the mismatched answers."""
    from trl.trainer import kto_trainer

    policy = given["policy"].clone().requires_grad_()
    completion = torch.cat([torch.zeros(2 * PAIRS, 1, dtype=torch.bool), given["mask"]], 1).long()
    mismatched = {id(p): baseline[name].sum(1) for p, name in ((policy, "policy"), (given["reference"], "reference"))}
    one = trainer(
        loss_type="kto",
        desirable_weight=1.5,
        undesirable_weight=0.5,
        calculate_KL=True,
        ref_model=Answers(given["reference"], given["collision"]),
        _compute_kl_logps=lambda model, batch: mismatched[id(model._logp)],
    )
    inputs = {
        "input_ids": torch.ones_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "label": wanted,
    }
    with mock.patch.object(kto_trainer, "disable_gradient_checkpointing", lambda *_: nullcontext()):
        loss = kto_trainer.KTOTrainer._compute_loss(one, Answers(policy, given["collision"]), inputs, False)
    return told(loss, policy) | {"baseline": {name: baseline[name].sum(1).tolist() for name in ("policy", "reference")}}


def reference_free(given: dict[str, Tensor]) -> dict[str, Any]:
    """Of CPOTrainer and ORPOTrainer: losses by pair, without the nll that they add elsewhere."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    found = {}
    for name in ("cpo", "simpo", "orpo"):
        policy = given["policy"].clone().requires_grad_()
        tokens = given["mask"].sum(1)
        logp = policy.sum(1) / (1 if name == "cpo" else tokens)
        kind = {"cpo": "sigmoid", "simpo": "simpo"}.get(name, "")
        one = trainer(alpha=0.0, loss_type=kind, label_smoothing=0.0, simpo_gamma=SETTINGS["gamma"])
        if name == "orpo":
            losses = -ORPOTrainer.odds_ratio_loss(one, logp[:PAIRS], logp[PAIRS:])[0]
        else:
            losses = CPOTrainer.cpo_loss(one, logp[:PAIRS], logp[PAIRS:])[0]
        found[name] = told(losses.mean(), policy)
    return found


def told(loss: Tensor, policy: Tensor) -> dict[str, Any]:
    """A loss and its gradient: by answer, where that of all its tokens is the same, else by token."""
    loss.backward()
    assert policy.grad is not None
    first, grad = policy.grad[:, :1], policy.grad
    same = bool(((grad == first) | (grad == 0)).all())
    return {"loss": float(loss.detach()), "gradient": (first[:, 0] if same else grad).tolist()}


def main() -> None:
    """Write trl.json."""
    given, mismatched = made(), made(seed=1)
    wanted = torch.arange(2 * PAIRS) % 3 != 0
    found: dict[str, Any] = {
        name: dpo(given, loss_types=kinds, loss_weights=WEIGHTS.get(name, [1.0])) for name, kinds in DPO.items()
    }
    for ours, theirs in DIVERGENCES.items():
        found[f"sigmoid/{ours}"] = dpo(given, loss_types=["sigmoid"], f_divergence_type=theirs)
    single = {name: value.float() for name, value in given.items()}  # TRL knows no float64 there
    found["sigmoid/alpha"] = dpo(single, loss_types=["sigmoid"], f_divergence_type="alpha_divergence")
    found["sigmoid/ld"] = dpo(given, loss_types=["sigmoid"], ld_alpha=SETTINGS["tail"])
    found["sigmoid/wpo"] = dpo(given, loss_types=["sigmoid"], use_weighting=True)
    for reference in (mismatched["reference"] * 2, mismatched["reference"] * 0):  # their mean ratio above and below 0
        apart = {**mismatched, "reference": reference}
        name = "kto" if float((mismatched["policy"] - reference).sum()) > 0 else "kto/below"
        found[name] = kto(given, apart, wanted)
    found |= reference_free(given)
    made_by = f"trl {version('trl')}, torch {version('torch')}"
    inputs = {name: value.tolist() for name, value in given.items()} | {"wanted": wanted.tolist()}
    content = {"made_by": made_by, "settings": SETTINGS, "inputs": inputs, "found": found}
    Path(__file__).with_name("trl.json").write_text(json.dumps(content))
    print(made_by, *(f"{name}: {one['loss']:.6f}" for name, one in found.items()), sep="\n")


if __name__ == "__main__":
    main()
