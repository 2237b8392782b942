"""Preference losses: by hand, at their limits, by the sign of their gradients, and against TRL's on the same numbers.

The pair of the hand-worked values has u_w = 1 over 2 tokens and u_l = -2 over 3, so m = 3 and its mean margin is 7/6.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lifecycle.losses import preference
from lifecycle.losses.preference import (
    AnswerLogprobs,
    PairLogprobs,
    diverged,
    kto,
    kto_baseline,
    quantiles_of,
    shared_length,
    wpo_weights,
)

TRL = json.loads((Path(__file__).parent / "parity/trl.json").read_text())
LN2 = math.log(2)
Loss = Callable[..., Tensor]


class Case(NamedTuple):
    """settings: of the hand-worked value. equal: the loss at policy = reference, beta 1/2. up, down: the sign of its
    gradient there in the chosen and in the rejected answer's log-probability."""

    settings: dict[str, float]
    value: float
    equal: float
    chosen: int
    rejected: int


B, E = {"beta": 0.5}, {"beta": 0.5, "smoothing": 0.1}
WITH_REFERENCE = {
    "sigmoid": Case(B, 0.2014132779827524, LN2, -1, 1),  # ln(1 + e^-1.5)
    "conservative": Case(E, 0.35141327798275246, LN2, -1, 1),  # 0.9 ln(1 + e^-1.5) + 0.1 ln(1 + e^1.5)
    "robust": Case(E, 0.013913277982752388, LN2, -1, 1),  # (0.9 ln(1 + e^-1.5) - 0.1 ln(1 + e^1.5)) / 0.8
    "hinge": Case({"beta": 0.25}, 0.25, 1.0, -1, 1),  # 1 - 3/4
    "ipo": Case(B, 1 / 36, 1.0, -1, 1),  # (7/6 - 1)^2
    "ipo_sum": Case(B, 4.0, 1.0, -1, 1),  # (3 - 1)^2
    "sigmoid_norm": Case(B, 0.4434255054547435, LN2, -1, 1),  # ln(1 + e^-(7/12))
    "apo_zero": Case(B, 0.6464820901681405, 1.0, -1, 1),  # 1 - s(0.5) + s(-1)
    "apo_down": Case(B, 0.8048848550082108, 1.0, 0, 1),  # s(0.5) + 1 - s(1.5): at 0 the two slopes cancel
    "nca": Case(B, 1.1177463200292714, 2 * LN2, -1, 1),
    "bco_pair": Case(B, 0.7873386716983295, 2 * LN2, -1, 1),  # ln(1 + e^-0.5) + ln(1 + e^-1)
    "sppo": Case(B, 1.0, 2.0, -1, 1),  # (1 - 1)^2 + (-2 + 1)^2
    "exo": Case(E, 0.031138796406299074, -LN2 - 0.5 * math.log(0.09), -1, 1),
    "discopop": Case({"beta": 0.5, "tau": 0.5}, 0.22210021804902824, 0.5 * (LN2 + 1), -1, 1),
}
MEAN_TOKENS = torch.tensor(2.5, dtype=torch.float64)
REFERENCE_FREE = {
    "simpo": Case({"beta": 2.0, "gamma": 0.5}, 0.9740769841801067, 0.0, -1, 1),  # both means are -2: ln(1 + e^0.5)
    "nll": Case({}, 1.6, 0.0, -1, 0),  # 4 / 2.5
    "cpo": Case({"beta": 0.5, "alpha": 0.7}, 1.4332616875182227, 0.0, -1, 1),  # ln(1 + e^-1) + 0.7 * 1.6
    "orpo": Case({"beta": 0.5}, 1.6 + 0.5 * LN2, 0.0, -1, 1),  # equal means, equal odds
}
ALL = WITH_REFERENCE | REFERENCE_FREE


