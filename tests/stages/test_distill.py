"""Laws of distillation through the stage: a plain loop, a student that is its teacher, and that no layout matters."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.test_step import (
    ADAMW,
    CONSTANT,
    MODEL,
    STEPS,
    Batches,
    Kept,
    documents,
    padded,
    reordered,
    split,
    stage,
    trainer_of,
    whole,
)
from tests.toy import toy
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Example, TokenBatch
from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, build
from lifecycle.stages.distill import Distance, Distill
from lifecycle.stages.setup import ParentWeights, TeacherModel
from lifecycle.stages.step.optimization import OptimizationKeys

LARGER = toy(layers=3, width=48, heads=3, kv_heads=1, head_dim=16, ffn_width=96, vocab_size=64, init_std=0.1)


def weights_of(config: ModelConfig, seed: int = 7) -> dict[str, Tensor]:
    return build(config, seed=seed).state_dict()


def distill(
    *,
    teacher: ModelConfig = LARGER,
    seed: int = 7,
    beta: float = 0.0,
    temperature: float = 1.0,
    cross_entropy: float = 0.0,
    rows: Any = "same",
    lr: float = 1e-2,
    **more: Any,
) -> Distill:
    weights = ParentWeights(
        read=lambda: weights_of(teacher, seed), sha256=lambda: f"{seed}", cache=lambda: Path("unused")
    )
    named = TeacherModel(name="large", config=teacher, weights=weights)
    return Distill(
        model=MODEL,
        optimization=OptimizationKeys(
            optimizer=replace(ADAMW, lr=lr), schedule=CONSTANT, max_skipped=0, max_norm_ratio=None
        ),
        divergence=Distance(beta=beta, temperature=temperature),
        cross_entropy=cross_entropy,
        teacher_vocabulary=rows,
        setup=replace(stage().setup_facts, teacher=named, **more),
    )


def train(made: Distill, steps: Sequence[list[TokenBatch]], folder: Path) -> dict[int, dict[str, float]]:
    logger = Kept()
    trainer_of(len(steps), folder, logger=logger).fit(made, Batches(steps))
    return logger.rows


# -- a plain loop


def plain_logits(model: Decoder, ids: Tensor) -> Tensor:
    """Of one sequence, without packing."""
    return model.logits(model(ids[None, :-1], torch.arange(len(ids) - 1)[None]))[0]


def kl(a: Tensor, b: Tensor) -> Tensor:
    return F.kl_div(b, a, log_target=True, reduction="sum")


def plain_divergence(student: Tensor, teacher: Tensor, beta: float, temperature: float) -> Tensor:
    p, q = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    if beta in (0, 1):
        return temperature**2 * (kl(q, p) if beta == 0 else kl(p, q))
    m = (beta * q.exp() + (1 - beta) * p.exp()).log()
    return temperature**2 * (beta * kl(q, m) + (1 - beta) * kl(p, m))


@pytest.mark.parametrize(("beta", "temperature", "share"), [(0.0, 2.0, 0.3), (0.5, 1.0, 0.0), (1.0, 1.0, 0.0)])
def test_three_steps_are_those_of_a_plain_loop(beta: float, temperature: float, share: float, tmp_path: Path) -> None:
    made = distill(beta=beta, temperature=temperature, cross_entropy=share)
    rows = train(made, [split(step) for step in range(STEPS)], tmp_path)
    student, teacher = build(MODEL, seed=1), build(LARGER, seed=7)
    decayed = [p for p in student.parameters() if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": [p for p in student.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        apart, nll, count = torch.zeros(()), torch.zeros(()), 0
        for piece in documents(step):
            assert isinstance(piece.item, Example)
            ids = torch.from_numpy(piece.item.ids).long()
            logits, count = plain_logits(student, ids), count + len(ids) - 1
            with torch.no_grad():
                theirs = plain_logits(teacher, ids)
            apart = apart + plain_divergence(logits, theirs, beta, temperature)
            nll = nll + F.cross_entropy(logits, ids[1:], reduction="sum")
        loss = ((1 - share) * apart + share * nll) / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        assert rows[step + 1]["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert rows[step + 1]["train/divergence"] == pytest.approx(float(apart.detach()) / count, rel=1e-5)
    torch.testing.assert_close(made.network.state_dict(), student.state_dict(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("form", [split, reordered, padded])
def test_splitting_ordering_and_padding_never_change_a_step(form: Any, tmp_path: Path) -> None:
    one, other = distill(beta=0.3), distill(beta=0.3)
    rows = train(one, [whole(s) for s in range(STEPS)], tmp_path / "one")
    again = train(other, [form(s) for s in range(STEPS)], tmp_path / "other")
    torch.testing.assert_close(other.network.state_dict(), one.network.state_dict(), rtol=1e-4, atol=2e-5)
    assert again[STEPS]["train/loss"] == pytest.approx(rows[STEPS]["train/loss"], rel=1e-5)


# -- a student that is its teacher


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(beta: float, tmp_path: Path) -> None:
    rows = train(distill(teacher=MODEL, seed=1, beta=beta), [whole(0)], tmp_path)
    assert abs(rows[1]["train/loss"]) < 1e-6 and rows[1]["train/grad_norm"] < 1e-5


def test_the_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    rows = train(distill(), [whole(0)] * 12, tmp_path)
    assert rows[12]["train/divergence"] < 0.7 * rows[1]["train/divergence"]


def test_nothing_but_the_labels_counts_at_a_share_of_1(tmp_path: Path) -> None:
    rows = train(distill(cross_entropy=1.0), [whole(0)], tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(rows[1]["train/cross_entropy"])


def test_the_teacher_is_in_no_checkpoint_and_is_not_trained(tmp_path: Path) -> None:
    made = distill()
    train(made, [whole(0)], tmp_path)
    assert made.state_dict().keys() == {f"model.{name}" for name in made.network.state_dict()}
    assert all(
        torch.equal(value, weights_of(LARGER)[name]) for name, value in made.teacher.network.state_dict().items()
    )


# -- weights of labels


def test_a_label_of_weight_two_counts_as_two(tmp_path: Path) -> None:
    (rows,) = whole(0)
    twice = TokenBatch.of({**rows.tensors(), "weights": torch.full(rows.labels.shape, 2.0)})
    one = train(distill(cross_entropy=0.5), [[rows, rows]], tmp_path / "one")
    other = train(distill(cross_entropy=0.5), [[twice]], tmp_path / "other")
    for key in ("train/loss", "train/divergence", "train/cross_entropy", "train/grad_norm"):
        assert other[1][key] == pytest.approx(one[1][key], rel=1e-5)


# -- vocabularies of different sizes


def test_a_vocabulary_of_another_size_is_refused_by_the_name_of_the_teacher() -> None:
    with pytest.raises(
        UserError, match=r"has 64 rows, and that of its teacher large 96.*teacher_vocabulary=renormalise"
    ):
        distill(teacher=replace(LARGER, vocab_size=96))


def test_renormalised_are_the_ids_that_both_have(tmp_path: Path) -> None:
    wide = replace(LARGER, vocab_size=96)
    rows = train(distill(teacher=wide, beta=0.5, rows="renormalise"), [whole(0)], tmp_path)
    student, teacher = build(MODEL, seed=1), build(wide, seed=7)
    apart, count = 0.0, 0
    for piece in documents(0):
        ids = torch.from_numpy(piece.item.ids).long()  # type: ignore[union-attr]
        with torch.no_grad():
            ours, theirs = plain_logits(student, ids), plain_logits(teacher, ids)[:, :64]
            apart += float(plain_divergence(ours, theirs, 0.5, 1.0))
        count += len(ids) - 1
    assert rows[1]["train/loss"] == pytest.approx(apart / count, rel=1e-5)
