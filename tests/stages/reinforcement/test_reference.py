"""A refreshed reference is the policy of then, or its mixture with the one before."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.model.adapted import lora
from tests.stages.reinforcement.made import POLICY, grpo, prompts
from tests.stages.test_step import Batches, Kept, trainer_of
from torch import Tensor

from lifecycle.model import build
from lifecycle.model.adapters import factors_of
from lifecycle.stages.grpo import Grpo
from lifecycle.stages.reinforcement import settings

STEPS = 5
Weights = dict[str, Tensor]


class Watched(pl.Callback):
    """The weights of policy and reference after every step."""

    def __init__(self) -> None:
        self.policy, self.reference = list[Weights](), list[Weights]()

    def on_train_batch_end(self, trainer: Any, stage: Any, *_: Any) -> None:
        self.policy.append(_copy(stage.network.state_dict()))
        if stage.learner.reference.beside is not None:
            self.reference.append(_copy(stage.learner.reference.beside.network.state_dict()))


def _copy(state: Weights) -> Weights:
    return {name: weight.detach().clone() for name, weight in state.items()}


def train(made: Grpo, folder: Path, steps: int = STEPS) -> tuple[dict[int, dict[str, float]], Watched]:
    logger, seen = Kept(), Watched()
    batches: Any = [[prompts(step)] for step in range(steps)]
    trainer_of(steps, folder, logger=logger, callbacks=[seen]).fit(made, Batches(batches))
    return logger.rows, seen


def keys(every: int | None = 2, mix: float = 1.0) -> settings.KlKeys:
    return replace(grpo().policy.kl, coefficient=0.3, refresh_every=every, refresh_mix=mix)


def test_it_becomes_the_policy_every_so_many_steps(tmp_path: Path) -> None:
    rows, seen = train(grpo(kl=keys()), tmp_path)
    parent = build(POLICY, seed=3).state_dict()
    for step, wanted in enumerate([parent, seen.policy[1], seen.policy[1], seen.policy[3], seen.policy[3]]):
        assert all(torch.equal(weight, wanted[name]) for name, weight in seen.reference[step].items()), step
    assert rows[3]["policy/kl"] == 0 and rows[5]["policy/kl"] == 0
    assert min(rows[step]["policy/kl"] for step in (1, 2, 4)) > 1e-4


def test_a_mixture_moves_it_a_part_of_the_way(tmp_path: Path) -> None:
    _, seen = train(grpo(kl=keys(mix=0.25)), tmp_path)
    reference = build(POLICY, seed=3).state_dict()
    for at in (1, 3):
        reference = {name: 0.75 * weight + 0.25 * seen.policy[at][name] for name, weight in reference.items()}
        torch.testing.assert_close(seen.reference[at], reference, rtol=1e-6, atol=1e-7)
        assert seen.reference[at + 1]["norm.weight"].equal(seen.reference[at]["norm.weight"])


def test_it_is_in_a_checkpoint_where_it_moves_and_only_there(tmp_path: Path) -> None:
    moving, still = grpo(kl=keys()), grpo(kl=keys(None))
    for made in (moving, still):
        train(made, tmp_path / str(made is moving), 2)
    frozen, policy = still.state_dict(), moving.network.state_dict()
    assert all(name.startswith("model.") for name in frozen)
    more = {name.removeprefix("reference.network."): w for name, w in moving.state_dict().items() if name not in frozen}
    assert more.keys() == policy.keys() and all(torch.equal(w, policy[name]) for name, w in more.items())
    assert not any(weight.requires_grad for weight in moving.reference.parameters())


def test_frozen_in_bf16_it_is_kept_in_bf16_and_refreshed_in_fp32(tmp_path: Path) -> None:
    for every, dtype in ((None, torch.bfloat16), (1, torch.float32)):
        made = grpo(kl=keys(every), setup={"bf16": True})
        made.learner.reference.beside.build(None)  # type: ignore[union-attr]
        weights = made.learner.reference.beside.network.state_dict()  # type: ignore[union-attr]
        assert weights["blocks.0.attention.q_proj.weight"].dtype == dtype


@pytest.mark.parametrize("changed", [{}, {"dora": True}, {"dropout": 0.3}], ids=str)
def test_of_an_adapter_it_is_the_adapter_of_then(changed: dict[str, Any], tmp_path: Path) -> None:
    adapter = lora(**changed)
    made = grpo(kl=keys(), setup={"adapter": adapter})
    rows, seen = train(made, tmp_path, 4)
    assert abs(rows[1]["policy/kl"]) < 1e-6 < rows[2]["policy/kl"]
    if not adapter.dropout:  # which the policy has and the reference has not
        assert rows[3]["policy/kl"] == 0
    state = made.learner.reference.state()
    assert state is not None
    held, wanted = (factors_of(part, POLICY, adapter) for part in (state, seen.policy[3]))
    assert held.keys() == wanted.keys() and all(torch.equal(held[p].b, wanted[p].b) for p in held)
    again = grpo(kl=keys(), setup={"adapter": adapter})
    again.learner.reference.restore(state)
    plain = grpo(setup={"adapter": adapter})
    train(plain, tmp_path / "plain", 1)
    before = _copy(plain.network.state_dict())
    with again.learner.reference.network(plain.network) as network, torch.no_grad():
        assert all(torch.equal(dict(network.named_parameters())[name], weight) for name, weight in state.items())
    assert all(torch.equal(weight, before[name]) for name, weight in plain.network.state_dict().items())


CONFIG: dict[str, Any] = {"kl": {"coefficient": 0.1, "refresh_every": 10, "refresh_mix": 0.5}}


@pytest.mark.parametrize(
    ("stage", "more", "said"),
    [
        ({}, {}, None),
        ({"kl": {**CONFIG["kl"], "coefficient": 0}}, {}, "so that no reference is held"),
        ({}, {"adapter": {"rank": 4}}, "the mean of two adapters is no adapter of their rank"),
        ({"phases": [{"at_steps": 0, "rope_theta": 1e5}]}, {}, "is of several of them"),
    ],
)
def test_what_a_refreshed_reference_cannot_be_is_said(
    stage: dict[str, Any], more: dict[str, Any], said: str | None
) -> None:
    found = settings.faults({"stage": {**CONFIG, **stage}, **more})
    assert len(found) == (said is not None) and all(said is not None and said in line for line in found)


def test_what_it_costs_is_counted_once() -> None:
    whole: dict[str, Any] = {"stage": CONFIG}
    still = {"stage": {"kl": {**CONFIG["kl"], "refresh_every": None}}}
    sharded = {**whole, "hardware": {"strategy": "fsdp"}}
    counted = {
        name: (settings.frozen_copies(config), settings.trained_copies(config))
        for name, config in {
            "still": still, "whole": whole, "sharded": sharded, "adapter": {**whole, "adapter": {"rank": 4}}
        }.items()
    }  # fmt: skip
    assert counted == {"still": (1, 0), "whole": (0, 1), "sharded": (1, 0), "adapter": (0, 0)}
