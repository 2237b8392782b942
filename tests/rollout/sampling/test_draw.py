"""What is drawn is what the settings say: every option beside a plain reference, and counts beside the distribution."""

import math
import random
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import transformers
from torch import Tensor

from lifecycle.batch import Kept
from lifecycle.errors import UserError
from lifecycle.rollout.sampling import draw as drawing
from lifecycle.rollout.sampling.draw import Drawn, threshold
from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.parameters import Sampling, sequence_seed, uniforms

R, V = 5, 300


def logits(seed: int = 0, rows: int = R, vocab: int = V, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2


def settings(**changes: Any) -> Sampling:
    return Sampling(**{"max_new_tokens": 1, **changes})


def of(s: Sampling, z: Tensor) -> DeviceSampling:
    return DeviceSampling(s, vocab=z.shape[1], device=z.device)


def draw(z: Tensor, u: Tensor, s: Sampling) -> Drawn:
    return drawing.draw(z, u, of(s, z))


def log_probabilities(z: Tensor, s: Sampling, *, seen_RV: Tensor | None = None) -> Tensor:
    return drawing.log_probabilities(z, of(s, z), seen_RV=seen_RV)


def kept_in(drawn: Drawn, row: int, vocab: int) -> set[int]:
    """The ids that a row was drawn from."""
    if drawn.kept is None:
        return set(range(vocab))
    assert isinstance(drawn.kept, Kept)
    return set(torch.nonzero(drawn.kept.mask(slice(row, row + 1), vocab)[0])[:, 0].tolist())


def reference_kept(row: Tensor, s: Sampling) -> set[int]:
    """One row, one token at a time, by the words of the settings."""
    p = row.softmax(0).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if s.temperature == 0:
        return {order[0]}
    kept = order[: s.top_k]
    if s.top_p is not None:
        total, held, chosen = sum(p[i] for i in kept), 0.0, []
        for i in kept:
            if held >= s.top_p * total:
                break
            chosen.append(i)
            held += p[i]
        kept = chosen
    if s.min_p is not None:
        kept = [i for i in kept if p[i] >= s.min_p * p[order[0]]]
    return set(kept)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": V + 5},
    {"top_p": 0.001},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"top_p": 1.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 30, "top_p": 0.8},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.1, "temperature": 0.8},
    {"top_p": 0.95, "min_p": 0.01},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocab", [V, 700])  # a top-p over more than the candidates, and over fewer
def test_the_kept_set_and_its_probabilities_are_the_references(options: dict[str, Any], vocab: int) -> None:
    s, z = settings(**options), logits(vocab=vocab)
    logp = log_probabilities(z, s)
    edge = threshold(logp, of(s, z))
    drawn = draw(z, torch.rand(R, generator=torch.Generator().manual_seed(1), dtype=torch.float64), s)
    for r in range(R):
        scaled = z[r] / (s.temperature or 1)
        kept = reference_kept(scaled, s)
        assert set(torch.nonzero(logp[r] >= edge[r])[:, 0].tolist()) == kept == kept_in(drawn, r, vocab)
        token = int(drawn.ids[r])
        assert token in kept
        p = scaled.softmax(0)
        assert drawn.full_logprobs[r].item() == pytest.approx(p[token].log().item())
        mass = p[sorted(kept)].sum()
        assert drawn.logprobs[r].item() == pytest.approx((p[token] / mass).log().item(), abs=1e-9)
        assert drawn.entropy[r].item() == pytest.approx(-(p * p.log()).sum().item())


@pytest.mark.parametrize("options", [o for o in OPTIONS if o], ids=str)
def test_looking_at_candidates_alone_changes_no_bit(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    s, z = settings(**options), logits(rows=50, vocab=2000, dtype=torch.float32) * 2
    u = torch.rand(50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    few = draw(z, u, s)
    monkeypatch.setattr(drawing, "eager_on_cpu", lambda _: False)  # as on an accelerator
    whole = draw(z, u, s)
    for found, wanted in zip(few[:4], whole[:4], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    assert torch.equal(few.ids, whole.ids)
    if isinstance(few.kept, Kept):
        assert isinstance(whole.kept, Tensor) and torch.equal(few.kept.mask(slice(0, 50), 2000), whole.kept)


@pytest.mark.parametrize("vocab", [20_011, 32_000])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 40}, {"top_k": 300}, {"top_p": 0.9}], ids=str)
def test_a_row_of_a_large_vocabulary_is_drawn_as_if_alone(options: dict[str, Any], vocab: int) -> None:
    s, z = settings(**options), logits(rows=9, vocab=vocab, dtype=torch.float32) * 4
    z[5] /= 100  # a flat one: its nucleus is most of the vocabulary
    u = torch.rand(9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    together = draw(z, u, s)
    for row in range(9):
        alone, p = draw(z[row : row + 1], u[row : row + 1], s), z[row].double().softmax(0)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone[:4], together[:4], strict=True))
        kept, wanted = kept_in(together, row, vocab), reference_kept(z[row].double(), s)
        assert kept == kept_in(alone, 0, vocab) and kept >= wanted
        extra = p[sorted(kept - wanted)]  # where tokens are dense, more of them are as probable as the last
        assert len(extra) < 20 and not len(extra) or float(p[sorted(wanted)].min() / extra.min()) < math.exp(4e-5)
        passed = torch.zeros(vocab, dtype=torch.float64)
        passed[sorted(kept)] = p[sorted(kept)]
        assert together.ids[row] == torch.searchsorted(passed.cumsum(0), u[row] * passed.sum(), right=True)


