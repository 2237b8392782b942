"""The loss equals the textbook's, however it is cut."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from lifecycle.batch import IGNORED
from lifecycle.losses import linear_cross_entropy, token_logprobs, token_losses
from lifecycle.losses.chunks import check_tokens


def inputs(
    n: int = 13, d: int = 5, v: int = 7, *, dtype: torch.dtype = torch.float64, ignored: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(v, (n,), generator=generator)
    labels[torch.randperm(n, generator=generator)[:ignored]] = -100
    return hidden, weight, labels


def textbook(hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float) -> Tensor:
    logits = hidden @ weight.T
    penalty = (logits.logsumexp(-1).square() * (labels != -100)).sum()
    return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100) + z_loss * penalty


def grads(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def test_two_equal_logits_cost_log_two_and_pull_half_each() -> None:
    hidden = torch.ones(1, 1, requires_grad=True)
    weight = torch.full((2, 1), 3.0, requires_grad=True)
    loss, metrics = linear_cross_entropy(hidden, weight, torch.tensor([1]), z_loss=0.5)
    z = 3 + math.log(2)
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * z * z)
    assert metrics["nll"].item() == pytest.approx(math.log(2))
    assert metrics["z_loss"].item() == pytest.approx(0.5 * z * z)
    assert metrics["count"].item() == 1
    # d logits = softmax (1 + 2 * 0.5 * z) - onehot
    expected = torch.tensor([[0.5 * (1 + z)], [0.5 * (1 + z) - 1]])
    torch.testing.assert_close(grads(loss, weight)[0], expected)


@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 5, 100, None])
def test_loss_and_gradients_are_the_textbooks_for_any_chunk(chunk_tokens: int | None, z_loss: float) -> None:
    hidden, weight, labels = inputs()
    loss, _ = linear_cross_entropy(hidden, weight, labels, z_loss=z_loss, chunk_tokens=chunk_tokens)
    expected = textbook(hidden, weight, labels, z_loss)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads(loss, hidden, weight), grads(expected, hidden, weight))


def test_gradcheck() -> None:
    hidden, weight, labels = inputs()

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, z_loss=0.1, chunk_tokens=4)[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight))


def test_dynamic_fine_tuning_by_hand() -> None:
    hidden = torch.ones(1, 1, dtype=torch.float64)
    weight = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64, requires_grad=True)  # p = 1/4, 3/4
    loss, metrics = linear_cross_entropy(hidden, weight, torch.tensor([1]), dft=True)
    assert loss.item() == pytest.approx(-0.75 * math.log(0.75), abs=1e-15)
    assert metrics["nll"].item() == pytest.approx(-math.log(0.75), abs=1e-15)
    # d logits = p (softmax - onehot): 3/4 of (1/4, -1/4)
    torch.testing.assert_close(grads(loss, weight)[0], torch.tensor([[3 / 16], [-3 / 16]], dtype=torch.float64))


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_dynamic_fine_tuning_is_cross_entropy_by_the_tokens_own_probability(
    chunk_tokens: int, z_loss: float, softcap: float | None
) -> None:
    hidden, weight, labels = inputs()
    weights = torch.rand(13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given: dict[str, Any] = {"weights_N": weights, "z_loss": z_loss, "softcap": softcap, "chunk_tokens": chunk_tokens}
    loss, metrics = linear_cross_entropy(hidden, weight, labels, dft=True, **given)
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    nll = F.cross_entropy(logits, labels, reduction="none")
    penalty = z_loss * (logits.logsumexp(-1).square() * weights * (labels != -100)).sum()
    expected = (nll * (-nll).exp().detach() * weights).sum() + penalty
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["nll"], (nll * weights).sum())
    torch.testing.assert_close(grads(loss, hidden, weight), grads(expected, hidden, weight))
    plain, _ = linear_cross_entropy(hidden, weight, labels, **given)
    assert loss < plain  # no token counts for more than it did


def test_a_token_that_the_model_is_sure_of_counts_whole_and_an_impossible_one_not_at_all() -> None:
    for shift, share in ((30.0, 1.0), (-30.0, 0.0)):
        hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [shift]], requires_grad=True)
        dynamic, plain = (linear_cross_entropy(hidden, weight, torch.tensor([1]), dft=dft)[0] for dft in (True, False))
        assert dynamic.item() == pytest.approx(share * plain.item(), abs=1e-6)
        for one, other in zip(grads(dynamic, weight), grads(plain, weight), strict=True):
            torch.testing.assert_close(one, share * other, rtol=1e-4, atol=1e-6)


def test_dynamic_fine_tuning_adds_up_over_micro_batches_and_leaves_untrained_tokens_out() -> None:
    hidden, weight, labels = inputs()
    whole, _ = linear_cross_entropy(hidden, weight, labels, dft=True)
    parts = [linear_cross_entropy(hidden[s], weight, labels[s], dft=True)[0] for s in (slice(0, 4), slice(4, 13))]
    torch.testing.assert_close(grads(sum(parts, hidden.new_zeros(())), hidden, weight), grads(whole, hidden, weight))
    kept = labels != -100
    torch.testing.assert_close(linear_cross_entropy(hidden[kept], weight, labels[kept], dft=True)[0], whole)


def test_the_gradient_follows_a_factor_put_on_the_loss_later() -> None:
    hidden, weight, labels = inputs()
    loss, _ = linear_cross_entropy(hidden, weight, labels, chunk_tokens=4)
    expected = textbook(hidden, weight, labels, 0.0)
    torch.testing.assert_close(grads(loss * 0.125, hidden, weight), grads(expected * 0.125, hidden, weight))


def test_micro_batches_add_up_to_the_batch() -> None:
    hidden, weight, labels = inputs()
    whole, metrics = linear_cross_entropy(hidden, weight, labels, z_loss=0.1)
    parts = [linear_cross_entropy(hidden[s], weight, labels[s], z_loss=0.1) for s in (slice(0, 4), slice(4, 13))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    assert sum(int(part[1]["count"]) for part in parts) == int(metrics["count"]) == 10
    torch.testing.assert_close(grads(parts[0][0] + parts[1][0], hidden, weight), grads(whole, hidden, weight))


def test_untrained_tokens_never_matter() -> None:
    hidden, weight, labels = inputs()
    changed = hidden.detach().clone()
    changed[labels == -100] = 1e3
    one, two = (linear_cross_entropy(h, weight, labels, z_loss=0.1)[0] for h in (hidden, changed))
    assert torch.equal(one, two)
    assert not grads(one, hidden)[0][labels == -100].any()


def test_nothing_to_train_is_zero_with_zero_gradients() -> None:
    hidden, weight, labels = inputs(ignored=13)
    loss, metrics = linear_cross_entropy(hidden, weight, labels, z_loss=0.1)
    assert loss.item() == 0 and metrics["count"].item() == 0
    assert all(not grad.any() for grad in grads(loss, hidden, weight))


def test_without_gradients_it_is_the_same_number() -> None:
    hidden, weight, labels = inputs()
    with torch.no_grad():
        silent, _ = linear_cross_entropy(hidden, weight, labels)
    assert torch.equal(silent, linear_cross_entropy(hidden, weight, labels)[0])
    frozen, _ = linear_cross_entropy(hidden, weight.detach(), labels)
    torch.testing.assert_close(grads(frozen, hidden), grads(textbook(hidden, weight, labels, 0.0), hidden))


def test_token_losses_are_the_parts_of_the_sum() -> None:
    hidden, weight, labels = inputs()
    losses = token_losses(hidden, weight, labels, chunk_tokens=4)
    expected = F.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=-100)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(losses.sum(), linear_cross_entropy(hidden, weight, labels)[0])


def test_under_autocast_products_are_bf16_and_sums_stay_fp32() -> None:
    hidden, weight, labels = inputs(n=600, d=64, v=300, dtype=torch.float32, ignored=50)
    with torch.no_grad():
        weight *= 0.1
    expected = textbook(hidden.double(), weight.double(), labels, 0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, labels, chunk_tokens=100)
    assert loss.dtype == torch.float32
    assert abs(loss.item() / expected.item() - 1) < 1e-3
    for found, wanted in zip(grads(loss, hidden, weight), grads(expected, hidden, weight), strict=True):
        assert found.dtype == torch.float32
        assert (found - wanted).norm() / wanted.norm() < 1e-2


def test_bf16_hidden_with_fp32_weights_gives_gradients_of_the_inputs_dtypes() -> None:
    hidden, weight, labels = inputs(dtype=torch.float32)
    half = hidden.detach().bfloat16().requires_grad_()
    loss, _ = linear_cross_entropy(half, weight, labels)
    assert [grad.dtype for grad in grads(loss, half, weight)] == [torch.bfloat16, torch.float32]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch imports it
def test_the_compiled_terms_agree() -> None:
    hidden, weight, labels = inputs(dtype=torch.float32)
    answers: list[Any] = []
    for compiled in (False, True):
        loss, _ = linear_cross_entropy(hidden, weight, labels, z_loss=0.1, compiled=compiled)
        answers.append((loss, *grads(loss, hidden, weight)))
    torch.testing.assert_close(answers[0], answers[1])


@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_a_softcap_bends_logits_and_gradients(chunk_tokens: int | None) -> None:
    hidden, weight, labels = inputs()
    loss, _ = linear_cross_entropy(hidden, weight, labels, z_loss=0.1, softcap=1.5, chunk_tokens=chunk_tokens)
    capped = 1.5 * torch.tanh(hidden @ weight.T / 1.5)
    penalty = (capped.logsumexp(-1).square() * (labels != -100)).sum()
    wanted = F.cross_entropy(capped, labels, reduction="sum", ignore_index=-100) + 0.1 * penalty
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(grads(loss, hidden, weight), grads(wanted, hidden, weight))
    each = token_losses(hidden, weight, labels, softcap=1.5)
    torch.testing.assert_close(each, F.cross_entropy(capped, labels, reduction="none", ignore_index=-100).detach())


@pytest.mark.parametrize("label", [-1, -99, 5, 2**31])
def test_a_label_that_names_no_token_is_refused_on_every_way(label: int) -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    labels = torch.tensor([0, IGNORED, label])
    for compiled in (False, True):
        with pytest.raises(ValueError, match=f"a label is {label}; wanted 0 to 4, or -100"):
            linear_cross_entropy(hidden, weight, labels, compiled=compiled)
    with pytest.raises(ValueError, match=f"a label is {label}"):
        token_losses(hidden, weight, labels)
    for wrong in (label, IGNORED):  # log-probabilities are of tokens: none is left out
        with pytest.raises(ValueError, match=f"a label is {wrong}; wanted 0 to 4$"):
            token_logprobs(hidden, weight, torch.tensor([0, 4, wrong]))


def test_looking_at_labels_waits_for_no_device() -> None:
    """On tensors that say they are on CUDA any reading of a value raises."""
    with FakeTensorMode():
        ids = torch.zeros(6, dtype=torch.long, device="cuda")
        check_tokens(ids, vocab=5, ignored=True)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_weights_scale_each_tokens_loss_and_gradient(chunk_tokens: int | None, softcap: float | None) -> None:
    hidden, weight, labels = inputs()
    weights = torch.rand(len(labels), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"z_loss": 0.1, "softcap": softcap, "chunk_tokens": chunk_tokens}
    loss, metrics = linear_cross_entropy(hidden, weight, labels, weights_N=weights, **options)
    alone = [slice(n, n + 1) for n in range(len(labels))]
    each = [linear_cross_entropy(hidden[n], weight, labels[n], **options)[0] for n in alone]
    expected = (torch.stack(each) * weights).sum()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grads(loss, hidden, weight), grads(expected, hidden, weight))
    assert metrics["count"] == (labels != -100).sum()
    ones, _ = linear_cross_entropy(hidden, weight, labels, weights_N=torch.ones(len(labels)), **options)
    assert torch.equal(ones, linear_cross_entropy(hidden, weight, labels, **options)[0])