def of(name: str) -> Loss:
    """The loss, with the tokens a pair has where it asks for them."""
    loss: Loss = getattr(preference, name)
    if name in ("nll", "cpo", "orpo"):
        return lambda pairs, **settings: loss(pairs, tokens_per_pair=MEAN_TOKENS, **settings)
    return loss


def pairs(chosen: Any, rejected: Any, ref_chosen: Any, ref_rejected: Any, tokens: Any = (2, 3)) -> PairLogprobs:
    wide = [torch.as_tensor(v, dtype=torch.float64).reshape(-1) for v in (chosen, rejected, ref_chosen, ref_rejected)]
    counts = [torch.as_tensor(count, dtype=torch.float64).reshape(-1) for count in tokens]
    return PairLogprobs(
        chosen=wide[0],
        rejected=wide[1],
        reference_chosen=wide[2],
        reference_rejected=wide[3],
        chosen_tokens=counts[0],
        rejected_tokens=counts[1],
    )


HAND = (-4.0, -6.0, -5.0, -4.0)


def slopes(loss: Callable[[Tensor, Tensor], Tensor], chosen: float, rejected: float) -> tuple[float, float]:
    """Its derivatives in the log-probabilities of the chosen and of the rejected answer."""
    points = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (chosen, rejected)]
    grads = torch.autograd.grad(loss(*points).sum(), points, allow_unused=True)
    return tuple(0.0 if grad is None else float(grad) for grad in grads)  # type: ignore[return-value]


@pytest.mark.parametrize("name", ALL)
def test_every_loss_has_the_value_that_was_worked_by_hand(name: str) -> None:
    value = of(name)(pairs(*HAND), **ALL[name].settings)
    assert value.shape == (1,) and value.dtype == torch.float64
    assert float(value) == pytest.approx(ALL[name].value, rel=1e-12)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_where_policy_and_reference_are_equal_the_loss_is_a_constant(name: str) -> None:
    settings = WITH_REFERENCE[name].settings | {"beta": 0.5}
    for chosen, rejected in ((-4.0, -6.0), (-30.0, -0.5)):
        value = of(name)(pairs(chosen, rejected, chosen, rejected), **settings)
        assert float(value) == pytest.approx(WITH_REFERENCE[name].equal, rel=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "conservative", "robust", "sigmoid_norm", "nca", "bco_pair", "discopop"])
