"""Divergences from a teacher: hand-worked values, float64 autograd, TRL's formula, and what a tail is for."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.losses.distillation import Head, TopK, divergence, top_k

N, V, D, E = 7, 11, 5, 6
BETAS = [0.0, 0.1, 0.5, 1.0]
TRL = json.loads(Path(__file__).with_name("parity").joinpath("trl_divergence.json").read_text())
"""Made by parity/dump_trl_divergence.py."""


def heads(seed: int = 0, *, cap: float | None = None) -> tuple[Head, Head]:
    """A student's and a teacher's, of other widths, float64. cap: of the student; half of it is the teacher's."""
    torch.manual_seed(seed)
    student, teacher = torch.randn(N, D).double(), torch.randn(N, E).double()
    matrices = torch.randn(V, D).double(), torch.randn(V, E).double()
    return Head(student, matrices[0], cap), Head(teacher, matrices[1], cap and cap / 2)


def logits(head: Head) -> Tensor:
    z = head.hidden_ND @ head.weight_VD.T
    return z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)


def plain(student: Tensor, teacher: Tensor, beta: float, temperature: float = 1.0) -> Tensor:
    """The definition, over whole logits or log-probabilities of buckets, by torch's own divergence; T^2 outside."""
    p, q = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return F.kl_div(b, a, log_target=True, reduction="sum")

    if beta in (0, 1):
        return temperature**2 * (kl(q, p) if beta == 0 else kl(p, q))
    m = (beta * q.exp() + (1 - beta) * p.exp()).log()
    return temperature**2 * (beta * kl(q, m) + (1 - beta) * kl(p, m))


def head_of(rows: list[list[float]]) -> Head:
    """One whose logits are the logs of these probabilities."""
    return Head(torch.tensor(rows, dtype=torch.float64).log(), torch.eye(len(rows[0]), dtype=torch.float64))


def test_values_by_hand() -> None:
    student, teacher = head_of([[0.5, 0.5]]), head_of([[0.8, 0.2]])
    forward = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    reverse = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    middle = 0.5 * (0.8 * math.log(0.8 / 0.65) + 0.2 * math.log(0.2 / 0.35)) + 0.5 * (
        0.5 * math.log(0.5 / 0.65) + 0.5 * math.log(0.5 / 0.35)
    )
    for beta, value in ((0.0, forward), (1.0, reverse), (0.5, middle)):
        assert float(divergence(student, teacher, beta=beta)) == pytest.approx(value, abs=1e-12)


