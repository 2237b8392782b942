"""A frozen network says what the trained one would say with equal weights, and stays as it is; nobody saves it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.stages.test_step import MODEL, Batches, stage, trainer_of, whole

from lifecycle.model import DocumentMask, ModelConfig, build
from lifecycle.stages.beside.frozen import FrozenNetwork
from lifecycle.stages.pretrain import Pretrain
from lifecycle.stages.run.setup import Setup


def frozen_of(config: ModelConfig, setup: Setup) -> FrozenNetwork:
    """With the fresh weights of seed 1."""
    return FrozenNetwork(config=config, read=lambda: build(config, seed=1).state_dict(), setup=setup)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_it_says_the_same_as_a_trained_network_of_its_weights_bit_for_bit(config: ModelConfig, bf16: bool) -> None:
    setup = replace(stage(model=config).setup_facts, bf16=bf16)
    frozen, trained, rows = frozen_of(config, setup), build(config, seed=1), whole(0)[0]
    frozen.build(None)
    seen = DocumentMask.from_ids(rows.document_ids, kernel="sdpa")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), torch.no_grad():
        said, wanted = (model(rows.input_ids, rows.position_ids, seen) for model in (frozen.network, trained))
    assert said.dtype == wanted.dtype and torch.equal(said, wanted)
    assert frozen.network.head_weight.dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_no_step_moves_it_and_no_checkpoint_holds_it(tmp_path: Path) -> None:
    made = stage()
    frozen = frozen_of(MODEL, made.setup_facts)
    made.beside = frozen
    trainer_of(2, tmp_path, logger=False).fit(made, Batches([whole(step) for step in range(2)]))
    before: Any = build(MODEL, seed=1).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in frozen.network.state_dict().items())
    assert not any(torch.equal(value, before[name]) for name, value in made.network.state_dict().items())
    assert len(made.state_dict()) == len(before) == len(list(made.network.state_dict()))
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert not set(map(id, frozen.network.parameters())) & set(map(id, made.parameters()))


def test_stages_hold_nothing_beside_their_network_unless_they_say_so() -> None:
    assert Pretrain.frozen_copies({}) == 0 and Pretrain.faults({}) == []