def test_without_strength_a_logistic_loss_tells_no_answers_apart(name: str) -> None:
    settings = WITH_REFERENCE[name].settings | {"beta": 1e-9}
    assert float(of(name)(pairs(*HAND), **settings)) == pytest.approx(WITH_REFERENCE[name].equal, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_answer(name: str) -> None:
    case, loss = ALL[name], of(name)
    settings = case.settings | ({"beta": 0.5} if "beta" in case.settings else {})
    up, down = slopes(lambda w, r: loss(pairs_of(w, r, w.detach(), r.detach()), **settings), -4.0, -6.0)
    assert [round(math.copysign(1, s)) if abs(s) > 1e-12 else 0 for s in (up, down)] == [case.chosen, case.rejected]


def pairs_of(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> PairLogprobs:
    made = pairs(HAND[0], HAND[1], HAND[2], HAND[3])
    return PairLogprobs(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=ref_chosen,
        reference_rejected=ref_rejected,
        chosen_tokens=made.chosen_tokens,
        rejected_tokens=made.rejected_tokens,
    )


@pytest.mark.parametrize("name", ALL)
def test_autograd_agrees_with_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    drawn = -4 * torch.rand(4, 5, generator=generator).double() - 0.5
    points = [row.clone().requires_grad_() for row in drawn[:2]]
    counts = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).double()

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        made = PairLogprobs(
            chosen=chosen,
            rejected=rejected,
            reference_chosen=drawn[2],
            reference_rejected=drawn[3],
            chosen_tokens=counts,
            rejected_tokens=counts.flip(0),
        )
        return of(name)(made, **ALL[name].settings)

    assert torch.autograd.gradcheck(loss, points)


@pytest.mark.parametrize("name", ALL)
def test_pairs_do_not_know_of_each_other(name: str) -> None:
    left, right = pairs(*HAND), pairs(-1.0, -2.0, -3.0, -1.5, (4, 1))
    both = PairLogprobs(**{k: torch.cat([getattr(left, k), getattr(right, k)]) for k in vars(left)})
    apart = torch.cat([of(name)(one, **ALL[name].settings) for one in (left, right)])
    assert torch.equal(of(name)(both, **ALL[name].settings), apart)


@pytest.mark.parametrize("name", ALL)
def test_no_loss_overflows_where_the_policy_has_gone_far(name: str) -> None:
    far = torch.tensor([0.0, -1.0, -3e3, -1e4], requires_grad=True)
    made = PairLogprobs(
        chosen=far,
        rejected=far.flip(0),
        reference_chosen=torch.full((4,), -50.0),
        reference_rejected=torch.full((4,), -50.0),
        chosen_tokens=torch.full((4,), 10.0),
        rejected_tokens=torch.full((4,), 10.0),
    )
    loss = of(name)(made, **ALL[name].settings).sum()
    loss.backward()
    assert torch.isfinite(loss) and far.grad is not None and torch.isfinite(far.grad).all()


def test_conservative_is_the_expected_loss_under_wrong_labels_and_robust_undoes_them() -> None:
    right, wrong = pairs(*HAND), pairs(HAND[1], HAND[0], HAND[3], HAND[2], (3, 2))
    plain = [float(of("sigmoid")(one, beta=0.5)) for one in (right, wrong)]
    assert float(of("conservative")(right, **E)) == pytest.approx(0.9 * plain[0] + 0.1 * plain[1])
    unbiased = [float(of("robust")(one, **E)) for one in (right, wrong)]
    assert 0.9 * unbiased[0] + 0.1 * unbiased[1] == pytest.approx(plain[0])
    for name in ("conservative", "robust"):
        assert float(of(name)(right, beta=0.5, smoothing=0.0)) == pytest.approx(plain[0])


def test_apo_down_lowers_both_and_the_rejected_answer_more() -> None:
    """Where the policy has left its reference: at equality the chosen answer's two slopes cancel."""
    up, down = slopes(lambda w, r: of("apo_down")(pairs_of(w, r, w.detach(), r.detach() + 4), beta=0.5), -4.0, -6.0)
    assert up > 0 and down > 0


def test_orpo_odds_are_those_of_mean_probabilities() -> None:
    made = pairs(-2.0, -6.0, -1.0, -1.0)  # means -1 and -2 over 2 and 3 tokens
    odds = [math.exp(logp) / (1 - math.exp(logp)) for logp in (-1.0, -2.0)]
    ratio = -math.log(1 / (1 + odds[1] / odds[0]))
    assert float(of("orpo")(made, beta=0.5)) == pytest.approx(0.8 + 0.5 * ratio)


# -- single answers


def answers(u: Any, wanted: Any) -> AnswerLogprobs:
    ratio = torch.as_tensor(u, dtype=torch.float64)
    return AnswerLogprobs(policy=ratio, reference=torch.zeros_like(ratio), wanted=torch.as_tensor(wanted))


KTO = {"beta": 0.5, "wanted_weight": 1.5, "unwanted_weight": 0.5}


def test_kto_by_hand() -> None:
    z = torch.tensor(0.25, dtype=torch.float64)
    value = kto(answers([1.0, -2.0], [True, False]), baseline=z, **KTO)
    assert value.tolist() == pytest.approx([0.6110001000688955, 0.12254250656618587], rel=1e-12)
    equal = kto(answers([0.0, 0.0], [True, False]), baseline=torch.zeros(()), **KTO)
    assert equal.tolist() == [0.75, 0.25]


def test_kto_raises_good_answers_lowers_bad_ones_and_leaves_the_baseline_alone() -> None:
    u = torch.tensor([0.3, 0.3], dtype=torch.float64, requires_grad=True)
    sums = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    z = kto_baseline(sums, torch.tensor(4.0))
    assert float(z) == 0.5 and not z.requires_grad
    loss = kto(AnswerLogprobs(policy=u, reference=u.detach(), wanted=torch.tensor([True, False])), baseline=z, **KTO)
    (grad,) = torch.autograd.grad(loss.sum(), u)
    assert grad[0] < 0 < grad[1]
    assert torch.autograd.gradcheck(
        lambda v: kto(
            AnswerLogprobs(policy=v, reference=torch.zeros(2).double(), wanted=torch.tensor([True, False])),
            baseline=z,
            **KTO,
        ),
        (u,),
    )


def test_the_baseline_is_never_below_zero_and_zero_where_there_is_nothing_to_estimate_it_from() -> None:
    assert float(kto_baseline(torch.tensor(-3.0), torch.tensor(2.0))) == 0
    assert float(kto_baseline(torch.tensor(0.0), torch.tensor(0.0))) == 0


# -- what changes the pairs


def test_divergences_by_hand_and_at_their_limit() -> None:
    by_hand = {"forward_kl": 0.02944164041900688, "js": 0.33918353893175224, "alpha": 0.11424419831214895}
    for name, value in by_hand.items():
        found = of("sigmoid")(diverged(pairs(*HAND), name, alpha=0.5), **B)  # type: ignore[arg-type]
        assert float(found) == pytest.approx(value, rel=1e-12), name
    plain = float(of("sigmoid")(pairs(*HAND), **B))
    assert float(of("sigmoid")(diverged(pairs(*HAND), "alpha", alpha=1 - 1e-9), **B)) == pytest.approx(plain)
    assert float(of("sigmoid")(diverged(pairs(*HAND), "reverse_kl", alpha=0.5), **B)) == plain
    equal = pairs(-4.0, -6.0, -4.0, -6.0)
    for name in by_hand:
        assert float(of("sigmoid")(diverged(equal, name, alpha=0.5), **B)) == pytest.approx(LN2)  # type: ignore[arg-type]


def test_ld_dpo_weighs_what_is_behind_the_shorter_answer() -> None:
    sequence, tokens, ones = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3]), torch.tensor([3, 2, 1, 2]), torch.ones(8).double()
    assert shared_length(ones, sequence, tokens, tail=0.25).tolist() == [1, 1, 0.25, 1, 1, 1, 1, 0.25]
    assert torch.equal(shared_length(ones, sequence, tokens, tail=1.0), ones)