def test_temperature_by_hand() -> None:
    """At T = 2 probabilities are square roots, made to sum to 1; the divergence is 4 times theirs."""
    student, teacher = head_of([[0.5, 0.5]]), head_of([[0.9, 0.1]])
    q = 3 / 4  # sqrt 0.9 : sqrt 0.1 = 3 : 1
    value = 4 * (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert float(divergence(student, teacher, beta=0.0, temperature=2.0)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_value_and_gradients_are_those_of_the_definition(beta: float, temperature: float, cap: float | None) -> None:
    student, teacher = heads(cap=cap)
    inputs = [student.hidden_ND.requires_grad_(), student.weight_VD.requires_grad_()]
    ours = divergence(student, teacher, beta=beta, temperature=temperature, chunk_tokens=3)
    theirs = plain(logits(student), logits(teacher), beta, temperature)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    for mine, other in zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", TRL["cases"], ids=str)
def test_trl_says_the_same_but_for_the_factor_of_the_temperature(case: dict[str, Any]) -> None:
    student, teacher = (torch.tensor(TRL[name], dtype=torch.float64) for name in ("student", "teacher"))
    eye, temperature = torch.eye(student.shape[1], dtype=torch.float64), case["temperature"]
    hidden = student.requires_grad_()
    ours = divergence(Head(hidden, eye), Head(teacher, eye), beta=case["beta"], temperature=temperature)
    (slope,) = torch.autograd.grad(ours, hidden)
    assert ours.item() == pytest.approx(temperature**2 * case["loss"], abs=1e-6)  # its mixture takes beta in fp32
    theirs = temperature**2 * torch.tensor(case["gradient"], dtype=torch.float64)
    torch.testing.assert_close(slope, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [1, 4, V - 1])
def test_kept_tokens_and_the_tail_are_as_many_tokens(beta: float, k: int) -> None:
    student, teacher = heads(1)
    said = top_k(teacher, k, temperature=1.3, chunk_tokens=2)
    torch.testing.assert_close(said.logp.exp().sum(-1), torch.ones(N, dtype=torch.float64))
    assert torch.equal(said.ids, logits(teacher).argsort(-1, descending=True)[:, :k])
    inputs = [student.hidden_ND.requires_grad_(), student.weight_VD.requires_grad_()]
    ours = divergence(student, said, beta=beta, temperature=1.3, chunk_tokens=3)
    mine = F.log_softmax(logits(student) / 1.3, -1)
    tail = (1 - mine.exp().gather(1, said.ids).sum(-1, keepdim=True)).log()
    theirs = 1.3**2 * plain(torch.cat([mine.gather(1, said.ids), tail], -1), said.logp, beta)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    for mine, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("beta", BETAS)
def test_all_tokens_kept_is_the_whole_divergence(beta: float) -> None:
    student, teacher = heads(2)
    whole = divergence(student, teacher, beta=beta)
    torch.testing.assert_close(divergence(student, top_k(teacher, V), beta=beta), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions_are_no_distance_apart(beta: float) -> None:
    student, _ = heads(3)
    hidden = student.hidden_ND.clone().requires_grad_()
    for teacher in (student, top_k(student, 3)):
        loss = divergence(Head(hidden, student.weight_VD), teacher, beta=beta)
        assert abs(loss.item()) < 1e-12
        assert float(torch.autograd.grad(loss, hidden)[0].abs().max()) < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_a_step_down_the_gradient_brings_the_student_nearer(beta: float) -> None:
    student, teacher = heads(4)
    hidden = student.hidden_ND.clone().requires_grad_()
    before = divergence(Head(hidden, student.weight_VD), teacher, beta=beta)
    (slope,) = torch.autograd.grad(before, hidden)
    assert divergence(Head(hidden - 1e-3 * slope, student.weight_VD), teacher, beta=beta) < before


def test_chunks_and_the_order_of_tokens_change_nothing() -> None:
    student, teacher = heads(5)
    whole = divergence(student, teacher, beta=0.3)
    turned = [Head(head.hidden_ND.flip(0), head.weight_VD) for head in (student, teacher)]
    halves = [
        divergence(*(Head(head.hidden_ND[part], head.weight_VD) for head in (student, teacher)), beta=0.3)
        for part in (slice(0, 3), slice(3, N))
    ]
    for other in (divergence(student, teacher, beta=0.3, chunk_tokens=1), divergence(*turned, beta=0.3), sum(halves)):
        torch.testing.assert_close(other, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_a_weight_counts_a_token_so_many_times(beta: float) -> None:
    student, teacher = heads(9)
    hidden, times = student.hidden_ND.clone().requires_grad_(), torch.tensor([2, 0, 1, 3, 1, 0, 1])
    repeated = torch.arange(N).repeat_interleave(times)
    for said in (teacher, top_k(teacher, 3)):
        again = type(said)(said[0][repeated], said[1] if isinstance(said, Head) else said[1][repeated])
        weighted = divergence(Head(hidden, student.weight_VD), said, beta=beta, weights_N=times, chunk_tokens=2)
        plainly = divergence(Head(hidden[repeated], student.weight_VD), again, beta=beta)
        torch.testing.assert_close(weighted, plainly, rtol=1e-12, atol=1e-12)
        slopes = [torch.autograd.grad(loss, hidden)[0] for loss in (weighted, plainly)]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-10, atol=1e-12)


def test_the_tail_keeps_the_student_on_what_the_teacher_likes() -> None:
    """Without it the reverse divergence over kept tokens is least at 1 / e of the teacher's mass."""
    said = [0.5, 0.3, 0.1, 0.1]
    away = [0.5 / math.e, 0.3 / math.e, 0.5 - 0.4 / math.e, 0.5 - 0.4 / math.e]
    bare = [sum(p * math.log(p / q) for p, q in zip(student[:2], said[:2], strict=True)) for student in (said, away)]
    assert bare[1] < bare[0] == 0
    teacher = top_k(head_of([said]), 2)
    with_tail = [float(divergence(head_of([student]), teacher, beta=1.0)) for student in (said, away)]
    assert with_tail[1] > 0.5 and with_tail[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_certain_students_and_teachers_stay_finite(beta: float) -> None:
    hidden = torch.tensor([[80.0, -80.0, 0.0], [0.0, 120.0, -120.0]], requires_grad=True)
    teacher = Head(hidden.detach().flip(1), torch.eye(3))
    for said in (teacher, top_k(teacher, 1), top_k(teacher, 3)):
        loss = divergence(Head(hidden, torch.eye(3)), said, beta=beta)
        (slope,) = torch.autograd.grad(loss, hidden)
        assert torch.isfinite(loss) and torch.isfinite(slope).all()


def test_products_in_bf16_keep_logarithms_in_fp32() -> None:
    torch.manual_seed(6)
    student, teacher = (Head(torch.randn(64, 32), torch.randn(50, 32) / 6) for _ in range(2))
    whole = divergence(student, teacher, beta=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = divergence(student, teacher, beta=0.5)
    assert rounded.dtype == torch.float32
    assert float(rounded) == pytest.approx(float(whole), rel=2e-2)


def test_no_tokens_are_no_loss() -> None:
    student, teacher = heads(7)
    none = [Head(head.hidden_ND[:0], head.weight_VD) for head in (student, teacher)]
    assert float(divergence(*none, beta=0.5)) == 0
    assert float(divergence(none[0], top_k(none[1], 2), beta=0.5)) == 0


def test_what_cannot_be_is_refused() -> None:
    student, teacher = heads(8)
    with pytest.raises(ValueError, match="vocabulary is 9"):
        divergence(student, Head(teacher.hidden_ND, teacher.weight_VD[:9]), beta=0.5)
    for beta, temperature in ((-0.1, 1.0), (1.1, 1.0), (0.5, 0.0)):
        with pytest.raises(ValueError, match="wanted 0 to 1"):
            divergence(student, teacher, beta=beta, temperature=temperature)
    assert isinstance(top_k(teacher, 2), TopK)
