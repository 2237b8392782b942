"""What a signal means while a run trains, and that it means what it did before once training is over."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.callbacks.saving import SaveOnEvents


@pytest.fixture
def handlers() -> Iterator[None]:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    yield
    for one, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(one, handler)


def trained(callback: SaveOnEvents, stage: Any) -> Iterator[None]:
    """Begins at the first `next`, ends at the second."""
    trainer: Any = SimpleNamespace(is_global_zero=False, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()))
    callback.on_train_start(trainer, stage)
    yield
    callback.on_train_end(trainer, stage)
    yield


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN, None])
def test_after_training_ctrl_c_does_what_it_did_before(
    handlers: None, monkeypatch: pytest.MonkeyPatch, before: Any, tmp_path: Path
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if before is None:  # as where a library has set it, and not Python
        monkeypatch.setattr("lifecycle.callbacks.saving.signal.getsignal", lambda signum: None)
    stage = SimpleNamespace(stop_asked=False)
    training = trained(SaveOnEvents(folder=tmp_path, every_steps=None), stage)
    next(training)
    if before is not signal.SIG_IGN:
        os.kill(os.getpid(), signal.SIGINT)
        assert stage.stop_asked  # the first asks for a save, and a second would end at once
    next(training)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) == (signal.SIG_DFL if before is None else before)