def test_aot_compares_quantiles() -> None:
    made = pairs([-4.0, -1.0, -6.0], [-6.0, -9.0, -5.0], [-5.0] * 3, [-4.0, -7.0, -5.5], ((2, 2, 2), (3, 3, 3)))
    quantiles = quantiles_of(made.chosen - made.rejected, torch.tensor([-1.0, 2.0, 0.5]).double())
    assert quantiles.tolist() == [[-1, 2, 8], [-1, 0.5, 2]]
    value = preference.aot(made, beta=0.5, smoothing=0.0, quantiles=quantiles)  # d of 2, 8, -1; d - q of 1.5, 6, 0
    assert value.tolist() == pytest.approx([math.log1p(math.exp(-0.75)), math.log1p(math.exp(-3)), LN2])
    alone = pairs(*HAND)
    one = quantiles_of(alone.chosen - alone.rejected, torch.tensor([-1.0]).double())
    assert float(preference.aot(alone, beta=0.5, smoothing=0.1, quantiles=one)) == pytest.approx(
        ALL["conservative"].value
    )
    chosen = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    held = quantiles_of(chosen + 6, torch.tensor([-1.0]).double())
    assert torch.autograd.gradcheck(
        lambda w: preference.aot(
            pairs_of(w, alone.rejected, w.detach(), w.detach()), beta=0.5, smoothing=0.1, quantiles=held
        ),
        (chosen,),
    )


