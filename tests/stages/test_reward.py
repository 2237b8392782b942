"""Laws of reward models through the stage: what is judged, that no layout changes a step, and what is told."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from tests.stages.test_dpo import alone, apart, pairs, rows_of
from tests.stages.test_step import ADAMW, MODEL, Batches, Kept, optimization, stage, trainer_of
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import Pair, PairBatch
from lifecycle.data.stream.packing import Packing, Piece
from lifecycle.data.views import _read_whole
from lifecycle.model import Decoder, DocumentMask, build
from lifecycle.stages.preference import calibration
from lifecycle.stages.reward import Reward
from lifecycle.stages.run.setup import ParentWeights

STEPS = 3
CONF: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "conf/stage/reward.yaml").read_text())
SCORED = replace(MODEL, score_head=True)


def parent() -> Decoder:
    return build(SCORED, seed=1)


def reward(*, lr: float = 1e-3, centring: float = 0.01, margin_scale: float = 1.0) -> Reward:
    weights = ParentWeights(read=lambda: parent().state_dict(), sha256=lambda: "parent", cache=Path)
    return Reward(
        model=SCORED,
        optimization=optimization(lr),
        centring=centring,
        margin_scale=margin_scale,
        setup=replace(stage().setup_facts, parent=weights, read_weights=weights.read),
    )


def whole(step: int, *, margins: bool = True) -> list[Piece]:
    """The pairs of the DPO tests, each answer read to its end; every other one has a margin."""
    made = []
    for number, piece in enumerate(pairs(step)):
        assert isinstance(piece.item, Pair)
        margin = 0.5 * number if margins and number % 2 else None
        chosen, rejected = (_read_whole(side) for side in (piece.item.chosen, piece.item.rejected))
        made.append(piece._replace(item=replace(piece.item, chosen=chosen, rejected=rejected, margin=margin)))
    return made


def train(made: Reward, steps: Sequence[list[Any]], folder: Path) -> dict[int, dict[str, float]]:
    logger = Kept()
    trainer_of(len(steps), folder, logger=logger).fit(made, Batches(cast(Any, steps)))
    return logger.rows


def same(one: Reward, other: Reward) -> None:
    torch.testing.assert_close(one.network.state_dict(), other.network.state_dict(), rtol=1e-4, atol=2e-5)


def plain_score(model: Decoder, ids: Any) -> Tensor:
    """Behind the last of the ids, one sequence at a time, without packing."""
    tokens = torch.from_numpy(np.asarray(ids)).long()[None]
    assert model.score is not None
    return model.score(model(tokens, torch.arange(tokens.shape[1])[None]))[0, -1, 0]


def test_the_position_that_is_judged_has_seen_the_token_that_ends_the_answer() -> None:
    batch: PairBatch = rows_of(whole(0), "comparison", 64)
    ids = batch.tokens.input_ids.flatten()
    before = {tuple(side.ids) for p in pairs(0) for side in (cast(Pair, p.item).chosen, cast(Pair, p.item).rejected)}
    seen = set()
    for end in torch.cat(batch.ends).tolist():
        start = end - int(batch.tokens.position_ids.flatten()[end])
        seen.add(tuple(ids[start : end + 1].tolist()))
    assert seen == before
    assert int(batch.tokens.trained.sum()) == int(rows_of(pairs(0), "preference", 64).tokens.trained.sum())


def test_three_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    made = reward()
    rows = train(made, [apart(rows_of(whole(step), "comparison", 64)) for step in range(STEPS)], tmp_path)
    policy = parent()
    decayed = [p for p in policy.parameters() if p.dim() > 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": [p for p in policy.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        losses = []
        for number, piece in enumerate(pairs(step)):
            assert isinstance(piece.item, Pair)
            good, bad = (plain_score(policy, side.ids) for side in (piece.item.chosen, piece.item.rejected))
            margin = 0.5 * number if number % 2 else 0.0
            losses.append(-F.logsigmoid(good - bad - margin) + 0.01 * (good + bad) ** 2)
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        assert rows[step + 1]["train/loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(made.network.state_dict(), policy.state_dict(), rtol=1e-4, atol=2e-5)


def test_splitting_ordering_packing_and_padding_never_change_a_step(tmp_path: Path) -> None:
    steps = [whole(step) for step in range(STEPS)]
    one = reward()
    rows = train(one, [[rows_of(items, "comparison", 64)] for items in steps], tmp_path)
    layouts = {
        "split": [apart(rows_of(items, "comparison", 64)) for items in steps],
        "padded": [[alone(items, "comparison")] for items in steps],
        "other order": [[rows_of(items[::-1], "comparison", 64)] for items in steps],
        "other rows": [[rows_of(items, "comparison", 96)] for items in steps],
    }
    for name, form in layouts.items():
        other = reward()
        again = train(other, form, tmp_path / name.replace(" ", ""))
        same(one, other)
        for step in range(1, STEPS + 1):
            for key in ("train/loss", "train/grad_norm", "reward/margin", "reward/b/chosen"):
                assert again[step].get(key) == pytest.approx(rows[step].get(key), rel=1e-4, abs=1e-6), (name, key)


def test_a_run_begins_near_log_2_and_learns_the_pairs(tmp_path: Path) -> None:
    rows = train(reward(lr=1e-2), [[rows_of(whole(0, margins=False), "comparison", 64)]] * 20, tmp_path)
    assert rows[1]["train/loss"] == pytest.approx(math.log(2), abs=0.1)
    last = rows[20]
    assert last["train/loss"] < 0.3 and last["reward/accuracy"] == 1.0 and last["reward/margin"] > 1
    assert last["reward/margin"] == pytest.approx(last["reward/chosen"] - last["reward/rejected"], abs=1e-5)
    assert last["reward/margin"] == pytest.approx((last["reward/a/margin"] + last["reward/b/margin"]) / 2, rel=1e-5)


def test_margins_count_by_their_scale_and_centring_by_its_weight(tmp_path: Path) -> None:
    batch = [[rows_of(whole(0), "comparison", 64)]]
    losses = {
        (scale, weight): train(reward(centring=weight, margin_scale=scale), batch, tmp_path / f"{scale}{weight}")[1]
        for scale, weight in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    }
    none, margins, centred = (row["train/loss"] for row in losses.values())
    assert none == pytest.approx(math.log(2), abs=0.1)
    assert margins > none + 0.2  # margins 0.5, 1.5, 2.5 on half of the pairs
    assert centred > none


def test_held_out_pairs_give_loss_accuracy_and_calibration() -> None:
    made = reward()
    made.configure_model()
    batch: PairBatch = rows_of(whole(0), "comparison", 64)
    seen = DocumentMask.from_ids(batch.tokens.document_ids, kernel="sdpa")
    with torch.no_grad():
        sums = made.validation_step((batch, seen), 0)
        sides = [cast(Pair, piece.item) for piece in pairs(0)]
        apart_P = torch.stack(
            [plain_score(parent(), p.chosen.ids) - plain_score(parent(), p.rejected.ids) for p in sides]
        )
    assert len(sums) == 2 + len(calibration.MEASURES) and float(sums[1]) == 6
    assert float(sums[0]) == pytest.approx(float(-F.logsigmoid(apart_P).sum()), rel=1e-4)  # neither margin nor centring
    assert float(sums[2]) == int((apart_P > 0).sum())
    means = dict(zip(calibration.MEASURES, (sums[2:] / 6).tolist(), strict=True))
    assert set(calibration.told(means, 1.0)) == {"accuracy", "calibration_error"}


def test_padding_alone_gives_nothing_and_no_error() -> None:
    made = reward()
    made.configure_model()
    batch: PairBatch = alone(whole(0), "comparison").rows(6, 7)
    sums = made.validation_step((batch, DocumentMask.from_ids(batch.tokens.document_ids, kernel="sdpa")), 0)
    assert sums.tolist() == [0.0] * len(sums)


def test_a_pair_that_is_too_long_is_left_out_or_shortened() -> None:
    piece = whole(0)[2]
    assert Packing(view="comparison").laid(piece, 12) == []
    (short,) = Packing(view="comparison", long_examples="shorten").laid(piece, 12)
    assert short.positions <= 12


# -- calibration


def test_calibration_error_by_hand() -> None:
    sure = math.log(0.8 / 0.2)  # certainty 0.8, bin 6
    half_sure = math.log(0.6 / 0.4)  # 0.6, bin 2
    difference = torch.tensor([sure, sure, sure, -sure, half_sure, -half_sure], dtype=torch.float64)
    found = calibration.reliability(difference)
    # bin 6: 4 pairs, 3 of 4 right, |4 * 0.8 - 3| = 0.2; bin 2: 2 pairs, 1 right, |1.2 - 1| = 0.2
    assert found["calibration_error"] == pytest.approx(0.4 / 6)
    assert found["accuracy"] == pytest.approx(4 / 6) and found["pairs"] == 6
    filled = {n: one for n, one in enumerate(found["bins"]) if one["pairs"]}
    assert [one["pairs"] for one in filled.values()] == [2, 4]
    assert filled[max(filled)]["right"] == 0.75 and filled[max(filled)]["certainty"] == pytest.approx(0.8)
    low, high = found["interval"]
    assert (low, high) == (pytest.approx(0.2999, abs=1e-3), pytest.approx(0.9032, abs=1e-3))  # Wilson, 4 of 6


def test_sums_of_parts_are_those_of_the_whole_and_odd_scores_are_taken() -> None:
    difference = torch.tensor([0.0, 1e6, -1e6, 0.3, float(np.float32(1e-8))])
    torch.testing.assert_close(
        calibration.sums(difference[:2]) + calibration.sums(difference[2:]), calibration.sums(difference)
    )
    assert calibration.sums(difference)[0] == 3  # equal scores are right of neither
    none = calibration.reliability(torch.zeros(0))
    assert none["pairs"] == 0 and none["interval"] == (0.0, 1.0)


def test_shortened_answers_are_refused_for_they_have_no_end() -> None:
    assert Reward.faults({"data": {"long_examples": "drop"}}) == []
    (line,) = Reward.faults({"data": {"long_examples": "shorten"}})
    assert "type data.long_examples=drop" in line


def test_the_keys_of_its_yaml() -> None:
    assert CONF["view"] in Reward.views and {"centring", "margin_scale", "peak_ratio"} < CONF.keys()
