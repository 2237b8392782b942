"""All formulas of a step together: the gradient does not hang on how the step is split, nor on torch's defaults."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lifecycle.losses.policy.advantages import advantages
from lifecycle.losses.policy.kl import kl
from lifecycle.losses.policy.masks import SamplerMasks, product, ratio_facts
from lifecycle.losses.policy.normalisers import normaliser
from lifecycle.losses.policy.objectives import Ratio, objective, token_objective
from lifecycle.losses.policy.shaping import overlong_penalty, token_rewards
from lifecycle.losses.policy.spo import distances, kept_share, prompt_weights, started, updated
from lifecycle.losses.value import explained_variance, gae, moments, value_loss, whitened

RATIOS = (
    Ratio(kind="token", clip_low=0.2, clip_high=0.28, dual_clip=3.0),
    Ratio(kind="sequence", clip_low=0.1, clip_high=0.1),
    Ratio(kind="cispo", ratio_cap=1.5),
)
MASKS = SamplerMasks(keep_between=(0.5, 1.5), geometric_between=(0.8, 1.2), off_policy_threshold=0.1)
SAMPLES = 12


def step(seed: int) -> dict[str, Tensor]:
    """Tokens of 12 samples of 4 prompts, in no order; some samples have none."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 6, (SAMPLES,), generator=generator)
    sequence = torch.repeat_interleave(torch.arange(SAMPLES), tokens)
    logp, first, second, third = torch.randn(4, len(sequence), dtype=torch.float64, generator=generator).unbind()
    rewards = torch.rand(SAMPLES, 2, dtype=torch.float64, generator=generator)
    rewards[torch.rand(SAMPLES, 2, generator=generator) < 0.2] = torch.nan
    groups = torch.randint(0, 4, (SAMPLES,), generator=generator)
    facts = {"logp": logp - 3, "old": logp - 3 + 0.2 * first, "tokens": tokens, "sequence": sequence}
    facts |= {"sampler": logp - 3 + 0.2 * first + 0.2 * second, "reference": logp - 3 + 0.3 * third}
    return facts | {"rewards": rewards, "groups": groups}


def gradient(given: dict[str, Tensor], ratio: Ratio, kind: Any, parts: list[Tensor], order: Tensor) -> Tensor:
    """Of the loss summed over micro-batches, each of the samples of one part; order: in which all were gathered."""
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64, device="cpu")
    rank = torch.empty_like(order)
    rank[order] = torch.arange(SAMPLES, device="cpu")
    advantage_S = advantages(given["rewards"][order], weights, given["groups"][order], kind="group_std")[rank]
    found = normaliser(given["tokens"][order], given["groups"][order], kind=kind, length=7)
    weight_S, divisor = found.weight_S[rank], found.divisor_S.sum()
    logp = given["logp"].clone().requires_grad_()
    for part in parts:
        mine = torch.isin(given["sequence"], part)
        number = torch.full((SAMPLES,), -1, device="cpu")
        number[part] = torch.arange(len(part), device="cpu")
        of = {name: given[name][mine] for name in ("old", "sampler", "reference")}
        places = {"sequence_N": number[given["sequence"][mine]], "sequences": len(part)}
        logps: dict[str, Any] = {"logp_N": logp[mine], "old_logp_N": of["old"], **places}
        logps["advantage_N"] = advantage_S[given["sequence"][mine]]
        total = token_objective(
            objective(ratio, **logps).value_N,
            weight_N=product(MASKS.of(sampler_logp_N=of["sampler"], **logps)),
            kl_N=kl(logp[mine], of["reference"], kind="unbiased", old_logp_N=of["old"]),
            kl_coefficient=0.1,
            entropy_N=None,
            entropy_coefficient=0.0,
        )
        (-(weight_S[given["sequence"][mine]] * total).sum() / divisor).backward()
    assert logp.grad is not None
    return logp.grad


@pytest.mark.parametrize("kind", ["token", "sequence", "prompt", "constant"])
@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: ratio.kind)
def test_the_gradient_does_not_depend_on_micro_batches_ranks_or_order(ratio: Ratio, kind: Any) -> None:
    for seed in range(4):
        given, generator = step(seed), torch.Generator().manual_seed(seed)
        every = torch.arange(SAMPLES)
        whole = gradient(given, ratio, kind, [every], every)
        assert whole.isfinite().all() and whole.any()
        for count in (2, 5, SAMPLES):
            parts = [*torch.randperm(SAMPLES, generator=generator).tensor_split(count)]
            split = gradient(given, ratio, kind, parts, torch.randperm(SAMPLES, generator=generator))
            torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-13)


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Of torch, for what is made without naming them."""
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def everything(given: dict[str, Tensor]) -> list[Tensor]:
    """What all functions say of a step."""
    every = torch.arange(SAMPLES, device="cpu")
    logp, sequence, score = given["logp"], given["sequence"], given["rewards"][:, 0]
    found = [gradient(given, ratio, "prompt", [every], every) for ratio in (*RATIOS, SAPO)]
    rewards = token_rewards(score, logp, sequence, coefficient=0.1)
    estimates = gae(rewards, logp, sequence, gamma=1.0, lam=0.9)
    loss, clipped = value_loss(logp, given["old"], estimates.return_N, clip=0.2)
    sums = moments(estimates.return_N)
    tracker = started(score.nan_to_num(), torch.ones_like(given["tokens"]), variant="recipe")
    far = distances(logp, given["old"], sequence, prompts=SAMPLES, variant="paper")
    tracker = updated(tracker, score, kept_share(far, half_life=0.06))
    return [
        *found,
        *ratio_facts(given["old"], given["sampler"]),
        overlong_penalty(given["tokens"], longest=8, buffer=4),
        *(*estimates, whitened(estimates.advantage_N, sums), loss, clipped),
        explained_variance(sums, moments(estimates.return_N - logp)),
        *(*tracker, prompt_weights(tracker.value_P)),
    ]


SAPO = Ratio(kind="sapo", tau_positive=1.0, tau_negative=1.05)


@pytest.mark.parametrize(("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float64, "meta")])
def test_torchs_defaults_change_nothing(dtype: torch.dtype, device: str) -> None:
    given = step(0)
    wanted = everything(given)
    with defaults(dtype, device):
        found = everything(given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