def test_unpaired_aot_compares_the_quantiles_of_both_sides() -> None:
    made = pairs([-4.0, -1.0, -6.0], [-6.0, -9.0, -5.0], [-5.0, -3.0, -5.5], [-4.0, -7.0, -5.5], ((2, 2, 2), (3, 3, 3)))
    u_w, u_l = made.chosen_ratio, made.rejected_ratio  # 1, 2, -0.5 and -2, -2, 0.5
    value = preference.aot_unpaired(made, beta=0.5, smoothing=0.1, quantiles=quantiles_of(u_w, u_l))
    sorted_apart = [1.0 + 2.0, 2.0 - 0.5, -0.5 + 2.0]  # of each u_w, the u_l at its quantile

    def smoothed(z: float) -> float:
        return 0.9 * math.log1p(math.exp(-z)) + 0.1 * math.log1p(math.exp(z))

    assert value.tolist() == pytest.approx([smoothed(0.5 * apart) for apart in sorted_apart])
    turned = replace(made, rejected=made.rejected.roll(1), reference_rejected=made.reference_rejected.roll(1))  # type: ignore[union-attr]
    again = preference.aot_unpaired(turned, beta=0.5, smoothing=0.1, quantiles=quantiles_of(u_w, u_l))
    assert torch.equal(again, value)  # which pair an answer is of, plays no part
    equal = pairs(-4.0, -6.0, -4.0, -6.0)
    zero = quantiles_of(equal.chosen_ratio, equal.rejected_ratio)
    assert float(preference.aot_unpaired(equal, beta=0.5, smoothing=0.0, quantiles=zero)) == pytest.approx(LN2)


def test_the_gradient_of_unpaired_aot_is_that_of_what_was_sorted() -> None:
    generator = torch.Generator().manual_seed(4)
    drawn = -4 * torch.rand(4, 5, generator=generator).double() - 0.5
    points = [row.clone().requires_grad_() for row in drawn[:2]]
    made = pairs(points[0], points[1], drawn[2], drawn[3], (torch.ones(5), torch.ones(5)))
    held = quantiles_of(made.chosen_ratio, made.rejected_ratio)
    found = torch.autograd.grad(
        preference.aot_unpaired(made, beta=0.5, smoothing=0.1, quantiles=held).sum(), points, retain_graph=True
    )
    z = 0.5 * (made.chosen_ratio.sort().values - made.rejected_ratio.sort().values)
    wanted = torch.autograd.grad(
        -(0.9 * torch.log(torch.sigmoid(z)) + 0.1 * torch.log(torch.sigmoid(-z))).sum(), points
    )
    torch.testing.assert_close(found, wanted)


def test_wpo_weighs_a_pair_by_how_likely_the_policy_writes_it() -> None:
    """Excesses of -1 over 2 tokens and -3 over 3: exp(-1/2 - 1)."""
    excess = [torch.tensor([value, 0.0], dtype=torch.float64, requires_grad=True) for value in (-1.0, -3.0)]
    made = pairs([-4.0, -4.0], [-6.0, -6.0], [-5.0, -5.0], [-4.0, -4.0], ((2, 2), (3, 3)))
    weights = wpo_weights(excess[0], excess[1], made)
    assert weights.tolist() == pytest.approx([math.exp(-1.5), 1.0], rel=1e-12) and not weights.requires_grad
    longer = replace(made, chosen_tokens=2 * made.chosen_tokens, rejected_tokens=2 * made.rejected_tokens)
    assert torch.equal(wpo_weights(2 * excess[0], 2 * excess[1], longer), weights)  # no answer counts by its length


# -- TRL


