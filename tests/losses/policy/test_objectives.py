"""Objectives of ratios: by hand, at ratio 1, by the signs of their gradients, and independent of what lies beside."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.losses.policy.normalisers import normaliser
from lifecycle.losses.policy.objectives import PolicyTerm, Ratio, RatioName, objective, token_objective

KINDS: tuple[RatioName, ...] = get_args(RatioName)
SETTINGS: dict[RatioName, dict[str, float]] = {
    "token": {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0},
    "sequence": {"clip_low": 3e-4, "clip_high": 4e-4},
    "trajectory": {"clip_low": 0.2, "clip_high": 0.2},
    "cispo": {"ratio_cap": 5.0},
    "sapo": {"tau_positive": 1.0, "tau_negative": 1.05},
    "reinforce": {},
}
RATIOS = {kind: Ratio(kind=kind, **given) for kind, given in SETTINGS.items()}


BITS = dict.fromkeys(KINDS, 0.0) | {"sapo": 1e-14}
"""Relative difference by the place of a token: the sigmoid of a whole vector may differ in its last bit at its end."""


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of(ratio: Ratio, ratios: list[float], advantage: list[float], sequence: list[int] | None = None) -> PolicyTerm:
    """At tokens of log-probability -2, whose old one makes the ratios."""
    logp = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    places = torch.tensor(sequence if sequence is not None else [*range(len(ratios))])
    count = int(places.max()) + 1
    return objective(ratio, logp, logp - doubles(*ratios).log(), doubles(*advantage), places, sequences=count)


def slopes(ratio: Ratio, logp: Tensor, old: Tensor, advantage: Tensor, sequence: Tensor, weight: Any = 1) -> Tensor:
    given = logp.detach().clone().requires_grad_()
    count = int(sequence.max()) + 1
    value = objective(ratio, given, old, advantage, sequence, sequences=count).value_N
    (found,) = torch.autograd.grad((weight * value).sum(), given)
    return found


def test_clipped_ratios_by_hand() -> None:
    ratios, advantage = [1.1, 1.5, 0.5, 1.5, 0.5, 4.0, 1.1], [2.0, 2.0, 2.0, -2.0, -2.0, -2.0, 0.0]
    found = of(RATIOS["token"], ratios, advantage)
    assert found.value_N.tolist() == pytest.approx([2.2, 2.56, 1.0, -3.0, -1.6, -6.0, 0.0])
    assert found.clipped_N.tolist() == [False, True, False, False, True, True, False]
    assert found.ratio_N.tolist() == pytest.approx(ratios)
    bare = of(replace(RATIOS["token"], dual_clip=None), ratios, advantage)
    assert bare.value_N[5] == pytest.approx(-8.0) and not bare.clipped_N[5]
    free = of(Ratio(kind="token"), ratios, advantage)
    assert free.value_N.tolist() == pytest.approx([r * a for r, a in zip(ratios, advantage, strict=True)])
    assert not free.clipped_N.any()


def test_sequences_by_hand() -> None:
    """Sample 0 has ratios 2 and 1/2 and 4: mean of logarithms ln(4) / 3, sum ln 4; sample 1 has the ratio 0.9."""
    ratios, sequence = [2.0, 0.5, 0.9, 4.0], [0, 0, 1, 0]
    wide = replace(RATIOS["sequence"], clip_low=0.5, clip_high=1.0)
    mean = 4 ** (1 / 3)
    assert of(wide, ratios, [1, 1, 3, 1], sequence).value_N.tolist() == pytest.approx([mean, mean, 2.7, mean])
    total = of(replace(wide, kind="trajectory"), ratios, [1, 1, 3, 1], sequence)
    assert total.value_N.tolist() == pytest.approx([2, 2, 2.7, 2])
    assert total.clipped_N.tolist() == [True, True, False, True]  # 4 is above 1 + clip_high = 2
    assert total.ratio_N.tolist() == pytest.approx([4, 4, 0.9, 4])


def test_cispo_by_hand() -> None:
    """The bounded ratio is a constant, and l is -2; the cap is either 1 + clip_high or ratio_cap."""
    ratios, advantage = [0.1, 1.0, 4.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.0, -1.0]
    capped = of(RATIOS["cispo"], ratios, advantage)
    assert capped.value_N.tolist() == pytest.approx([-0.2, -2, -8, -10, 10])
    assert capped.clipped_N.tolist() == [False, False, False, True, True]
    near = of(Ratio(kind="cispo", clip_low=0.2, clip_high=0.28), ratios, advantage)
    assert near.value_N.tolist() == pytest.approx([-1.6, -2, -2.56, -2.56, 2.56])
    assert near.clipped_N.tolist() == [True, False, True, True, True]
    logp, old = doubles(-2, -2), doubles(-2 - math.log(9), -2)
    assert slopes(RATIOS["cispo"], logp, old, doubles(1, -3), torch.arange(2)).tolist() == pytest.approx([5, -3])


def test_sapo_and_reinforce_by_hand() -> None:
    found = of(RATIOS["sapo"], [1.0, 2.0, 2.0], [1.0, 1.0, -1.0])
    value = 4 / 1.05 / (1 + math.exp(-1.05))
    assert found.value_N.tolist() == pytest.approx([2.0, 4 / (1 + math.exp(-1)), -value], rel=1e-14)
    assert not found.clipped_N.any()
    assert of(RATIOS["reinforce"], [3.0, 0.2], [1.0, -0.5]).value_N.tolist() == [-2.0, 1.0]


def made(seed: int, *, drift: float = 0.3, samples: int = 5) -> dict[str, Tensor]:
    """Tokens of samples of 1 to 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 7, (samples,), generator=generator)
    sequence = torch.repeat_interleave(torch.arange(samples), tokens)
    logp, noise = torch.randn(2, len(sequence), dtype=torch.float64, generator=generator).unbind()
    advantage = torch.randn(samples, dtype=torch.float64, generator=generator)
    return {"logp": logp - 3, "old": logp - 3 + drift * noise, "advantage": advantage[sequence], "sequence": sequence}