def test_one_flat_row_is_sorted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Mock(wraps=drawing._among_all)
    monkeypatch.setattr(drawing, "_among_all", whole)
    z = logits(rows=40, vocab=5000, dtype=torch.float32)
    z[torch.arange(40), torch.arange(40) * 100] += 22
    z[7] = 0
    draw(z, torch.full((40,), 0.5, dtype=torch.float64), settings(top_p=0.9))
    assert [len(call.args[0]) for call in whole.call_args_list] == [1]


@pytest.mark.parametrize("seed", range(30))
def test_sets_and_probabilities_are_those_of_transformers(seed: int) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {"temperature": rng.choice([1.0, 0.7, 1.5]), "top_k": rng.choice([None, 1, 5, 50])}
    options |= {"top_p": rng.choice([None, 0.1, 0.9]), "min_p": rng.choice([None, 0.05]) if seed % 2 else None}
    s, z = settings(**options, repetition_penalty=rng.choice([1.0, 1.3])), logits(seed, vocab=rng.choice([60, 700]))
    seen_ids = torch.randint(z.shape[1], (R, 7), generator=torch.Generator().manual_seed(seed))
    theirs: Any = z.clone()
    kinds: dict[str, Any] = {
        "RepetitionPenaltyLogitsProcessor": s.repetition_penalty,
        "TemperatureLogitsWarper": s.temperature,
        "TopKLogitsWarper": s.top_k,
        "TopPLogitsWarper": s.top_p,
        "MinPLogitsWarper": s.min_p,
    }
    for name, value in kinds.items():
        if value is not None and (value != 1.0 or name == "TopKLogitsWarper"):
            theirs = getattr(transformers, name)(value)(seen_ids, theirs)
    seen = torch.zeros_like(z, dtype=torch.bool).scatter_(1, seen_ids, True)
    drawn = drawing.draw(z, torch.rand(R, dtype=torch.float64), of(s, z), seen_RV=seen)
    logp = theirs.log_softmax(-1)
    for row in range(R):
        assert kept_in(drawn, row, z.shape[1]) == set(torch.nonzero(logp[row].isfinite())[:, 0].tolist())
    torch.testing.assert_close(drawn.logprobs, logp.gather(1, drawn.ids[:, None])[:, 0])


def test_more_ties_than_candidates_are_still_kept_together() -> None:
    z = torch.cat((torch.ones(1, 100), torch.zeros(1, 400)), dim=1)
    drawn = draw(z, torch.tensor([0.999], dtype=torch.float64), settings(top_k=5))
    assert drawn.ids.item() == 99 and drawn.logprobs.item() == pytest.approx(-math.log(100), abs=1e-5)


def test_the_threshold_stands_clear_of_both_sides() -> None:
    s = settings(top_k=3)
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    assert threshold(p.log(), of(s, p)).item() == pytest.approx((math.log(0.2) + math.log(0.1)) / 2)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.5}, {"top_k": 2, "top_p": 0.99}, {"temperature": 0.0}])
def test_ties_are_kept_together(options: dict[str, Any]) -> None:
    s = settings(**options)
    p = torch.tensor([[0.05, 0.3, 0.3, 0.3, 0.05]], dtype=torch.float64)
    logp = p.log()
    assert (logp >= threshold(logp, of(s, logp))[:, None]).tolist() == [[False, True, True, True, False]]
    drawn = draw(logp, torch.tensor([0.999], dtype=torch.float64), s)
    assert drawn.ids.item() == (1 if s.temperature == 0 else 3)
    assert drawn.logprobs.item() == pytest.approx(math.log(1 / 3))


def test_what_a_rounding_could_swap_is_kept_together() -> None:
    z = torch.tensor([[0.0, 1.0, 1.0 + 5e-6, -1.0]], dtype=torch.float64)
    for k in (1, 2):
        s = settings(top_k=k)
        logp = log_probabilities(z, s)
        assert (logp >= threshold(logp, of(s, logp))[:, None]).tolist() == [[False, True, True, False]]
    assert draw(z, torch.tensor([0.0], dtype=torch.float64), settings(temperature=0.0)).ids.item() == 2


