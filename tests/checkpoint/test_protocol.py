"""Laws of the commit protocol: a checkpoint is whole or not there, and damage is seen."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from lifecycle.checkpoint import CheckpointError, last_good, list_committed, load, verify
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.manifest import MANIFEST
from lifecycle.checkpoint.protocol import HashingFile, clear_staging
from lifecycle.errors import UserError

FILES = ["manifest.json", "state.pt", "state.safetensors", "weights.safetensors"]


def state(step: int) -> dict[str, object]:
    values = torch.arange(1000.0) + step
    return {"global_step": step, "state_dict": {"w": values}, "optimizer_states": [{"state": {0: {"m": values * 2}}}]}


def save(folder: Path, *steps: int, keep_last: int = 9) -> None:
    writer = CommittedCheckpointIO(keep_last=keep_last, async_save=False)
    for step in steps:
        writer.save_checkpoint(state(step), folder / f"step-{step:08d}")


def test_a_saved_checkpoint_verifies_and_says_step_and_tokens(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(async_save=False)
    writer.save_checkpoint(state(7) | {"stage": {"meter": {"tokens": 123.0}}}, tmp_path / "step-00000007")
    manifest = verify(tmp_path / "step-00000007")
    assert (manifest.step, manifest.tokens) == (7, 123)
    assert sorted([*manifest.files, MANIFEST]) == FILES == sorted(os.listdir(tmp_path / "step-00000007"))
    assert os.listdir(tmp_path) == ["step-00000007"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_seen_and_the_one_before_is_taken(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1, 2)
    file = tmp_path / "step-00000002" / name
    whole = file.read_bytes()
    generator = random.Random(name)
    for position in {0, len(whole) - 1, *(generator.randrange(len(whole)) for _ in range(40))}:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << generator.randrange(8)
        file.write_bytes(flipped)
        with pytest.raises(UserError):
            verify(file.parent)
        with pytest.raises(UserError):
            load(file.parent)
    lines: list[str] = []
    if name != MANIFEST:
        assert last_good(tmp_path, warn=lines.append) == tmp_path / "step-00000001"
        assert len(lines) == 1 and "step-00000002" in lines[0] and name in lines[0] and "sha256" in lines[0]
        assert (tmp_path / "damaged-step-00000002").is_dir() and not file.exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["truncated", "emptied", "removed", "longer"])
def test_a_cut_or_missing_file_is_seen_and_the_one_before_is_taken(tmp_path: Path, name: str, harm: str) -> None:
    save(tmp_path, 1, 2)
    file = tmp_path / "step-00000002" / name
    whole = file.read_bytes()
    contents = {"truncated": whole[:-1], "emptied": b"", "longer": whole + b"\0"}
    file.unlink() if harm == "removed" else file.write_bytes(contents[harm])
    lines: list[str] = []
    assert last_good(tmp_path, warn=lines.append) == tmp_path / "step-00000001"
    assert len(lines) == 1 and "step-00000002" in lines[0] and name in lines[0]


def test_an_extra_file_is_damage(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "more.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="more.bin: got 1 bytes, wanted no such file"):
        verify(tmp_path / "step-00000001")


@pytest.mark.parametrize("harm", ["pipe", "folder", "dangling"])
def test_what_is_no_plain_file_is_damage_and_is_not_waited_for(tmp_path: Path, harm: str) -> None:
    save(tmp_path, 1)
    other = tmp_path / "step-00000001" / "more.bin"
    {"pipe": os.mkfifo, "folder": os.mkdir, "dangling": lambda path: path.symlink_to("nowhere")}[harm](other)
    with pytest.raises(CheckpointError, match="more.bin: got no plain file"):
        verify(tmp_path / "step-00000001")


def test_another_schema_stops_the_run_and_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.checkpoint.manifest.SCHEMA", 0)
    save(tmp_path, 1)
    with pytest.raises(UserError, match="schema 1, wanted 0"):
        last_good(tmp_path, warn=lambda line: None)
    assert list_committed(tmp_path) == [tmp_path / "step-00000001"]


def test_an_empty_or_absent_folder_has_no_good_checkpoint(tmp_path: Path) -> None:
    assert last_good(tmp_path, warn=print) is None
    assert last_good(tmp_path / "none", warn=print) is None
    assert list_committed(tmp_path / "none") == []


def test_staging_of_dead_processes_is_removed_and_of_live_ones_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (tmp_path / f".staging-step-00000003-{pid}").mkdir()
    (tmp_path / f".staging-best.json-{dead.pid}").write_text("{")
    clear_staging(tmp_path)
    assert os.listdir(tmp_path) == [f".staging-step-00000003-{os.getppid()}"]


def test_a_folder_that_was_never_committed_gives_way_to_a_commit(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "weights.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert verify(tmp_path / "step-00000001").step == 1
    assert (tmp_path / "damaged-step-00000001").is_dir()


def full_disk(monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> None:
    room = [after_bytes]
    write = HashingFile.write

    def limited(self: HashingFile, data: bytes) -> int:
        room[0] -= memoryview(data).nbytes
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(HashingFile, "write", limited)


@pytest.mark.parametrize("after_bytes", [0, 500, 5000, 9000])
@pytest.mark.parametrize("async_save", [False, True])
def test_a_full_disk_is_a_clear_error_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_bytes: int, async_save: bool
) -> None:
    writer = CommittedCheckpointIO(async_save=async_save)
    writer.save_checkpoint(state(1), tmp_path / "step-00000001")
    writer.wait()
    with monkeypatch.context() as patch:
        full_disk(patch, after_bytes)
        with pytest.raises(
            CheckpointError, match=r"step-00000002 .*needs [\d,]+ bytes, [\d,]+ bytes are free: make room"
        ):
            writer.save_checkpoint(state(2), tmp_path / "step-00000002")
            while True:  # the error comes by itself at a later step
                writer.raise_pending()
                time.sleep(0.001)
    assert os.listdir(tmp_path) == ["step-00000001"]
    writer.save_checkpoint(state(2), tmp_path / "step-00000002")
    writer.teardown()
    assert last_good(tmp_path, warn=print) == tmp_path / "step-00000002"


def test_too_little_room_is_seen_before_a_byte_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 100})())
    monkeypatch.setattr(HashingFile, "write", lambda *a: pytest.fail("wrote"))
    with pytest.raises(CheckpointError, match="100 bytes are free"):
        save(tmp_path, 1)
    assert os.listdir(tmp_path) == []


SAVING = """
    import sys, torch
    from pathlib import Path
    from lifecycle.checkpoint.io import CommittedCheckpointIO
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    writer = CommittedCheckpointIO(keep_last=2)
    print("ready", flush=True)
    while True:
        step += 1
        values = torch.full((200_000,), float(step))
        state = {"global_step": step, "state_dict": {"w": values}, "optimizer_states": [{"m": values + 1}]}
        writer.save_checkpoint(state, folder / f"step-{step:08d}")