@pytest.mark.parametrize("kind", KINDS)
def test_at_ratio_1_every_kind_has_the_slope_a(kind: RatioName) -> None:
    """So GRPO = GSPO and DAPO = CISPO = SAPO = REINFORCE there, with the same normaliser."""
    one = made(0, drift=0)
    torch.testing.assert_close(slopes(RATIOS[kind], **one), one["advantage"], rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_no_slope_goes_against_the_advantage(kind: RatioName, sign: int) -> None:
    one = made(1, drift=1.0)
    one["advantage"] = sign * one["advantage"].abs()
    found = slopes(RATIOS[kind], **one) * sign
    assert (found >= 0).all() and (found > 0).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clipped_token_has_no_slope_and_all_others_have_one(kind: RatioName) -> None:
    one = made(2, drift=1.0, samples=40)
    count = int(one["sequence"].max()) + 1
    logp, old, advantage, sequence = one.values()
    clipped = objective(RATIOS[kind], logp, old, advantage, sequence, sequences=count).clipped_N
    zero = slopes(RATIOS[kind], **one) == 0
    assert torch.equal(zero, torch.zeros_like(clipped) if kind == "cispo" else clipped)  # cispo cuts and keeps a slope
    assert kind in ("sapo", "reinforce") or clipped.any()


@pytest.mark.parametrize("kind", ["token", "sapo", "reinforce"])
def test_gradcheck(kind: RatioName) -> None:
    """Kinds whose value is what it says everywhere, without constants of the token itself."""
    one = made(3)
    logp = one.pop("logp").requires_grad_()
    old, advantage, sequence = one.values()
    value = lambda logp: objective(RATIOS[kind], logp, old, advantage, sequence, sequences=5).value_N  # noqa: E731
    assert torch.autograd.gradcheck(value, (logp,))


@pytest.mark.parametrize("kind", ["sequence", "trajectory"])
def test_the_form_by_token_has_the_gradient_of_the_ratio_of_sequences(kind: RatioName) -> None:
    """Mean over tokens of the form by token = min(s A, clip(s) A) of the paper, in value and gradient."""
    one = made(4, drift=0.2 if kind == "trajectory" else 0.001, samples=30)
    logp, old, advantage, sequence = one.values()
    logp.requires_grad_()
    tokens = torch.bincount(sequence).double()
    by_token = objective(RATIOS[kind], logp, old, advantage, sequence, sequences=30).value_N
    weight = 1 / tokens[sequence] if kind == "sequence" else torch.ones_like(logp)
    (ours,) = torch.autograd.grad((by_token * weight).sum(), logp)
    log_s = torch.zeros(30, dtype=torch.float64).index_add(0, sequence, logp - old)
    s = (log_s / tokens if kind == "sequence" else log_s).exp()
    a = torch.zeros(30, dtype=torch.float64).index_copy(0, sequence, advantage)
    low, high = SETTINGS[kind]["clip_low"], SETTINGS[kind]["clip_high"]
    paper = torch.minimum(s * a, s.clamp(1 - low, 1 + high) * a)
    (theirs,) = torch.autograd.grad(paper.sum(), logp)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
    assert (theirs == 0).any() and (theirs != 0).any()
    if kind == "sequence":
        torch.testing.assert_close((by_token * weight).sum(), paper.sum(), rtol=1e-12, atol=0)


def test_the_weight_of_a_token_stays_with_it() -> None:
    one, weight = made(5, drift=0), torch.rand(1, dtype=torch.float64)
    weights = torch.arange(1, len(one["logp"]) + 1).double() * weight
    found = slopes(RATIOS["sequence"], **one, weight=weights)
    torch.testing.assert_close(found, weights * one["advantage"])


def numpy_free_verl(r: Tensor, a: Tensor, low: float, high: float, c: float) -> Tensor:
    """Dual clip as verl writes it, by losses."""
    first, second = -a * r, -a * r.clamp(1 - low, 1 + high)
    return -torch.where(a < 0, torch.minimum(-a * c, torch.maximum(first, second)), torch.maximum(first, second))


def test_dual_clip_of_verl_and_delta_of_trl_are_one_bound() -> None:
    generator = torch.Generator().manual_seed(6)
    log_r = 2 * torch.randn(500, dtype=torch.float64, generator=generator)
    a = torch.randn(500, dtype=torch.float64, generator=generator)
    zero, places = torch.zeros_like(a), torch.zeros(500, dtype=torch.int64)
    for c in (1.29, 3.0, 10.0):
        one = Ratio(kind="token", clip_low=0.2, clip_high=0.28, dual_clip=c)
        grads, values = [], []
        for form in ("ours", "verl", "trl"):
            l = log_r.clone().requires_grad_()  # noqa: E741
            r = l.exp()
            trl = torch.minimum(r.clamp(max=c) * a, r.clamp(0.8, 1.28) * a)
            ours = objective(one, l, zero, a, places, sequences=1).value_N
            value = {"ours": ours, "verl": numpy_free_verl(r, a, 0.2, 0.28, c), "trl": trl}[form]
            values.append(value.detach())
            grads.append(torch.autograd.grad(value.sum(), l)[0])
        for other in (1, 2):
            torch.testing.assert_close(values[0], values[other], rtol=1e-13, atol=1e-14)
            torch.testing.assert_close(grads[0], grads[other], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_ratios_stay_finite_in_fp32(kind: RatioName) -> None:
    logp = torch.tensor([0.0, -200.0, -1.0], requires_grad=True)
    old, advantage = torch.tensor([-200.0, 0.0, -1.0]), torch.tensor([-1.0, 1.0, 0.0])
    found = objective(RATIOS[kind], logp, old, advantage, torch.tensor([0, 1, 2]), sequences=3)
    assert found.value_N.isfinite().all() and found.value_N.dtype == torch.float32
    (gradient,) = torch.autograd.grad(found.value_N.sum(), logp)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_advantages_and_old_logprobs_are_constants(kind: RatioName) -> None:
    logp, old, advantage, sequence = made(7).values()
    for tensor in (logp, old, advantage):
        tensor.requires_grad_()
    value = objective(RATIOS[kind], logp, old, advantage, sequence, sequences=5).value_N
    grads = torch.autograd.grad(value.sum(), (logp, old, advantage), allow_unused=True)
    assert [grad is None for grad in grads] == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_sample_has_its_gradient_whatever_stands_beside_it(seed: int, kind: RatioName) -> None:
    """In another order, alone, or beside other samples, bit for bit; an empty sample changes nothing."""
    one = made(seed)
    whole = slopes(RATIOS[kind], **one)
    for sample in range(5):
        mine = one["sequence"] == sample
        alone = {name: value[mine] for name, value in one.items()} | {"sequence": torch.zeros(int(mine.sum())).long()}
        torch.testing.assert_close(slopes(RATIOS[kind], **alone), whole[mine], rtol=BITS[kind], atol=0)
    order = torch.cat([torch.where(one["sequence"] == sample)[0] for sample in (3, 0, 4, 1, 2)])
    moved = slopes(RATIOS[kind], **{name: value[order] for name, value in one.items()})
    torch.testing.assert_close(moved, whole[order], rtol=BITS[kind], atol=0)
    apart = slopes(RATIOS[kind], **(one | {"sequence": 2 * one["sequence"] + 1}))
    assert torch.equal(apart, whole)


def test_the_terms_of_a_token() -> None:
    """A weight multiplies the policy's term alone."""
    policy, weight, kl, entropy = doubles(2, -1).requires_grad_(), doubles(0, 3), doubles(0.5, 0.25), doubles(1, 2)
    terms: dict[str, Any] = {"kl_coefficient": 0.1, "entropy_coefficient": 0.01}
    all_of_them = token_objective(policy, weight_N=weight, kl_N=kl, entropy_N=entropy, **terms)
    assert all_of_them.tolist() == pytest.approx([-0.05 + 0.01, -3 - 0.025 + 0.02])
    assert token_objective(policy, weight_N=None, kl_N=None, entropy_N=None, **terms) is policy
    weight.requires_grad_()
    total = token_objective(policy, weight_N=weight, kl_N=None, entropy_N=None, **terms).sum()
    assert torch.autograd.grad(total, (policy, weight), allow_unused=True)[1] is None


WRONG = {
    "a cap of 0.2": ({"kind": "cispo", "ratio_cap": 0.2}, "largest ratio, not its distance from 1"),
    "no cap": ({"kind": "cispo"}, "wanted one of them"),
    "two caps": ({"kind": "cispo", "ratio_cap": 5.0, "clip_high": 0.2}, "wanted one of them"),
    "sapo without taus": ({"kind": "sapo", "tau_positive": 1.0}, "1.0 and 1.05"),
    "clip_low": ({"kind": "token", "clip_low": 1.5}, "clip_low is 1.5"),
    "clip_low of 0": ({"kind": "token", "clip_low": 0.0}, "clip_low is 0"),
    "clip_high": ({"kind": "token", "clip_high": -0.2}, "clip_high is -0.2"),
    "dual_clip": ({"kind": "token", "clip_high": 0.28, "dual_clip": 1.2}, "above 1 \\+ clip_high"),
    "a tau of nan": ({"kind": "sapo", "tau_positive": 1.0, "tau_negative": math.nan}, "1.0 and 1.05"),
    "nan": ({"kind": "token", "clip_high": math.nan}, "clip_high"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bounds_that_cannot_be_meant_are_refused(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        Ratio(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["token", "prompt"])
def test_equal_normaliser_grpo_is_gspo_and_dapo_is_cispo_at_ratio_1(kind: Any) -> None:
    one = made(8, drift=0)
    tokens = torch.bincount(one["sequence"])
    weight, divisor = normaliser(tokens, torch.tensor([0, 0, 1, 1, 1]), kind=kind, length=None)
    losses = {k: slopes(RATIOS[k], **one, weight=weight[one["sequence"]]) / divisor.sum() for k in KINDS}
    for other in ("sequence", "cispo", "sapo", "reinforce"):
        torch.testing.assert_close(losses["token"], losses[other], rtol=1e-13, atol=1e-15)


def test_a_token_without_an_advantage_is_none_that_a_bound_cut() -> None:
    assert not of(RATIOS["token"], [0.1, 2.0, 9.0], [0.0, 0.0, 0.0]).clipped_N.any()