def test_a_uniform_picks_by_the_cumulative_probability() -> None:
    p = torch.tensor([[0.25, 0.0, 0.5, 0.25]], dtype=torch.float64)
    edges = {0.0: 0, 0.2499: 0, 0.25: 2, 0.7499: 2, 0.75: 3, 1 - 2**-53: 3}
    for u, token in edges.items():
        z = p.clamp(min=1e-300).log()
        assert draw(z, torch.tensor([u], dtype=torch.float64), settings()).ids.item() == token


def test_the_penalty_falls_on_seen_tokens_alone() -> None:
    s = settings(repetition_penalty=2.0)
    z, seen = torch.tensor([[2.0, -1.0, 2.0, -1.0]]), torch.tensor([[True, True, False, False]])
    expected = torch.tensor([[1.0, -2.0, 2.0, -1.0]]).log_softmax(-1)
    torch.testing.assert_close(log_probabilities(z, s, seen_RV=seen), expected)


def test_banned_tokens_are_never_drawn_and_weigh_nothing() -> None:
    z, banned = logits(rows=200), torch.tensor([0, 7, 299])
    for options in ({}, {"top_k": 298}, {"top_p": 0.999}):
        u = torch.rand(200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        drawn = draw(z, u, settings(**options, banned_ids=(0, 7, 299)))
        assert not torch.isin(drawn.ids, banned).any()
        assert torch.isfinite(drawn.entropy).all()
    open_ids = [i for i in range(V) if i not in banned.tolist()]
    exact = z[:, open_ids].log_softmax(-1)
    torch.testing.assert_close(log_probabilities(z, settings(banned_ids=(0, 7, 299)))[:, open_ids], exact)


@pytest.mark.parametrize("options", [{}, {"top_k": 6}, {"top_p": 0.8, "temperature": 1.3}, {"min_p": 0.2}], ids=str)
def test_frequencies_match_the_distribution_by_chi_square(options: dict[str, Any]) -> None:
    s, draws, vocab = settings(**options), 20_000, 12
    z = logits(seed=3, rows=1, vocab=vocab) / 2
    seeds = torch.tensor([sequence_seed(1, 0, n, 0) for n in range(draws)])
    drawn = draw(z.expand(draws, -1), uniforms(seeds, torch.zeros_like(seeds)), s)
    logp = log_probabilities(z, s)[0]
    kept = torch.tensor([token in kept_in(drawn, 0, vocab) for token in range(vocab)])
    p = torch.where(kept, logp.exp(), 0) / logp.exp()[kept].sum()
    counts = torch.bincount(drawn.ids, minlength=vocab).double()
    assert not counts[~kept].any()
    chi_square = ((counts - draws * p).square() / (draws * p))[kept].sum().item()
    freedom = int(kept.sum()) - 1
    # the 99.9th percentile, by the approximation of Wilson and Hilferty
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


def test_half_precision_logits_are_summed_in_fp32() -> None:
    z = logits(dtype=torch.float32).bfloat16()
    drawn = draw(z, torch.full((R,), 0.5, dtype=torch.float64), settings(top_k=40))
    exact = draw(z.double(), torch.full((R,), 0.5, dtype=torch.float64), settings(top_k=40))
    assert drawn.logprobs.dtype == torch.float32
    assert torch.equal(drawn.ids, exact.ids)
    torch.testing.assert_close(drawn.logprobs.double(), exact.logprobs, atol=1e-5, rtol=0)


def test_logits_that_are_no_numbers_draw_no_token() -> None:
    z = logits(rows=4)
    z[1, 5], z[2, 7] = math.nan, math.inf
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 0.0}):
        drawn = draw(z, torch.full((4,), 0.5, dtype=torch.float64), settings(**options))
        assert (drawn.ids >= 0).tolist() == [True, False, False, True]


def test_other_numbers_of_one_form_are_taken_over_in_place() -> None:
    z, u = logits(), torch.full((R,), 0.5, dtype=torch.float64)
    kept = of(settings(top_k=40, temperature=0.7, top_p=0.9), z)
    other = of(settings(top_k=30, temperature=1.2, top_p=0.5), z)
    assert kept.form == other.form
    kept.take(other)
    for found, wanted in zip(drawing.draw(z, u, kept)[:4], drawing.draw(z, u, other)[:4], strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("temperature", [1e-38, -1.0, math.nan, math.inf])
def test_temperatures_that_leave_the_range_of_numbers_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match="temperature is .* it must be 0"):
        settings(temperature=temperature)
    z, u = logits(dtype=torch.float32) * 50, torch.full((R,), 0.5, dtype=torch.float64)
    assert torch.equal(draw(z, u, settings(temperature=1e-6)).ids, z.argmax(-1))
