"""The kernel of a chunk's logits gives the terms and the gradient that the plain way gives."""

import pytest
import torch
from tests.interpreted import DEVICES, INTERPRETED, interpret_tests

from lifecycle.losses.cross_entropy import _terms


@pytest.mark.skipif(INTERPRETED, reason="it is what starts this process")
def test_the_kernel_in_the_interpreter() -> None:
    interpret_tests(__file__)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab", [7, 4096, 5001])
@pytest.mark.parametrize("dft", [False, True])
@pytest.mark.parametrize(("weighted", "z_loss", "softcap"), [(False, 0.0, None), (True, 0.1, None), (True, 0.1, 3.0)])
def test_terms_and_gradient(
    vocab: int, dft: bool, weighted: bool, z_loss: float, softcap: float | None, device: str
) -> None:
    from lifecycle.losses.gpu.terms_kernel import terms

    generator = torch.Generator().manual_seed(vocab)
    logits = (4 * torch.randn(5, vocab, generator=generator)).to(device)
    labels = torch.tensor([0, vocab - 1, -100, 3, 3]).to(device)
    weights = torch.rand(5, generator=generator).to(device) if weighted else None
    wanted, wanted_grad = _terms(logits.clone(), labels, weights, z_loss, True, dft, softcap)
    kept = logits.clone()
    found, grad = terms(logits, labels, weights, z_loss, False, dft, softcap)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(grad, kept)  # not asked for: left alone
    found, grad = terms(logits, labels, weights, z_loss, True, dft, softcap)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_a_number_that_all_logits_share_takes_no_digits_of_the_probabilities(device: str) -> None:
    from lifecycle.losses.gpu.terms_kernel import terms

    logits = (4 * torch.randn(5, 301, generator=torch.Generator().manual_seed(3)) + 1e5).to(device)
    labels = torch.tensor([0, 300, -100, 3, 3]).to(device)
    wanted, wanted_grad = _terms(logits.double(), labels, None, 0.0, True)
    found, grad = terms(logits, labels, None, 0.0, True)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("softcap", [30.0, 1e4, 1e8])
def test_a_cap_far_above_the_logits_takes_no_digits_of_them(softcap: float, device: str) -> None:
    from lifecycle.losses.gpu.terms_kernel import terms

    logits = (4 * torch.randn(5, 301, generator=torch.Generator().manual_seed(3))).to(device)
    labels = torch.tensor([0, 300, -100, 3, 3]).to(device)
    wanted, wanted_grad = _terms(logits.double(), labels, None, 0.0, True, False, softcap)
    found, grad = terms(logits, labels, None, 0.0, True, False, softcap)
    torch.testing.assert_close(torch.stack(found).double(), torch.stack(wanted), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), wanted_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_half_precision_on_a_gpu() -> None:
    from lifecycle.losses.gpu.terms_kernel import terms

    logits = (4 * torch.randn(300, 50_304, generator=torch.Generator().manual_seed(1))).to("cuda", torch.bfloat16)
    labels = torch.randint(50_304, (300,), generator=torch.Generator().manual_seed(2)).to("cuda")
    wanted, wanted_grad = _terms(logits.float(), labels, None, 1e-4, True)
    found, grad = terms(logits, labels, None, 1e-4, True)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-3)
    assert (grad.float() - wanted_grad).norm() < 4e-3 * wanted_grad.norm()
