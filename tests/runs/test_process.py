"""A run as a guest of its process: in any thread, beside another, and afterwards the process is what it was before."""

import contextlib
import errno
import gc
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from tests.test_run import TOY, place  # noqa: F401

from lifecycle import config
from lifecycle.__main__ import LOST, main
from lifecycle.callbacks.saving import SaveOnEvents
from lifecycle.errors import FolderLost, Terminated, UserError
from lifecycle.run import run
from lifecycle.runs.begin_end import RunResult
from lifecycle.system import lock
from lifecycle.system.lock import hold
from lifecycle.system.owner import LOCK

STEP = "on_train_batch_start"


def started(*words: str) -> RunResult:
    job = any(word.startswith("stage=") for word in words)
    return run(config.compose([*(word for word in TOY if not (job and word.startswith("stage."))), *words]))


def state() -> dict[str, Any]:
    """What belongs to the process, and a run must leave as it was."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1)
    loggers = [logging.getLogger(name) for name in (None, "lightning.pytorch", "lightning.fabric", "torch", "hydra")]
    return {
        "signals": [signal.getsignal(number) for number in numbers],
        "torch": (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        "precision": (torch.get_float32_matmul_precision(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
        ),
        "cuda": torch.cuda.current_device() if torch.cuda.is_initialized() else None,
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # type: ignore[index]
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "logging": [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers],
        "folder": os.getcwd(),
        "collector": (gc.isenabled(), gc.get_freeze_count() > 0, gc.get_threshold()),
        "processes": (multiprocessing.get_start_method(allow_none=True), multiprocessing.active_children()),
        "group": torch.distributed.is_initialized(),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
        "arguments": (list(sys.argv), list(sys.path)),
        "threads": {thread for thread in threading.enumerate() if thread.name in ("heartbeat", "MainThread")},
        "hydra": (GlobalHydra.instance().hydra, HydraConfig.instance().cfg),
    }


def at_step_2(monkeypatch: pytest.MonkeyPatch, event: Callable[[Any, Any], Any]) -> None:
    """`event` happens before the third step of a run."""
    plain = getattr(SaveOnEvents, STEP)

    def met(self: SaveOnEvents, trainer: Any, stage: Any, *args: Any) -> None:
        plain(self, trainer, stage, *args)
        if trainer.global_step == 2:
            event(trainer, stage)

    monkeypatch.setattr(SaveOnEvents, STEP, met)


def fails(trainer: Any, stage: Any) -> None:
    raise ArithmeticError


def ctrl_c(trainer: Any, stage: Any) -> None:
    raise KeyboardInterrupt


def sigterm(trainer: Any, stage: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def quits(*args: Any) -> None:
    raise Terminated


@contextlib.contextmanager
def switches(**given: Any) -> Iterator[None]:
    """A process that is not as Python starts it."""
    algorithms, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(given["deterministic"], warn_only=given["deterministic"])
    torch.backends.cudnn.benchmark = given["deterministic"]
    gc.collect()
    if given["frozen"]:
        gc.freeze()
        gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
        torch.use_deterministic_algorithms(algorithms)
        torch.backends.cudnn.benchmark = benchmark


WAYS: dict[str, tuple[list[str], Any, type[BaseException] | None]] = {
    "to its end": ([], None, None),
    "to its end, deterministic": (["deterministic=true"], None, None),
    "to its end, with workers": (["hardware.workers=1"], None, None),
    "to its end, as one of a group": (["hardware.strategy=ddp"], None, None),
    "a dry run": (["dry_run=true"], None, None),
    "a job that reads": (["stage=analyze"], None, None),
    "an error": (["deterministic=true"], fails, ArithmeticError),
    "Ctrl-C": ([], ctrl_c, KeyboardInterrupt),
    "SIGTERM": ([], sigterm, None),
    "refused": (["data.sources.mine.path=nowhere.jsonl"], None, UserError),
    "ended early": ([], quits, Terminated),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("before", [{"deterministic": False, "frozen": False}, {"deterministic": True, "frozen": True}])
def test_after_a_run_the_process_is_as_it_was(
    way: str, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words, event, raised = WAYS[way]
    if event is not None:
        at_step_2(monkeypatch, event)
    monkeypatch.setattr(
        "lifecycle.stages.step.metrics.WARM_UP_STEPS", 1
    )  # the collector is frozen after the first step
    with switches(**before):
        was = state()
        with pytest.raises(raised) if raised else contextlib.nullcontext():
            started("run=mine", *words)
        now = state()
    assert {key: (was[key], now[key]) for key in was if was[key] != now[key]} == {}


def taken_over_at_step_2(monkeypatch: pytest.MonkeyPatch, go: Callable[[], Any]) -> int:
    """The number of a process in which `go` trains, stopped in its third step, whose folder this process may take."""
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr("socket.gethostname", lambda: "far")  # from here it cannot be looked at, only waited for
        monkeypatch.setattr("lifecycle.system.lock.BEAT_S", 0.05)
        at_step_2(monkeypatch, lambda trainer, stage: os.kill(os.getpid(), signal.SIGSTOP))
        try:
            go()
        finally:
            os._exit(99)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    os.utime(Path("outputs/mine") / LOCK, (0, 0))
    return pid


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run; not those of a checkpoint that was being written in the background, which may get its last
    bytes, in a folder of the writer's own that is none of the run's checkpoints."""
    files = {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    return {name: found for name, found in files.items() if not name.endswith(LOCK) and ".staging-" not in name}


@pytest.mark.parametrize("seen_by", ["the heartbeat", "a write"])
def test_a_run_whose_folder_was_taken_over_raises_and_writes_nothing_more(
    seen_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = state()["signals"]

    def go() -> None:
        if seen_by == "a write":
            monkeypatch.setattr("lifecycle.system.lock.BEAT_S", 1000.0)
        with pytest.raises(FolderLost, match="taken over by process .* saves nothing"):
            started("run=mine", "stage.max_steps=6", "hardware.workers=1")
        assert state()["signals"] == was and not multiprocessing.active_children()
        os._exit(0)

    pid, folder = taken_over_at_step_2(monkeypatch, go), Path("outputs/mine").resolve()
    with hold(folder):
        before = contents(folder)
        os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert contents(folder) == before
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert losses(started("run=mine", "stage.max_steps=6")) == losses(started("run=whole", "stage.max_steps=6"))


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EFBIG, "see `ulimit -f`"), (errno.ENOSPC, r"No space .*make room there")]
)
def test_a_lock_that_cannot_be_written_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refused(path: Path, me: object) -> bool:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(lock, "_made", refused)
    with pytest.raises(UserError, match=rf"outputs/mine/\.lock .*{words}") as raised:
        started("run=mine", "stage.max_steps=6")
    assert ("make room" in str(raised.value)) == (number == errno.ENOSPC)


