"""Every fine-tuning stage on a rehearsed GPU, and compiled: nothing is mixed, nothing waits but where WAITS says so,
and rows that are packed otherwise are no reason to compile again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.rehearsal.claims import Device, rehearsal
from tests.rehearsal.finetuning import ANY, CASES
from tests.rehearsal.test_training import Looks, fit
from tests.stages.test_step import Batches, trainer_of
from torch._dynamo.utils import counters

STEPS = 3


@pytest.fixture
def device() -> Iterator[Device]:
    with rehearsal() as made:
        yield made


@pytest.mark.parametrize("name", CASES)
def test_steps_and_validations_run(name: str, device: Device, tmp_path: Path) -> None:
    case, looks = CASES[name], Looks()
    facts: dict[str, Any] = {"bf16": True, "attention": "sdpa", "domains": {"a": (1.0, None)}}
    made = case.make(tmp_path, **facts, validate_every=2, log_every=STEPS)
    fit(made, case.steps(STEPS), tmp_path, callbacks=[looks], validation={"a": case.steps(1)[0]})
    assert looks.found == {"device": {"cuda"}, "dtype": {"torch.float32"}}
    every = {
        ANY: STEPS + 2 * 2,  # two validations of two micro-batches
        "stages/step/metrics.py validation_metrics": 2,
        "stages/step/metrics.py flush": 2,
        "stages/step/metrics.py _usage": 2,
    }
    assert device.waits == Counter(every) + Counter(case.waits)


class Graphs(pl.Callback):
    """Graphs compiled so far, after each step."""

    def __init__(self) -> None:
        self.after: list[int] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.after.append(counters["stats"]["unique_graphs"])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiler's own front, which is what breaks and repeats, with nothing behind it."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what=None, **how: compiled(what, **how | {"backend": "eager"}))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


FAST = {"sft", "distill", "dpo", "kto", "reward"}


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_rows_packed_otherwise_are_not_compiled_again(name: str, counted: None, tmp_path: Path) -> None:
    case, graphs = CASES[name], Graphs()
    made = case.make(tmp_path, compile=True)
    trainer_of(6, tmp_path, logger=False, callbacks=[graphs]).fit(made, Batches(case.steps(6)))
    assert not counters["graph_break"]
    drawn = "on-policy" in name or "gradient" in name  # a step has as many rows as are drawn: 1, 2 or ROWS
    assert 0 < graphs.after[0] and graphs.after[-1] <= (9 if drawn else graphs.after[0])
