"""Log-probabilities by chunks are the textbook's, with their gradients, over the set that a token was drawn from."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lifecycle.batch import Kept
from lifecycle.losses import log_collisions, token_logprobs

N, D, V = 11, 6, 17


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(V, (N,), generator=generator)


def sets(ids: Tensor) -> Kept:
    """The token's own id and some others; the whole vocabulary at every third."""
    generator = torch.Generator().manual_seed(3)
    kept = (torch.rand(N, V, generator=generator) < 0.4).scatter_(1, ids[:, None], True)
    kept[::3] = True
    return Kept.of_mask(kept)


def textbook(
    hidden: Tensor, weight: Tensor, ids: Tensor, kept: Kept | None, temperature: float, cap: float | None
) -> tuple[Tensor, Tensor]:
    z = hidden @ weight.T
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    l_full = (z / temperature).log_softmax(-1)
    entropy = -(l_full.exp() * l_full).sum(-1)
    if kept is not None:
        l_full = (z / temperature).masked_fill(~kept.mask(slice(0, N), V), -1e300).log_softmax(-1)
    return l_full.gather(1, ids[:, None])[:, 0], entropy


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_values_and_gradients_are_the_textbooks(
    truncated: bool, temperature: float, cap: float | None, chunk: int
) -> None:
    hidden, weight, ids = inputs()
    kept = sets(ids) if truncated else None
    options: dict[str, Any] = {"temperature": temperature, "kept": kept, "softcap": cap}
    found = token_logprobs(hidden, weight, ids, chunk_tokens=chunk, **options)
    wanted = textbook(hidden, weight, ids, kept, temperature, cap)
    mix = torch.randn(2, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = []
    for pair in (found, wanted):
        total = (pair[0] * mix[0]).sum() + (pair[1] * mix[1]).sum()
        grads.append(torch.autograd.grad(total, (hidden, weight)))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(grads[0], grads[1])


def test_gradcheck() -> None:
    hidden, weight, ids = inputs()
    kept = sets(ids)

    def both(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(hidden, weight, ids, temperature=1.3, kept=kept, softcap=4.0, chunk_tokens=4)

    assert torch.autograd.gradcheck(both, (hidden, weight))


def test_a_hand_worked_truncation() -> None:
    # p = 1/2, 1/4, 1/4 at temperature 1; the kept set holds the first two: 2/3 and 1/3
    weight = torch.tensor([[2.0], [1.0], [1.0]]).log()
    hidden, ids = torch.ones(2, 1), torch.tensor([0, 1])
    kept = Kept.of_mask(torch.tensor([[True, True, False]]).expand(2, -1))
    logp, entropy = token_logprobs(hidden, weight, ids, kept=kept)
    torch.testing.assert_close(logp.exp(), torch.tensor([2 / 3, 1 / 3]), rtol=1e-3, atol=0)
    torch.testing.assert_close(entropy, torch.full((2,), 1.0397), rtol=1e-3, atol=0)


def test_banned_tokens_weigh_nothing() -> None:
    hidden, weight, ids = inputs()
    banned = torch.tensor([i for i in range(V) if i not in ids.tolist()][:2])
    left = torch.tensor([i for i in range(V) if i not in banned.tolist()])
    places = (left[None] == ids[:, None]).int().argmax(1)
    found = token_logprobs(hidden, weight, ids, banned_ids=banned)
    torch.testing.assert_close(found, token_logprobs(hidden, weight[left], places))
    grad = torch.autograd.grad(sum(x.sum() for x in found), weight)[0]  # type: ignore[arg-type]
    assert not grad[banned].any()


def test_collisions_are_the_probability_that_two_draws_agree() -> None:
    # p = 1/2, 1/4, 1/4: 1/4 + 1/16 + 1/16 = 3/8
    weight = torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64).log()
    hidden = torch.ones(5, 1, dtype=torch.float64, requires_grad=True)
    for chunk in (None, 2):
        found = log_collisions(hidden, weight, chunk_tokens=chunk)
        torch.testing.assert_close(found, torch.full((5,), 3 / 8, dtype=torch.float64).log())
        assert not found.requires_grad
    hidden, weight, _ = inputs()
    capped = 4.0 * torch.tanh(hidden @ weight.T / 4.0)
    wanted = capped.softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(log_collisions(hidden, weight, softcap=4.0, chunk_tokens=3), wanted.detach())
    assert log_collisions(hidden[:0], weight).shape == (0,)


def test_nothing_gives_nothing_and_zero_gradients() -> None:
    hidden, weight, ids = inputs()
    logp, _ = token_logprobs(hidden[:0], weight, ids[:0])
    assert logp.shape == (0,)
    assert not torch.autograd.grad(logp.sum(), weight)[0].any()


def test_under_autocast_a_wider_product_is_that_of_the_wider_numbers() -> None:
    whole, weight, ids = inputs(torch.float32)
    hidden, found = whole.detach().bfloat16().requires_grad_(), []
    for mine in (hidden, hidden.detach().float().requires_grad_()):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mine is hidden):
            logp, entropy = token_logprobs(mine, weight, ids, product_dtype=torch.float32, chunk_tokens=4)
        found.append((logp, entropy, *torch.autograd.grad((logp * 2 + entropy).sum(), (mine, weight))))
    (logp, entropy, by_hidden, by_weight), wanted = found
    assert torch.equal(logp, wanted[0]) and torch.equal(entropy, wanted[1]) and torch.equal(by_weight, wanted[3])
    assert torch.equal(by_hidden, wanted[2].bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert float((token_logprobs(hidden, weight, ids)[0] - logp).detach().abs().max()) > 1e-3
    narrower = token_logprobs(hidden.detach().double(), weight.double(), ids, product_dtype=torch.float32)[0]
    assert narrower.dtype == torch.float64


def test_under_autocast_products_are_bf16_and_sums_fp32() -> None:
    hidden, weight, ids = inputs(torch.float32)
    wanted = textbook(hidden.double(), weight.double(), ids, None, 1.0, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logprobs(hidden, weight, ids)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0].double(), wanted[0], atol=0.05, rtol=0.02)
    grad = torch.autograd.grad(found[0].sum(), (hidden, weight))
    assert [g.dtype for g in grad] == [torch.float32] * 2
