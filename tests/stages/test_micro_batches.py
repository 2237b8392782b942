"""Laws of a step of any micro-batch: however labels are weighed and pairs are split, the weights after it are the same,
and what is logged are means over what the loss is divided by.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.stages.test_step import MODEL, Batches, Kept, optimization, stage, train, trainer_of, weights
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Example, Pair, PairBatch, StepBatch, TokenBatch
from lifecycle.data.stream.packing import Packing, Piece, best_fit
from lifecycle.losses import token_logprobs
from lifecycle.model import DocumentMask
from lifecycle.stages.base import Stage
from lifecycle.stages.step.next_token import held_out_loss

STEPS, LENGTH = 2, 24


def packed(view: str, items: list[Any]) -> Any:
    packing = Packing(view=view)
    rows = best_fit([Piece(item, number % 2) for number, item in enumerate(items)], LENGTH)
    return packing.batch(torch.from_numpy(packing.arrays(rows, LENGTH)).long())


def chats(step: int) -> TokenBatch:
    """Examples of which a part is trained, and whose labels have weights."""
    rng, items = np.random.default_rng(step), []
    for size in (5, 12, 7, 20, 9):
        ids, asked = rng.integers(1, 64, size).astype(np.int32), size // 3
        weight = rng.choice([0.5, 1, 3], size).astype(np.float32)
        items.append(Example(ids=ids, trained=np.arange(size) >= asked, weight=weight))
    made: TokenBatch = packed("chat", items)
    return made


def pairs(step: int) -> PairBatch:
    rng, items = np.random.default_rng(step), []
    for said in (4, 6, 3, 5, 7, 2):
        texts = [np.append([5, step + 1], rng.integers(1, 64, said)).astype(np.int32) for _ in range(2)]
        sides = [Example(ids=ids, trained=np.arange(said + 2) > 1) for ids in texts]
        items.append(Pair(prompt=sides[0].ids[:2], chosen=sides[0], rejected=sides[1]))
    made: PairBatch = packed("preference", items)
    return made


def by_rows(batch: Any) -> list[Any]:
    return [batch.rows(row, row + 1) for row in range(len(batch.packed.labels))]


def test_a_step_of_weighed_labels_is_the_same_however_it_is_split(tmp_path: Path) -> None:
    whole, split = stage(), stage()
    rows = train(whole, [[chats(step)] for step in range(STEPS)], tmp_path / "whole")
    again = train(split, [by_rows(chats(step)) for step in range(STEPS)], tmp_path / "split")
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-4, atol=2e-5)
    assert again[1]["train/loss"] == pytest.approx(rows[1]["train/loss"], rel=1e-5)
    made, fresh = chats(0), stage()
    fresh.configure_model()
    nll, weight = held_out_loss(fresh.network, made, DocumentMask.from_ids(made.document_ids, kernel="sdpa")).tolist()
    penalty = rows[1]["train/z_loss"]
    assert rows[1]["train/loss"] - penalty == pytest.approx(nll / weight, rel=1e-5)  # a weighed mean
    assert made.weights is not None and weight == pytest.approx(float(made.weights[made.trained].sum()))
    assert rows[1]["train/tokens"] == int(made.trained.sum())


class Toy(Stage):
    """A preference loss on packed pairs: -log sigmoid of the difference of their log-probabilities."""

    def training_step(self, batch: StepBatch[PairBatch], batch_idx: int) -> None:
        self.take_step(batch, self._pair_loss)

    def validation_step(self, batch: tuple[PairBatch, DocumentMask | None], batch_idx: int) -> Tensor:
        return torch.zeros(2, dtype=torch.float64)

    def _pair_loss(self, batch: PairBatch, documents: DocumentMask | None) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = batch.tokens
        hidden_ND = self.network(tokens.input_ids, tokens.position_ids, documents).flatten(0, 1)[batch.places]
        logp_N, _ = token_logprobs(hidden_ND, self.network.head_weight, tokens.labels.flatten()[batch.places])
        chosen_P, rejected_P = batch.sums(logp_N)
        margin_P = chosen_P - rejected_P
        return -F.logsigmoid(0.1 * margin_P).sum(), {"margin": margin_P.detach().sum()}


def fitted(steps: list[list[PairBatch]], folder: Path) -> tuple[Toy, dict[int, dict[str, float]]]:
    made, logger = stage(), Kept()
    keys = optimization()
    toy = Toy(model=MODEL, optimization=keys, setup=made.setup_facts)
    trainer_of(len(steps), folder, logger=logger).fit(toy, Batches(cast(Any, steps)))
    return toy, logger.rows


def test_a_step_of_pairs_is_the_same_however_it_is_split_and_counts_pairs(tmp_path: Path) -> None:
    whole, rows = fitted([[pairs(step)] for step in range(STEPS)], tmp_path / "whole")
    split, again = fitted([by_rows(pairs(step)) for step in range(STEPS)], tmp_path / "split")
    torch.testing.assert_close(whole.network.state_dict(), split.network.state_dict(), rtol=1e-4, atol=2e-5)
    for step in (1, 2):
        assert again[step]["train/loss"] == pytest.approx(rows[step]["train/loss"], rel=1e-5)
        assert again[step]["train/margin"] == pytest.approx(rows[step]["train/margin"], rel=1e-4)
    assert rows[1]["train/tokens"] == int(pairs(0).tokens.trained.sum()) and len(pairs(0)) == 6
    assert rows[1]["data/a/tokens"] + rows[1]["data/b/tokens"] == rows[1]["train/tokens"]
