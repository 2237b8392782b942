"""A run's folder has one owner at a time, whatever became of the one before."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lifecycle.checkpoint import mark_safe
from lifecycle.checkpoint.protocol import staged
from lifecycle.data.read.quarantine import quarantine
from lifecycle.data.read.row import Position, RawRow
from lifecycle.errors import FolderLost, UserError
from lifecycle.loggers.csv_logger import CsvLogger
from lifecycle.system import atomic, lock, owner
from lifecycle.system.lock import hold
from lifecycle.system.owner import LOCK, STALE_S


def write(folder: Path, *, silent_s: float = 0.0, **changes: Any) -> Path:
    """A lock that another process left, with a last sign of life `silent_s` seconds ago."""
    path = folder / LOCK
    path.write_text(json.dumps({**lock._me(), **changes}))
    then = time.time() - silent_s
    os.utime(path, (then, then))
    return path


def ended() -> int:
    """The number of a process that is gone."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def refused(folder: Path) -> str:
    before = (folder / LOCK).read_bytes()
    with pytest.raises(UserError) as raised, hold(folder):
        pass
    assert [path.name for path in folder.iterdir()] == [LOCK]
    assert (folder / LOCK).read_bytes() == before
    return str(raised.value)


def test_a_second_start_is_told_who_holds_the_folder_and_touches_nothing(tmp_path: Path) -> None:
    with hold(tmp_path / "run"):
        said = refused(tmp_path / "run")
    assert f"process {os.getpid()} on {lock._me()['host']} holds it since 20" in said
    assert "last sign of life 0 s ago" in said
    assert "run=NAME" in said
    assert not list((tmp_path / "run").iterdir())


def test_the_lock_of_a_killed_process_of_this_machine_counts_for_nothing(tmp_path: Path) -> None:
    write(tmp_path, pid=ended())
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_process_that_has_ended_and_was_not_asked_how_is_gone(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    while Path("/proc/self").exists() and lock._began(pid) is not None:
        time.sleep(0.001)
    write(tmp_path, pid=pid)
    if Path("/proc/self").exists():
        with hold(tmp_path):
            pass
    os.waitpid(pid, 0)


def test_another_process_with_the_number_of_the_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path, began="1")
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["began"] == lock._me()["began"]


def test_a_process_that_lives_here_holds_however_long_it_was_silent(tmp_path: Path) -> None:
    write(tmp_path, silent_s=10 * STALE_S)
    assert f"last sign of life {10 * STALE_S:.0f} s ago" in refused(tmp_path)


