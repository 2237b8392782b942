"""The guard's hooks, with a stage and a trainer that only remember."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.callbacks.guard import ForgettingGuard
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.config.schema import Action, Guard
from lifecycle.stages.step.watched import GuardState


def guard(folder: Path, *actions: Action) -> ForgettingGuard:
    spec = Guard(watch=0.05, act=0.1, stop=0.2, actions=list(actions), patience=1, replay_step=0.1, replay_max=0.3)
    return ForgettingGuard(spec, folder=folder, retained=["old"])


class Stage(SimpleNamespace):
    """A stage whose measurements are given."""

    def __init__(self) -> None:
        meter = SimpleNamespace(log=lambda *args: None, say=lambda line: None)
        feed = SimpleNamespace(replay_share=lambda: 0.1)
        super().__init__(meter=meter, guard=GuardState(), feed=feed, validation_due=False)

    def measured(self, step: int, perplexity: float) -> None:
        self.guard.measured.append((step, {"valid/old/perplexity": perplexity}))


def trainer(step: int, writer: Any = None) -> Any:
    """After `step` steps."""
    strategy = SimpleNamespace(checkpoint_io=writer, broadcast=lambda value: value)
    return SimpleNamespace(global_step=step, strategy=strategy, is_global_zero=True, should_stop=False)


def test_what_a_preempted_run_measures_at_its_next_start_is_judged_before_a_step(tmp_path: Path) -> None:
    stage: Any = Stage()
    looking = guard(tmp_path, "rate")
    for step, perplexity in ((0, 10.0), (4, 11.5)):
        stage.measured(step, perplexity)
        looking.on_train_batch_start(trainer(step), stage, None, 0)
    assert stage.guard.lr_scale == 0.5
    assert [m.binds for m in looking.history.measurements] == [None, 4]  # as if it had been judged after step 4


@pytest.mark.parametrize(("actions", "safe"), [(("restore",), 8), (("rate",), None)])
def test_the_last_measurement_that_was_good_is_kept_where_it_may_be_gone_back_to(
    tmp_path: Path, actions: tuple[Action, ...], safe: int | None
) -> None:
    stage: Any = Stage()
    looking = guard(tmp_path, *actions)
    for step, perplexity in ((0, 10.0), (4, 10.1), (8, 11.9), (12, 12.5)):
        stage.measured(step, perplexity)
        looking.on_train_batch_end(trainer(step), stage, None, None, 0)
    assert stage.guard.safe_at == safe


def test_it_waits_for_the_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    class Slow(CommittedCheckpointIO):
        def wait(self) -> None:
            folder = tmp_path / "checkpoints/step-00000004"
            folder.mkdir(parents=True)
            (folder / "manifest.json").touch()

    stage: Any = Stage()
    looking, ends = guard(tmp_path, "restore"), trainer(8, Slow())
    for step, perplexity in ((0, 10.0), (4, 10.1), (8, 13.0)):
        stage.measured(step, perplexity)
        looking.on_train_batch_end(ends, stage, None, None, 0)
    assert stage.guard.restore_step == looking.history.measurements[-1].to == 4 and ends.should_stop
