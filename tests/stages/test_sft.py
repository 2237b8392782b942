"""Supervised fine-tuning: three steps through the Trainer are three steps of a plain loop, whichever loss it has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from tests.stages.test_step import ADAMW, LENGTH, MODEL, STEPS, Batches, Kept, optimization, trainer_of
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Example, TokenBatch
from lifecycle.data.stream.packing import Packing, Piece, Row, TrainOn
from lifecycle.duration import Timeline
from lifecycle.model import build
from lifecycle.stages.run.setup import Setup
from lifecycle.stages.sft import Sft

LR = 1e-2


def conversations(step: int) -> list[Example]:
    """Of different lengths, the later part of each trained."""
    draw = np.random.default_rng(step)
    ids = [draw.integers(1, 64, n + 1).astype(np.int32) for n in (5, 12, 7, 20, 3, 9)]
    return [Example(ids=one, trained=np.arange(len(one)) >= len(one) // 2) for one in ids]


def packed(examples: Sequence[Example], rows: Sequence[Sequence[int]], train_on: TrainOn = "assistant") -> TokenBatch:
    packing = Packing(view="chat", train_on=train_on)
    pieces = [[Piece(examples[n], 0) for n in row] for row in rows]
    made = [Row(row, LENGTH - sum(piece.positions for piece in row)) for row in pieces]
    batch = packing.batch(torch.from_numpy(packing.arrays(made, LENGTH)).long())
    assert isinstance(batch, TokenBatch)
    return batch


def sft(loss: Literal["nll", "dft"]) -> Sft:
    return Sft(
        model=MODEL,
        optimization=optimization(LR, weight_decay=0.0),
        loss=loss,
        setup=Setup(
            timeline=Timeline.even(STEPS, rows=1, row_length=LENGTH),
            seed=1,
            source_names=["a", "b"],
            domains={},
            validate_every=None,
            log_every=1,
            bf16=False,
            compile=False,
            activation_checkpointing=False,
            attention="auto",
            peak_flops=None,
        ),
    )


def plain_loop(loss: str, train_on: str) -> tuple[dict[str, Tensor], list[float]]:
    """One conversation at a time, unpacked, logits whole, no code of the stage."""
    model = build(MODEL, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        total, count = torch.zeros(()), 0
        for example in conversations(step):
            ids = torch.from_numpy(example.ids).long()
            assert example.trained is not None
            kept = torch.from_numpy(example.trained)[1:] | (train_on == "all")
            hidden = model(ids[None, :-1], torch.arange(len(ids) - 1)[None], None)
            nll = F.cross_entropy(model.logits(hidden)[0], ids[1:], reduction="none")[kept]
            total = total + (nll if loss == "nll" else nll * (-nll).exp().detach()).sum()
            count += int(kept.sum())
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW.grad_clip or torch.inf)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    return model.state_dict(), losses


@pytest.mark.parametrize("train_on", ["assistant", "all"])
@pytest.mark.parametrize("loss", ["nll", "dft"])
def test_three_steps_are_those_of_a_plain_loop(loss: Literal["nll", "dft"], train_on: TrainOn, tmp_path: Path) -> None:
    made, logger = sft(loss), Kept()
    split = [[[0, 1], [3]], [[2, 5, 4]]]  # two micro-batches, packed
    steps = [[packed(conversations(step), rows, train_on) for rows in split] for step in range(STEPS)]
    trainer_of(STEPS, tmp_path, logger=logger).fit(made, Batches(steps))
    weights, losses = plain_loop(loss, train_on)
    torch.testing.assert_close(made.network.state_dict(), weights, rtol=1e-4, atol=2e-5)
    assert [logger.rows[step + 1]["train/loss"] for step in range(STEPS)] == pytest.approx(losses, rel=1e-5)
    assert ("train/nll" in logger.rows[1]) == (loss == "dft")  # what can be compared with the held-out loss


def test_held_out_loss_is_the_likelihood_whichever_loss_is_trained() -> None:
    rows = packed(conversations(0), [[0, 1], [3]])
    sums = []
    for loss in ("nll", "dft"):
        made = sft(loss)
        made.model = build(MODEL, seed=1)
        with torch.no_grad():
            sums.append(made.validation_step(made.on_device(rows), 0))
    assert torch.equal(*sums) and float(sums[0][1]) == int(rows.trained.sum())


def test_held_out_loss_counts_trained_tokens_by_their_weight_and_no_others() -> None:
    rows, made = packed(conversations(0), [[0, 1], [3]]), sft("nll")
    made.model = build(MODEL, seed=1)
    weighed = [
        TokenBatch.of({**rows.tensors(), "weights": torch.where(rows.trained, 2.0, others)}) for others in (1.0, 7.0)
    ]
    with torch.no_grad():
        plain, *sums = (made.validation_step(made.on_device(one), 0) for one in (rows, *weighed))
    for one in sums:
        torch.testing.assert_close(one, 2 * plain)


def test_every_token_but_the_first_is_trained_where_all_of_a_conversation_is() -> None:
    some, whole = (packed(conversations(0), [[0, 1], [3]], train_on) for train_on in ("assistant", "all"))
    assert torch.equal(some.input_ids, whole.input_ids)
    assert int(whole.trained.sum()) == 5 + 12 + 20 > int(some.trained.sum())
    assert torch.equal(some.labels[some.trained], whole.labels[some.trained])