SETTINGS = TRL["settings"]
BOOLEAN = ("mask", "wanted")
GIVEN = {
    name: torch.tensor(value, dtype=torch.bool if name in BOOLEAN else torch.float64)
    for name, value in TRL["inputs"].items()
}
P = len(GIVEN["policy"]) // 2
BETA = {"beta": SETTINGS["beta"]}
SMOOTHED = BETA | {"smoothing": SETTINGS["smoothing"]}
PEERS: dict[str, tuple[dict[str, float], str, dict[str, float]]] = {
    **{
        name: ({name: 1.0}, "reverse_kl", BETA)
        for name in "sigmoid hinge ipo nca bco_pair sppo apo_zero apo_down sigmoid_norm".split()
    },
    "robust": ({"robust": 1.0}, "reverse_kl", SMOOTHED),
    "exo": ({"exo": 1.0}, "reverse_kl", SMOOTHED),
    "discopop": ({"discopop": 1.0}, "reverse_kl", BETA | {"tau": SETTINGS["tau"]}),
    "nll": ({"nll": 1.0}, "reverse_kl", {}),
    "sigmoid+nll": ({"sigmoid": 1.0, "nll": 0.3}, "reverse_kl", BETA),
    **{f"sigmoid/{name}": ({"sigmoid": 1.0}, name, BETA) for name in ("forward_kl", "js", "alpha")},
    "simpo": ({"simpo": 1.0}, "reverse_kl", BETA | {"gamma": SETTINGS["gamma"]}),
    "cpo": ({"cpo": 1.0}, "reverse_kl", BETA | {"alpha": 0.0}),  # TRL adds the nll of the answers elsewhere
    "orpo": ({"orpo": 1.0}, "reverse_kl", BETA),  # ... and here that of the prompt too
}


def summed(policy: Tensor, reference: Tensor) -> PairLogprobs:
    """Of TRL's inputs: chosen answers stand before the rejected ones."""
    parts = [half for value in (policy, reference, GIVEN["mask"]) for half in value.sum(1).double().split(P)]
    return PairLogprobs(
        chosen=parts[0],
        rejected=parts[1],
        reference_chosen=parts[2],
        reference_rejected=parts[3],
        chosen_tokens=parts[4],
        rejected_tokens=parts[5],
    )


def agrees(name: str, loss: Tensor, policy: Tensor, *, rel: float = 1e-9) -> None:
    """With TRL's figures, value and gradients."""
    (grad,) = torch.autograd.grad(loss, policy)
    wanted = torch.tensor(TRL["found"][name]["gradient"], dtype=torch.float64)
    wanted = (wanted if wanted.dim() == 2 else wanted[:, None]) * GIVEN["mask"]
    assert float(loss.detach()) == pytest.approx(TRL["found"][name]["loss"], rel=rel)
    torch.testing.assert_close(grad * GIVEN["mask"], wanted, rtol=rel, atol=rel)


@pytest.mark.parametrize("name", PEERS)
def test_losses_agree_with_trl(name: str) -> None:
    kinds, divergence, settings = PEERS[name]
    policy = GIVEN["policy"].clone().requires_grad_()
    plain = summed(policy, GIVEN["reference"])
    made = diverged(plain, divergence, alpha=SETTINGS["alpha"])  # type: ignore[arg-type]
    per_pair = plain.chosen_tokens.mean()
    loss = torch.zeros(P).double()
    for kind, weight in kinds.items():
        extra: dict[str, Any] = {"tokens_per_pair": per_pair} if kind in ("nll", "cpo", "orpo") else {}
        own = {} if kind == "nll" else settings
        loss = loss + weight * getattr(preference, kind)(plain if kind == "nll" else made, **own, **extra)
    if name == "orpo":
        loss = loss - preference.nll(plain, tokens_per_pair=per_pair)
    single = name in ("sigmoid/alpha", "orpo", "exo")  # TRL computes these in fp32
    agrees(name, loss.mean(), policy, rel=1e-5 if single else 1e-9)


