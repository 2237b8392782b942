"""A small file is there whole or not at all, also after a power cut."""

import errno
import os
from pathlib import Path

import pytest

from lifecycle.system import atomic


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "new" / "run.json", []

    def fsync(number: int) -> None:
        synced = Path(os.readlink(f"/proc/self/fd/{number}"))
        seen.append((synced.name, path.exists(), synced.read_text() if synced.is_file() else ""))

    monkeypatch.setattr(os, "fsync", fsync)
    atomic.write(path, "whole")
    assert seen == [(f".run.json.{os.getpid()}", False, "whole"), ("new", True, "")]
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["run.json"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "run.json"
    atomic.write(path, "old")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync", full) if where == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="No space left"):
        atomic.write(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["run.json"]


def test_a_file_system_that_syncs_no_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def only_files(number: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(number)

    monkeypatch.setattr(os, "fsync", only_files)
    atomic.write(tmp_path / "run.json", b"whole")
    assert (tmp_path / "run.json").read_bytes() == b"whole"
