"""One optimizer step of a model with experts: loads are counted once, and biases move after steps that are taken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.test_step import MODEL, STEPS, reordered, split, stage, train, weights, whole

from lifecycle.batch import TokenBatch
from lifecycle.model import MoE
from lifecycle.stages.pretrain import Pretrain

RATE = 0.01
EXPERTS = MoE(experts=4, active=2, ffn_width=16, shared=1, first_dense=1, score="sigmoid", bias_rate=RATE, balance=0.1)
SPARSE = replace(MODEL, family="glm4_moe", layers=3, moe=EXPERTS)
BIASES = ["blocks.1.ffn.router.bias", "blocks.2.ffn.router.bias"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = stage(model=SPARSE)
    rows = train(made, [whole(s) for s in range(STEPS)], tmp_path_factory.mktemp("reference"))
    return weights(made), rows


@pytest.mark.parametrize("form", [split, reordered])
def test_splitting_and_ordering_a_step_change_neither_weights_nor_biases(
    form: Any, reference: Any, tmp_path: Path
) -> None:
    made = stage(model=SPARSE)
    rows = train(made, [form(s) for s in range(STEPS)], tmp_path)
    assert all(torch.equal(weights(made)[name], reference[0][name]) for name in BIASES)
    torch.testing.assert_close(weights(made), reference[0], rtol=1e-3, atol=1e-4)
    for step, row in reference[1].items():
        for key in ("train/loss", "train/balance", "moe/load_max", "moe/load_min"):
            assert rows[step][key] == pytest.approx(row[key], rel=1e-4), key


def test_biases_move_by_whole_rates_and_loads_are_logged(reference: Any) -> None:
    for name in BIASES:
        steps = reference[0][name] / RATE
        assert torch.allclose(steps, steps.round(), atol=1e-4) and bool(steps.any())
    for row in reference[1].values():
        assert row["moe/load_min"] <= 1 <= row["moe/load_max"] <= 2  # at most every token: E / A of the mean
        assert row["moe/dropped"] == 0
        assert row["train/balance"] >= 0.1 * 2 * 0.9  # two layers, each near 1 times its weight
        assert row["train/tokens"] > 0 and row["data/a/tokens"] + row["data/b/tokens"] == row["train/tokens"]


def test_a_model_without_experts_logs_none(tmp_path: Path) -> None:
    rows = train(stage(), [whole(0)], tmp_path)
    assert not [key for key in rows[1] if key.startswith("moe/")]


def test_a_skipped_step_moves_no_bias(tmp_path: Path) -> None:
    made, original = stage(model=SPARSE, max_skipped=1), Pretrain._loss_sum

    def loss_sum(self: Pretrain, batch: TokenBatch, seen: Any) -> Any:
        loss, metrics = original(self, batch, seen)
        return loss * torch.inf, metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretrain, "_loss_sum", loss_sum)
        train(made, [whole(0)], tmp_path)
    assert not any(bool(weights(made)[name].any()) for name in BIASES)