@contextmanager
def beating(path: Path) -> Iterator[None]:
    """The holder of the lock gives signs of life."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("change", [{"host": "far"}, {"namespace": "pid:[1]"}, {"boot": "before"}])
def test_a_process_that_cannot_be_looked_at_lives_as_long_as_it_gives_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with beating(write(tmp_path, **change, pid=1)):
        assert "process 1 on" in refused(tmp_path)
    write(tmp_path, silent_s=STALE_S + 1, **change, pid=1)
    with hold(tmp_path):
        pass


def test_a_job_that_was_put_back_into_the_queue_waits_until_its_dead_one_counts_as_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    write(tmp_path, silent_s=STALE_S - 0.5, host="far", pid=7)
    started = time.monotonic()
    with hold(tmp_path):
        assert 0.3 < time.monotonic() - started < 30
    assert "process 7 on far, which cannot be looked at from here; waiting up to" in capsys.readouterr().err


def written(**changes: Any) -> bytes:
    return json.dumps({**lock._me(), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\0\0\0", b"\xff\xfe\x80", b"12345", b'{"pid": 12345}'),
        *(written(pid=pid) for pid in (None, "12", True, 0, -5, 1.5, 10**30, "")),
        *(written(since=since) for since in (None, "yesterday", float("nan"), 1e300)),
        *(written(began=None), written(host=7)),
    ],
)
def test_a_lock_that_names_nobody_holds_until_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    path = write(tmp_path)
    path.write_bytes(content)
    with beating(path):
        said = refused(tmp_path)
    assert "process ? on an unknown machine" in said and "None" not in said
    os.utime(path, (0, 0))
    with hold(tmp_path):
        pass


def test_a_holder_that_was_met_while_it_wrote_its_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    (tmp_path / LOCK).touch()
    timer = threading.Timer(0.1, lambda: write(tmp_path, pid=os.getpid()))
    timer.start()
    with pytest.raises(UserError, match=f"process {os.getpid()} on .* holds it since"), hold(tmp_path):
        pass
    timer.join()


def test_of_many_that_take_over_one_gets_it(tmp_path: Path) -> None:
    for n in range(20):
        folder = tmp_path / str(n)
        folder.mkdir()
        write(folder, began="1")
        got: list[dict[str, Any]] = []
        start = threading.Barrier(6)

        def take(folder: Path = folder, got: list[dict[str, Any]] = got, start: threading.Barrier = start) -> None:
            me = lock._me()
            start.wait()
            try:
                lock._take(folder / LOCK, me)
            except UserError:
                return
            got.append(me)

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [json.loads((folder / LOCK).read_text())] == got
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with hold(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        until = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.005)


def taken_over(folder: Path) -> None:
    """Another process has the folder by now."""
    write(folder, host="far", pid=1)


def test_the_heartbeat_sees_that_the_folder_was_taken_over_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    with hold(tmp_path):
        owner.check(tmp_path / "run.json", look=False)
        taken_over(tmp_path)
        until = time.monotonic() + 10
        with pytest.raises(FolderLost, match="taken over by process 1 on far .* saves nothing"):
            while time.monotonic() < until:
                owner.check(tmp_path / "checkpoints" / "best.json", look=False)
                time.sleep(0.005)
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "far"


def test_a_write_sees_it_before_the_heartbeat_does_and_does_not_forget(tmp_path: Path) -> None:
    with hold(tmp_path / "run"), hold(tmp_path / "other"):
        taken_over(tmp_path / "run")
        owner.check(tmp_path / "run.json")
        owner.check(tmp_path / "other" / "run.json")
        owner.check(tmp_path / "run" / "run.json", look=False)  # nobody has looked
        for _ in range(2):
            with pytest.raises(FolderLost):
                owner.check(tmp_path / "run" / "run.json")
            (tmp_path / "run" / LOCK).unlink(missing_ok=True)  # the other is done
    owner.check(tmp_path / "run" / "run.json")  # afterwards it is any folder


def test_a_lock_that_was_removed_by_hand_is_made_again_and_after_a_long_silence_was_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(tmp_path):
        (tmp_path / LOCK).unlink()
        owner.check(tmp_path)
        now = time.time()
        monkeypatch.setattr("time.time", lambda: now + STALE_S + 1)
        with pytest.raises(FolderLost, match="a process that has ended since"):
            owner.check(tmp_path)


def test_a_process_forked_from_the_owner_sees_it_by_itself(tmp_path: Path) -> None:
    with hold(tmp_path):
        taken_over(tmp_path)
        pid = os.fork()
        if pid == 0:
            os._exit(7 if owner.lost(tmp_path / "quarantine") else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_nothing_is_written_into_a_folder_that_was_taken_over(tmp_path: Path) -> None:
    run, row = tmp_path / "run", RawRow(file="a", line=1, ordinal=0, payload=b"{", next=Position(0, 0, 0))
    metrics = CsvLogger(folder=run)
    metrics.log_metrics({"train/loss": 1.0}, step=1)
    with hold(run):
        (run / "model").mkdir()
        (run / "checkpoints").mkdir()
        with pytest.raises(FolderLost), atomic.publish_folder(run / "tokenizer", replace=True) as aside:
            (aside / "a").touch()
            taken_over(run)
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        for writing in (
            lambda: atomic.write(run / "run.json", "{}"),
            lambda: atomic.publish_folder(run / "tokenizer", replace=True).__enter__(),
            lambda: atomic.replace_files(run / "model", marker="config.json", stale=()).__enter__(),
            lambda: quarantine(run / "quarantine" / "mine.jsonl", row, "broken"),
            lambda: staged(run / "checkpoints" / "step-00000002", step=2, tokens=0, needed_bytes=1).__enter__(),
            lambda: mark_safe(run / "checkpoints", 2),
            metrics.save,
        ):
            with pytest.raises(FolderLost):
                writing()
        metrics.finalize("failed")  # Lightning calls it on the way out
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("there", ["another rank", "another machine"])
def test_ranks_share_the_lock_of_their_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    with hold(tmp_path):
        if there == "another rank":
            monkeypatch.setattr(lock, "rank", lambda: 1)
        else:
            monkeypatch.setenv("NODE_RANK", "1")
        with hold(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        monkeypatch.undo()


def test_a_process_forked_from_the_holder_does_not_give_it_back(tmp_path: Path) -> None:
    holding = hold(tmp_path)
    holding.__enter__()
    pid = os.fork()
    if pid == 0:
        holding.__exit__(None, None, None)
        os._exit(0)
    os.waitpid(pid, 0)
    assert (tmp_path / LOCK).exists()
    holding.__exit__(None, None, None)
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_made_is_the_users_fault(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"), hold(tmp_path / "outputs" / "run"):
        pass