"""


@pytest.mark.slow
def test_after_kill_9_at_any_moment_the_last_good_checkpoint_is_one_that_was_saved(tmp_path: Path) -> None:
    generator, step = random.Random(0), 0
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SAVING), str(tmp_path), str(step)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(generator.uniform(0.0, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        lines: list[str] = []
        path = last_good(tmp_path, warn=lines.append)
        assert lines == [], "a kill leaves staging folders, never damage under a checkpoint's name"
        assert not list(tmp_path.glob(".staging*"))
        if path is not None:
            found = load(path)
            assert verify(path).step == found["global_step"] >= step
            step = found["global_step"]
            assert torch.equal(found["state_dict"]["w"], torch.full((200_000,), float(step)))
            assert torch.equal(found["optimizer_states"][0]["m"], torch.full((200_000,), step + 1.0))
    assert step > 0


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of file sizes")
def test_a_limit_of_file_sizes_is_no_want_of_room(tmp_path: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = CommittedCheckpointIO(async_save=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            CheckpointError, match=r"no file so large: see `ulimit -f`.*Then start the same command"
        ) as raised:
            writer.save_checkpoint(
                {"global_step": 1, "state_dict": {"w": torch.zeros(50_000)}}, tmp_path / "step-00000001"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "room" not in str(raised.value) and not os.listdir(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_really_full_file_system_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        values = torch.arange(200_000.0)
        writer = CommittedCheckpointIO()
        for step in (1, 2, 3):
            writer.save_checkpoint({"global_step": step, "state_dict": {"w": values}}, tmp_path / f"step-{step:08d}")
        writer.wait()
        (tmp_path / "other").write_bytes(bytes(500_000))
        more = CommittedCheckpointIO(keep_last=4)
        with pytest.raises(CheckpointError, match="make room"):
            more.save_checkpoint({"global_step": 4, "state_dict": {"w": values}}, tmp_path / "step-00000004")
            more.teardown()
        assert last_good(tmp_path, warn=print) == tmp_path / "step-00000003"
        writer.save_checkpoint({"global_step": 4, "state_dict": {"w": values}}, tmp_path / "step-00000004")
        writer.teardown()  # of three, the first may go for the fourth
        assert [path.name[-1] for path in list_committed(tmp_path)] == ["2", "3", "4"]
        assert not list(tmp_path.glob(".staging*"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_manifest_is_json_that_names_every_file(tmp_path: Path) -> None:
    save(tmp_path, 4)
    raw = json.loads((tmp_path / "step-00000004" / MANIFEST).read_text())
    assert raw["step"] == 4 and raw["schema"] == 1 and set(raw["files"]) == set(FILES) - {MANIFEST}
