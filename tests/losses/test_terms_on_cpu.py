"""Our own pass over a chunk's logits on a CPU gives the terms and the gradient of torch's way."""

from typing import Any

import pytest
import torch
from tests.processors import use_build_with
from torch import Tensor

from lifecycle.losses import cross_entropy, linear_cross_entropy, terms_on_cpu
from lifecycle.losses.cross_entropy import _terms
from lifecycle.losses.terms_on_cpu import terms

pytestmark = pytest.mark.skipif(not terms_on_cpu.is_there(), reason="needs a C compiler")

KINDS = [(False, 0.0, None), (True, 0.1, None), (True, 0.1, 3.0)]


def given(vocab: int, weighted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(vocab)
    logits = 4 * torch.randn(5, vocab, generator=generator)
    labels = torch.tensor([0, vocab - 1, -100, vocab // 2, vocab // 2])
    return logits, labels, torch.rand(5, generator=generator) if weighted else None


@pytest.mark.parametrize("vocab", [1, 7, 16, 4096, 5001])
@pytest.mark.parametrize("dft", [False, True])
@pytest.mark.parametrize(("weighted", "z_loss", "softcap"), KINDS)
def test_terms_and_gradient(vocab: int, dft: bool, weighted: bool, z_loss: float, softcap: float | None) -> None:
    logits, labels, weights = given(vocab, weighted)
    wanted, wanted_grad = _terms(logits.double(), labels, weights, z_loss, True, dft, softcap)
    kept = logits.clone()
    found, grad = terms(logits, labels, weights, z_loss, False, dft, softcap)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    assert torch.equal(grad, kept)  # not asked for: left alone
    found, grad = terms(logits, labels, weights, z_loss, True, dft, softcap)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("vocab", [33, 8192])
def test_half_precision_is_rounded_once(vocab: int, softcap: float | None) -> None:
    logits, labels, weights = given(vocab, True)
    half = logits.bfloat16()
    wanted, wanted_grad = _terms(half.double(), labels, weights, 1e-4, True, False, softcap)
    found, grad = terms(half, labels, weights, 1e-4, True, False, softcap)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=2**-8, atol=1e-9)


def test_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, torch.inf.__neg__(), 0.0]])
    (loss, nll, penalty), grad = terms(logits, torch.tensor([1]), None, 0.5, True)
    log_sum = torch.tensor(3.0).log()
    torch.testing.assert_close(torch.stack((loss, nll)), log_sum.expand(2))
    torch.testing.assert_close(penalty, 0.5 * log_sum**2)
    third = (1 + log_sum) / 3
    torch.testing.assert_close(grad, torch.stack((third, third - 1, torch.tensor(0.0), third))[None])


def test_large_logits_do_not_overflow_and_what_is_no_number_shows() -> None:
    logits = torch.tensor([[3e4, -3e4, 2.9e4], [1.0, torch.nan, 0.0]])
    (loss, _, _), grad = terms(logits[:1].clone(), torch.tensor([0]), None, 0.0, True)
    assert loss == 0 and torch.equal(grad, torch.zeros(1, 3))
    (loss, _, _), grad = terms(logits[1:].clone(), torch.tensor([0]), None, 0.0, True)
    assert loss.isnan() and grad.isnan().any()
    (loss, _, _), grad = terms(torch.full((1, 5), -3e38), torch.tensor([4]), None, 0.0, True)
    assert loss == pytest.approx(1.6094379)  # log 5: what fills the vector up is smaller still
    assert grad[0].tolist() == pytest.approx([0.2] * 4 + [-0.8])


@pytest.mark.parametrize("dft", [False, True])
def test_a_number_that_all_logits_share_takes_no_digits_of_the_probabilities(dft: bool) -> None:
    logits, labels, weights = given(301, True)
    logits = logits.add(1e5)
    wanted, wanted_grad = _terms(logits.double(), labels, weights, 0.0, True, dft)
    found, grad = terms(logits, labels, weights, 0.0, True, dft)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=1e-5, atol=1e-6)


def test_labels_of_another_type_are_read_as_what_they_are() -> None:
    logits, labels, _ = given(7, False)
    found, grad = terms(logits.clone(), labels.int(), None, 0.0, True)
    wanted, wanted_grad = terms(logits, labels, None, 0.0, True)
    assert torch.equal(torch.stack(found), torch.stack(wanted)) and torch.equal(grad, wanted_grad)


def test_no_tokens() -> None:
    sums, grad = terms(torch.empty(0, 9), torch.empty(0, dtype=torch.long), None, 0.1, True)
    assert torch.equal(torch.stack(sums), torch.zeros(3)) and grad.shape == (0, 9)


@pytest.mark.parametrize("softcap", [1.0, 30.0, 1e3, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("dtype", terms_on_cpu.DTYPES)
def test_a_cap_far_above_the_logits_takes_no_digits_of_them(dtype: torch.dtype, softcap: float) -> None:
    logits, labels, weights = given(5001, True)
    logits = logits.to(dtype)
    wanted, wanted_grad = _terms(logits.double(), labels, weights, 1e-4, True, False, softcap)
    found, grad = terms(logits, labels, weights, 1e-4, True, False, softcap)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    off = (grad.double() - wanted_grad).norm() / wanted_grad.norm()
    assert off < (1e-6 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("dtype", terms_on_cpu.DTYPES)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_same_bits_with_any_number_of_threads(softcap: float | None, dtype: torch.dtype) -> None:
    logits = torch.randn(37, 501, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels, before = torch.arange(37), torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            made.append(terms(logits.clone(), labels, None, 1e-4, True, False, softcap))
    finally:
        torch.set_num_threads(before)
    for sums, grad in made[1:]:
        assert torch.equal(grad, made[0][1]) and sums == made[0][0]


@pytest.mark.parametrize("flag", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx2"])
@pytest.mark.parametrize("dtype", terms_on_cpu.DTYPES)
def test_other_processors(flag: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels, weights = given(5001, True)
    wanted, wanted_grad = terms(logits.to(dtype, copy=True), labels, weights, 1e-4, True, True, 5.0)
    use_build_with(flag, terms_on_cpu, monkeypatch)
    found, grad = terms(logits.to(dtype, copy=True), labels, weights, 1e-4, True, True, 5.0)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(grad, wanted_grad)


def test_the_loss_uses_it_and_is_the_same_without(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(50, 24, generator=generator, requires_grad=True)
    weight = torch.randn(301, 24, generator=generator, requires_grad=True)
    labels = torch.randint(301, (50,), generator=generator)
    asked = []

    def noted(logits: Tensor, *given: Any) -> Any:
        asked.append(len(logits))
        return terms(logits, *given)

    monkeypatch.setattr(terms_on_cpu, "terms", noted)
    loss, _ = linear_cross_entropy(hidden, weight, labels, z_loss=1e-3, chunk_tokens=16)
    found = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    assert sum(asked) == 50 and len(asked) == 4
    monkeypatch.setattr(cross_entropy.terms_on_cpu, "is_there", lambda: False)
    loss, _ = linear_cross_entropy(hidden, weight, labels, z_loss=1e-3, chunk_tokens=16)
    torch.testing.assert_close(found, (loss, *torch.autograd.grad(loss, (hidden, weight))))
    assert len(asked) == 4
