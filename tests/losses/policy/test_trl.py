"""TRL 1.16 makes the same losses and gradients of the same log-probabilities, and the same advantages of rewards."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lifecycle.losses.policy.advantages import AdvantageName, advantages
from lifecycle.losses.policy.kl import KlName, kl
from lifecycle.losses.policy.masks import SamplerMasks, product
from lifecycle.losses.policy.normalisers import NormaliserName, normaliser
from lifecycle.losses.policy.objectives import Ratio, objective, token_objective

TRL = json.loads((Path(__file__).parents[1] / "parity/trl_policy.json").read_text())
OF = TRL["settings"]
GIVEN = {name: torch.tensor(value, dtype=torch.float64) for name, value in TRL["inputs"].items()}
MASK = GIVEN["mask"].bool()
SEQUENCE, SAMPLES = MASK.nonzero()[:, 0], len(MASK)
TOKENS = MASK.sum(1)


class Setting(NamedTuple):
    """What of ours has the name that TRL's loss has."""

    ratio: Ratio
    normaliser: NormaliserName
    masks: SamplerMasks = SamplerMasks()
    kl: KlName | None = None
    entropy: float = 0.0


SINGLE = ("sapo", "batch_std", "gdpo")
"""Where TRL rounds to fp32 on the way: sapo's tau of 1.05, and n / (n - 1) of a std over the batch."""
CLIPPED = Ratio(kind="token", clip_low=OF["low"], clip_high=OF["high"])
SEQUENCES = Ratio(kind="sequence", clip_low=OF["gspo_low"], clip_high=OF["gspo_high"])
OFF_POLICY = SamplerMasks(off_policy_threshold=OF["threshold"])
TRUNCATED = SamplerMasks(truncate_between=(OF["least"], OF["most"]))
TWO_SIDED = Ratio(kind="token", clip_low=OF["low"], clip_high=OF["high"], dual_clip=OF["delta"])
SAPO = Ratio(kind="sapo", tau_positive=OF["tau_positive"], tau_negative=OF["tau_negative"])
SETTINGS = {
    "grpo": Setting(CLIPPED, "sequence"),
    "bnpo": Setting(CLIPPED, "token"),
    "dapo": Setting(CLIPPED, "token"),
    "dr_grpo": Setting(CLIPPED, "constant"),
    "cispo": Setting(Ratio(kind="cispo", ratio_cap=OF["cap"]), "token"),
    "sapo": Setting(SAPO, "sequence"),
    "gspo": Setting(SEQUENCES, "sequence"),
    "delta": Setting(TWO_SIDED, "sequence"),
    "k3": Setting(CLIPPED, "sequence", kl="k3"),
    "unbiased": Setting(CLIPPED, "sequence", kl="unbiased"),
    "off_policy": Setting(CLIPPED, "sequence", OFF_POLICY),
    "off_policy+k3": Setting(CLIPPED, "sequence", OFF_POLICY, kl="k3"),
    "truncated": Setting(CLIPPED, "sequence", TRUNCATED),
    "masked": Setting(CLIPPED, "sequence", SamplerMasks(keep_between=(OF["least"], OF["most"]))),
    "truncated+k3": Setting(CLIPPED, "sequence", TRUNCATED, kl="k3"),
    "entropy": Setting(CLIPPED, "token", entropy=OF["entropy"]),
}


def loss_of(setting: Setting, logp: Tensor, entropy: Tensor, old: Tensor, length: int) -> Tensor:
    """Of all samples at once."""
    logps: dict[str, Any] = {"logp_N": logp, "old_logp_N": old, "sequence_N": SEQUENCE, "sequences": SAMPLES}
    logps["advantage_N"] = GIVEN["advantages"][SEQUENCE]
    masks = setting.masks.of(sampler_logp_N=GIVEN["sampler"][MASK], **logps)
    far = None if setting.kl is None else kl(logp, GIVEN["reference"][MASK], kind=setting.kl, old_logp_N=old)
    total = token_objective(
        objective(setting.ratio, **logps).value_N,
        weight_N=product(masks),
        kl_N=far,
        kl_coefficient=OF["beta"],
        entropy_N=entropy,
        entropy_coefficient=setting.entropy,
    )
    weight, divisor = normaliser(TOKENS, torch.zeros(SAMPLES).long(), kind=setting.normaliser, length=length)
    return -(weight[SEQUENCE] * total).sum() / divisor.sum()


@pytest.mark.parametrize("name", SETTINGS)
def test_trl_gives_the_same_loss_and_gradient(name: str) -> None:
    theirs = TRL["found"][name]
    logp, entropy = (GIVEN[of][MASK].requires_grad_() for of in ("now", "entropy"))
    loss = loss_of(SETTINGS[name], logp, entropy, GIVEN["old"][MASK], OF["length"])
    loss.backward()
    rtol = 1e-5 if name in SINGLE else 1e-10
    assert float(loss.detach()) == pytest.approx(theirs["loss"], rel=rtol)
    for tensor, of in ((logp, "gradient"), (entropy, "entropy_gradient")):
        if of in theirs:
            wanted = torch.tensor(theirs[of], dtype=torch.float64)
            assert tensor.grad is not None and not wanted[~MASK].any()
            torch.testing.assert_close(tensor.grad, wanted[MASK], rtol=rtol, atol=1e-14)


def test_trls_rloo_is_the_ratio_of_trajectories() -> None:
    """Its value is that of the mean over a sample's tokens, its gradient that of their sum: the form by token."""
    theirs = TRL["found"]["rloo"]
    old = torch.tensor(theirs["old"], dtype=torch.float64)[MASK]
    ratio = Ratio(kind="trajectory", clip_low=OF["low"], clip_high=OF["high"])
    logp, entropy = GIVEN["now"][MASK].requires_grad_(), GIVEN["entropy"][MASK]
    mean = loss_of(Setting(ratio, "sequence"), logp, entropy, old, length=1)
    assert float(mean.detach()) == pytest.approx(theirs["loss"], rel=1e-12)
    (gradient,) = torch.autograd.grad(loss_of(Setting(ratio, "constant"), logp, entropy, old, length=1), logp)
    torch.testing.assert_close(
        gradient, torch.tensor(theirs["gradient"], dtype=torch.float64)[MASK], rtol=1e-10, atol=1e-14
    )
    assert (gradient == 0).any() and (gradient != 0).any()


def test_the_cases_differ_where_they_should() -> None:
    """Or equality would say nothing: every bound and mask acts on the numbers that were given."""
    losses = {name: found["loss"] for name, found in TRL["found"].items()}
    assert losses.pop("bnpo") == losses["dapo"]
    assert len({round(loss, 9) for loss in losses.values()}) == len(losses)


@pytest.mark.parametrize("kind", TRL["advantages"])
def test_trl_gives_the_same_advantages(kind: AdvantageName) -> None:
    """Also of a sample without rewards, and of a group that lacks one of them."""
    rows = [[math.nan if reward is None else reward for reward in row] for row in TRL["rewards"]]
    rewards, weights = (torch.tensor(given, dtype=torch.float64) for given in (rows, TRL["weights"]))
    found = advantages(rewards, weights, torch.arange(len(rows)) // TRL["group"], kind=kind)
    assert found.tolist() == pytest.approx(TRL["advantages"][kind], rel=1e-7 if kind in SINGLE else 1e-12, abs=1e-15)