def test_the_program_ends_at_once_where_its_folder_was_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def go() -> None:
        os.dup2(os.open("said.txt", os.O_CREAT | os.O_WRONLY), 2)
        monkeypatch.setattr("sys.stderr", open(2, "w", closefd=False))
        monkeypatch.setattr("sys.argv", ["lifecycle", *TOY, "run=mine"])
        main()

    pid, folder = taken_over_at_step_2(monkeypatch, go), Path("outputs/mine").resolve()
    with hold(folder):
        before = contents(folder)
        os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == LOST
        assert contents(folder) == before
    said = Path("said.txt").read_text()
    assert f"lifecycle: run '{folder}' was taken over by process {os.getpid()}" in said and "Traceback" not in said


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What each call gives, or the exception that it ends in; each in a thread of its own, all at once."""
    ended: list[Any] = [None] * len(calls)

    def do(number: int) -> None:
        try:
            ended[number] = calls[number]()
        except BaseException as error:
            ended[number] = error

    threads = [threading.Thread(target=do, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def losses(result: RunResult) -> tuple[float, float]:
    return result.metrics["train/loss"], result.metrics["valid/loss"]


def test_a_run_in_another_thread_and_two_at_once_are_those_of_the_main_thread() -> None:
    words = {"a": ["seed=1"], "b": ["seed=2", "optimizer=muon", "hardware.workers=1"]}
    alone = {name: losses(started(f"run=alone-{name}", *more)) for name, more in words.items()}
    was = state()
    (one,) = in_threads(lambda: started("run=one", *words["a"]))
    two = in_threads(*(lambda name=name: started(f"run=two-{name}", *words[name]) for name in words))
    now = state()
    assert losses(one) == alone["a"] and one.status == "finished"
    assert [losses(result) for result in two] == [alone["a"], alone["b"]] and alone["a"] != alone["b"]
    assert {key for key in was if was[key] != now[key]} == set()


def test_of_two_threads_with_one_folder_one_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Barrier(2, timeout=60)
    at_step_2(monkeypatch, lambda trainer, stage: (inside.wait(), inside.wait()))

    def second() -> None:
        inside.wait()
        try:
            started("run=mine", "seed=3", "stage.max_steps=4")
        finally:
            inside.wait()

    first, refused = in_threads(lambda: started("run=mine", "seed=3"), second)
    assert first.status == "finished" and isinstance(refused, UserError)
    assert f"process {os.getpid()} on" in str(refused) and "in another thread of this process" in str(refused)


def test_two_threads_have_one_setting_of_the_deterministic_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Barrier(2, timeout=60)
    at_step_2(monkeypatch, lambda trainer, stage: (inside.wait(), inside.wait()))

    def second() -> None:
        inside.wait()
        try:
            started("run=other", "deterministic=true")
        finally:
            inside.wait()

    first, refused = in_threads(lambda: started("run=mine"), second)
    assert first.status == "finished" and isinstance(refused, UserError) and not Path("outputs/other").exists()
    assert "a run in another thread of this process has the opposite" in str(refused)


def test_a_config_is_composed_within_a_program_of_hydras_own() -> None:
    import hydra

    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        program = GlobalHydra.instance().hydra
        one, two = in_threads(lambda: config.compose([*TOY, "run=a"]), lambda: config.compose([*TOY, "run=b"]))
        assert (one.run, two.run) == ("a", "b")
        assert GlobalHydra.instance().hydra is program is not None
        hydra.compose("config")
    assert HydraConfig.instance().cfg is None
