"""Threads wait asleep while others take the processors, judged while a run trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lifecycle.callbacks import waiting
from lifecycle.callbacks.waiting import ShortWaits
from lifecycle.system.native import thread_waits
from lifecycle.system.native.thread_waits import Crowding, ParkedTeam, can_switch


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(thread_waits, "TASKS", tmp_path)
    return tmp_path


def say(tasks: Path, **threads: tuple[int, int]) -> None:
    for name, (ran, waited) in threads.items():
        (tasks / name).mkdir(exist_ok=True)
        (tasks / name / "schedstat").write_text(f"{ran} {waited} 7\n")


def test_crowding_is_the_share_of_waiting_of_the_threads_that_stayed(tasks: Path) -> None:
    say(tasks, a=(100, 10), b=(200, 0), gone=(5, 500))
    crowding = Crowding()
    (tasks / "gone" / "schedstat").unlink()
    say(tasks, a=(160, 30), b=(220, 0), new=(9, 900))
    assert crowding.look() == pytest.approx(20 / 100)
    assert crowding.look() is None  # nothing ran since
    (tasks / "a" / "schedstat").write_text("")  # a thread that is ending
    say(tasks, b=(230, 30))
    assert crowding.look() == pytest.approx(30 / 40)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Shares that will be seen; every step is time to judge."""
    shares: list[float] = []
    monkeypatch.setattr(waiting, "EVERY_S", 0.0)
    monkeypatch.setattr(waiting, "can_switch", lambda: True)
    monkeypatch.setattr(Crowding, "look", lambda self: shares.pop(0))
    yield shares


def trainer(kind: str) -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)))


def test_waits_become_short_on_a_busy_machine_and_long_again_when_it_is_free(ways: list[float]) -> None:
    callback, on_cpu, module = ShortWaits(), trainer("cpu"), SimpleNamespace()
    callback.on_train_start(on_cpu, module)  # type: ignore[arg-type]
    there = []
    ways += [0.0, 0.3, 0.1, 0.04, 0.1, 0.2]
    for _ in range(6):
        callback.on_train_batch_end(on_cpu, module, None, None, 0)  # type: ignore[arg-type]
        there.append(bool(callback._team))
    assert there == [False, True, True, False, False, True]  # between the bounds it stays as it is
    callback.on_train_end(on_cpu, module)  # type: ignore[arg-type]
    assert not callback._team


def test_on_a_gpu_nothing_is_judged(ways: list[float]) -> None:
    callback, module = ShortWaits(), SimpleNamespace()
    callback.on_train_start(trainer("cuda"), module)  # type: ignore[arg-type]
    callback.on_train_batch_end(trainer("cuda"), module, None, None, 0)  # type: ignore[arg-type]
    assert not callback._team


@pytest.mark.parametrize("name", thread_waits.OWN_CHOICE)
def test_a_choice_of_the_users_own_stands(name: str, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(tasks, a=(1, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for other in thread_waits.OWN_CHOICE:
        monkeypatch.delenv(other, raising=False)
    assert can_switch()
    monkeypatch.setenv(name, "1")
    assert not can_switch()


def test_without_a_kernel_that_counts_or_with_one_thread_there_is_nothing_to_switch(
    tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not can_switch()
    say(tasks, a=(1, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert not can_switch()


SAME_BITS = """
import torch
from lifecycle.system.native.thread_waits import ParkedTeam
torch.set_num_threads(2)
torch.manual_seed(0)
a, b = torch.randn(512, 256), torch.randn(256, 256)
def step():
    y = a
    for _ in range(20):
        y = torch.tanh(y @ b)
    return y.sum(0)
before, team = step(), ParkedTeam()
team.begin(); team.begin()
during = step()
team.end(); team.end()
assert torch.equal(before, during) and torch.equal(before, step()) and not team
"""


def test_no_bit_changes() -> None:
    subprocess.run([sys.executable, "-c", SAME_BITS], check=True)


def test_a_team_can_come_and_go() -> None:
    team = ParkedTeam()
    for _ in range(3):
        team.begin()
        assert team
        team.end()
        assert not team
