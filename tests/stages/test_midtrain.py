"""What mid-training carries beyond a stage's own state."""

import pytest
import torch
from tests.stages.test_step import saved, stage

from lifecycle.optim import Schedule
from lifecycle.stages.base import Stage
from lifecycle.stages.midtrain import Ewc, Midtrain, Replay


def midtrain() -> Midtrain:
    """On the toy model of the step's tests, with springs."""
    made = stage()
    return Midtrain(
        model=made.config,
        optimizer=made.optimizer_spec,
        schedule=Schedule(name="constant", min_ratio=1.0, warmup_steps=0),
        max_skipped=0,
        max_norm_ratio=None,
        z_loss=0.0,
        peak_ratio=0.1,
        replay=Replay(share=0.0, ancestors=1, functions=None),
        optimizer_state="fresh",
        ewc=Ewc(strength=1.0, rows=1),
        new_tokens=[],
        split_digits=False,
        setup=made.setup_facts,
    )


def test_springs_that_were_loaded_go_where_the_run_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    found = saved(1)
    found["stage"]["springs"] = [[torch.ones(2)], [torch.ones(2)]]
    made = midtrain()
    made.on_load_checkpoint(found)
    made.to("meta")  # Lightning moves a stage after it was loaded
    monkeypatch.setattr(Stage, "on_train_start", lambda self: None)
    made.on_train_start()
    assert made._springs is not None
    assert [tensor.device.type for part in made._springs for tensor in part] == ["meta", "meta"]
