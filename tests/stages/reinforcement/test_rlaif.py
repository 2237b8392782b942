"""Online preferences in their stage: a plain loop of DPO on the best and the worst, whatever the layout; and the way by
rewards is that of stage=grpo."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.model.adapted import lora
from tests.stages.reinforcement.made import GRADED, KEYS, POLICY, ByTokens, grpo, prompts
from tests.stages.reinforcement.test_grpo import drawn, train, weights
from tests.stages.test_step import ADAMW, optimization
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch import PromptBatch, Rollout
from lifecycle.config.signature import Walk
from lifecycle.model import Decoder, build
from lifecycle.stages.preference.settings import PreferenceKeys
from lifecycle.stages.reinforcement.acting.scoring import SampleScores, comparable
from lifecycle.stages.reinforcement.preferences.learner import best_and_worst
from lifecycle.stages.reinforcement.preferences.settings import faults
from lifecycle.stages.rlaif import Rlaif

STEPS = 3
CONF: dict[str, Any] = yaml.safe_load((Path(__file__).parents[3] / "conf/stage/_preference.yaml").read_text())


def rlaif(
    optimise: Any = "online_dpo",
    *,
    scoring: Any = None,
    online: dict[str, Any] | None = None,
    updates: int = 1,
    passes: int = 1,
    micro_tokens: int = 4096,
    lr: float = 1e-2,
    setup: dict[str, Any] | None = None,
    **policy: Any,
) -> Rlaif:
    """On the facts of `grpo`."""
    walk, like = Walk(), grpo(micro_tokens=micro_tokens, setup=setup)
    keys = walk.construct(PreferenceKeys, CONF | (online or {}), ())
    assert not walk.faults
    made = Rlaif(
        model=POLICY,
        optimization=optimization(lr),
        drawn=replace(like.actor.drawn, updates_per_rollout=updates, passes_per_rollout=passes),
        graded=GRADED,
        policy=replace(KEYS, **policy),
        optimise=optimise,
        online_dpo=keys,
        setup=like.setup_facts,
    )
    made.actor.scoring = scoring or ByTokens()  # type: ignore[assignment]
    return made


def plain_logp(model: Decoder, rollout: Rollout, n: int) -> Tensor:
    """() of a completion, at temperature 1 over the whole vocabulary."""
    ids = torch.tensor([*rollout.prompts[n], *rollout.completion(n)])
    logits = model.logits(model(ids[None, :-1], torch.arange(len(ids) - 1)[None]))[0]
    return F.log_softmax(logits, -1).gather(1, ids[1:, None])[len(rollout.prompts[n]) - 1 :, 0].sum()


def plain_pairs(rollout: Rollout) -> list[tuple[int, int]]:
    reward = ((rollout.token_ids * rollout.exists).sum(1) % 7).tolist()
    found = []
    for first in range(0, len(rollout), 4):
        group = range(first, first + 4)
        best, worst = max(group, key=lambda n: reward[n]), min(group, key=lambda n: reward[n])
        if reward[best] > reward[worst]:
            found.append((best, worst))
    return found


def test_three_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    made = rlaif()
    rows = train(made, tmp_path)  # type: ignore[arg-type]
    model, reference = build(POLICY, seed=1), build(POLICY, seed=3)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=ADAMW.betas, eps=ADAMW.eps, weight_decay=ADAMW.weight_decay)
    for step in range(STEPS):
        rollout = drawn(model, step, prompts(step))
        pairs = plain_pairs(rollout)
        losses = []
        for pair in pairs:
            now = [plain_logp(model, rollout, n) for n in pair]
            with torch.no_grad():
                then = [plain_logp(reference, rollout, n) for n in pair]
            losses.append(-F.logsigmoid(0.1 * (now[0] - then[0] - now[1] + then[1])))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        row = rows[step + 1]
        assert row["train/loss"] == pytest.approx(loss.item(), abs=2e-5)
        assert row["rlaif/pairs"] == len(pairs) / 4 and row["rlaif/unscorable"] == 0
        assert row["preference/kl"] > 0
    for mine, theirs in zip(weights(made), model.parameters(), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", ["sigmoid", "nll"], "ipo"])
def test_no_layout_changes_a_step(loss: Any, tmp_path: Path) -> None:
    whole = rlaif(online={"loss": loss}, updates=2)
    rows = train(whole, tmp_path)  # type: ignore[arg-type]
    split = rlaif(online={"loss": loss}, updates=2, micro_tokens=64)
    cut = train(split, tmp_path, parts=lambda given: [given.at([0]), given.at([1, 2, 3])])  # type: ignore[arg-type]
    for step, row in rows.items():
        for name in ("train/loss", "train/grad_norm", "rlaif/pairs", "preference/margin"):
            assert cut[step][name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), name
    for mine, theirs in zip(weights(whole), weights(split), strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_rewards_are_learnt_from_as_stage_grpo_learns(tmp_path: Path) -> None:
    kl = replace(KEYS.kl, coefficient=0.3)
    one, other = rlaif("grpo", kl=kl), grpo(kl=kl)
    assert train(one, tmp_path)[STEPS]["train/loss"] == train(other, tmp_path)[STEPS]["train/loss"]  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))  # type: ignore[arg-type]


def test_a_step_without_a_pair_moves_nothing(tmp_path: Path) -> None:
    class Equal(ByTokens):
        def scores(self, stage: Any, rollout: Rollout, given: PromptBatch) -> SampleScores:
            found = super().scores(stage, rollout, given)
            return replace(found, rewards=torch.full_like(found.rewards, 0.3))

    made = rlaif(scoring=Equal())
    row = train(made, tmp_path, steps=1)[1]  # type: ignore[arg-type]
    assert row["train/loss"] == 0 and row["train/grad_norm"] == 0 and row["rlaif/ties"] == 1 and row["rlaif/pairs"] == 0


def test_the_reference_is_the_model_without_its_adapter(tmp_path: Path) -> None:
    made = rlaif(setup={"adapter": lora(rank=2)})
    rows = train(made, tmp_path)  # type: ignore[arg-type]
    assert rows[1]["train/loss"] == pytest.approx(math.log(2), abs=1e-5)  # an adapter begins as nothing
    assert rows[STEPS]["preference/kl"] > 0


def test_the_best_and_the_worst_of_a_prompt() -> None:
    nan, place = math.nan, torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 3, 4])
    total = torch.tensor([0.5, 0.9, 0.5, 0.2, 0.2, nan, 0.1, 0.1, 0.7, nan], dtype=torch.float64)
    texts = [[n] for n in range(10)]
    assert best_and_worst(total, place, texts).tolist() == [-1, 1, 0, 0, 0, 0, 0, -1, 1, 0]
    texts[7] = texts[8]  # one text that was judged twice
    assert best_and_worst(total, place, texts).tolist() == [-1, 1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert len(best_and_worst(total[:0], place[:0], [])) == 0


def test_a_sum_of_fewer_rewards_is_compared_with_none() -> None:
    nan = math.nan
    rewards = torch.tensor([[1.0, 0.5], [nan, 0.5], [nan, 0.5], [nan, 0.1], [nan, nan]], dtype=torch.float64)
    scores = SampleScores(
        names=["judged", "shape"],
        weights=[1.0, 1.0],
        rewards=rewards,
        place=torch.tensor([0, 0, 1, 1, 1]),
        failed={},
        timed_out={},
    )
    assert comparable(scores).nan_to_num(-1).tolist() == [1.5, -1, 0.5, 0.1, -1]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"samples_per_prompt": 1}, "a pair is made of two samples"),
        ({"online_dpo": {"loss": "kto"}}, "stage.online_dpo.loss has kto"),
        ({"online_dpo": {"loss": "aot"}}, "stage.online_dpo.loss=sigmoid"),
        ({"online_dpo": {"reference": "cached"}}, "stage.online_dpo.reference=live"),
        ({"online_dpo": {"reference": None}}, "stage.online_dpo.reference=auto, or a loss without"),
        ({"online_dpo": {"reference": "adapter"}}, "type adapter=lora, or stage.online_dpo.reference=live"),
        ({"online_dpo": {"loss": "nothing", "reference": "live"}}, ""),
    ],
)
def test_what_does_not_go_together(changed: dict[str, Any], says: str) -> None:
    stage = {"optimise": "online_dpo", "samples_per_prompt": 4, "rewards": "length", "online_dpo": {}, **changed}
    stage["online_dpo"] = {**CONF, **stage["online_dpo"]}
    found = faults({"stage": stage})
    assert any(says in line for line in found) if says else found == []
    assert faults({"stage": {**stage, "optimise": "grpo"}}) == []