@pytest.mark.parametrize("name", ["kto", "kto/below"])
def test_kto_agrees_with_trl(name: str) -> None:
    policy = GIVEN["policy"].clone().requires_grad_()
    apart = {side: torch.tensor(values, dtype=torch.float64) for side, values in TRL["found"][name]["baseline"].items()}
    ratio = apart["policy"] - apart["reference"]
    z = kto_baseline(ratio.sum(), torch.tensor(float(len(ratio))))
    assert (float(z) == 0) == (name == "kto/below")
    made = AnswerLogprobs(policy=policy.sum(1), reference=GIVEN["reference"].sum(1), wanted=GIVEN["wanted"])
    loss = kto(made, baseline=z, wanted_weight=1.5, unwanted_weight=0.5, **BETA)
    agrees(name, loss.mean(), policy)


def test_ld_dpo_agrees_with_trl() -> None:
    policy = GIVEN["policy"].clone().requires_grad_()
    turns = torch.arange(2 * P).view(2, P).T.flatten()  # both answers of a pair, then those of the next
    mask, sequence = GIVEN["mask"][turns], torch.arange(2 * P)[:, None].expand(-1, GIVEN["mask"].shape[1])

    def weighed(logp: Tensor) -> Tensor:
        in_turn = logp[turns]
        found = shared_length(in_turn[mask], sequence[mask], mask.sum(1), tail=SETTINGS["tail"])
        return torch.zeros_like(in_turn).masked_scatter(mask, found)[turns.argsort()]

    loss = preference.sigmoid(summed(weighed(policy), weighed(GIVEN["reference"])), **BETA).mean()
    agrees("sigmoid/ld", loss, policy)


def test_aot_agrees_with_trl() -> None:
    policy = GIVEN["policy"].clone().requires_grad_()
    made = summed(policy, GIVEN["reference"])
    assert made.reference_chosen is not None and made.reference_rejected is not None
    quantiles = quantiles_of(made.chosen - made.rejected, made.reference_chosen - made.reference_rejected)
    agrees("aot", preference.aot(made, quantiles=quantiles, **SMOOTHED).mean(), policy)


def test_unpaired_aot_agrees_with_trl() -> None:
    policy = GIVEN["policy"].clone().requires_grad_()
    made = summed(policy, GIVEN["reference"])
    quantiles = quantiles_of(made.chosen_ratio, made.rejected_ratio)
    agrees("aot_unpaired", preference.aot_unpaired(made, quantiles=quantiles, **SMOOTHED).mean(), policy)


def test_wpo_agrees_with_trl() -> None:
    policy = GIVEN["policy"].clone().requires_grad_()
    made = summed(policy, GIVEN["reference"])
    excess = ((policy - GIVEN["collision"]) * GIVEN["mask"]).sum(1).split(P)
    loss = preference.sigmoid(made, **BETA) * wpo_weights(excess[0], excess[1], made)
    agrees("sigmoid/wpo", loss.mean(), policy)


def test_conservative_is_the_published_formula_of_open_instruct_and_openrlhf() -> None:
    """-logsigmoid(beta m) (1 - e) - logsigmoid(-beta m) e; TRL's `sigmoid` reads no label_smoothing."""
    made = summed(GIVEN["policy"].double(), GIVEN["reference"])
    z, e = BETA["beta"] * made.margin, SETTINGS["smoothing"]
    published = -torch.log(1 / (1 + torch.exp(-z))) * (1 - e) - torch.log(1 / (1 + torch.exp(z))) * e
    torch.testing.assert_close(preference.conservative(made, **SMOOTHED), published)


@pytest.mark.parametrize("divergence", ["forward_kl", "js", "alpha"])
def test_a_divergence_has_no_slope_where_policy_and_reference_are_equal(divergence: Any) -> None:
    """Its constant would be left over where both sides are divided by lengths of their own (ipo, sigmoid_norm)."""
    made = diverged(pairs(-3.0, -5.0, -3.0, -5.0), divergence, alpha=0.3)
    assert made.chosen_ratio.tolist() == pytest.approx([0.0]) and made.mean_margin.tolist() == pytest.approx([0.0])
