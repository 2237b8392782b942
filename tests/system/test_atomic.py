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


def test_a_folder_is_on_the_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "cache" / "tokenizer", []
    real = os.fsync

    def fsync(number: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{number}")).name.split(".")[0], folder.exists()))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic.publish_folder(folder, replace=False) as aside:
        (aside / "config").write_text("whole")
        assert not folder.exists()
    assert seen == [("config", False), ("", False), ("cache", True)]
    assert (folder / "config").read_text() == "whole" and os.listdir(folder.parent) == ["tokenizer"]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read a cache that is shared


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_is_there_already_stays_or_is_replaced_as_a_whole(tmp_path: Path, replace: bool) -> None:
    folder = tmp_path / "tokenizer"
    for content in ("first", "second"):
        with atomic.publish_folder(folder, replace=replace) as aside:
            (aside / content).write_text(content)
    assert os.listdir(folder) == ["second" if replace else "first"] and os.listdir(tmp_path) == ["tokenizer"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_cannot_be_finished_leaves_nothing_and_the_one_before(tmp_path: Path, replace: bool) -> None:
    folder = tmp_path / "tokenizer"
    with atomic.publish_folder(folder, replace=replace) as aside:
        (aside / "old").write_text("old")
    with pytest.raises(OSError, match="No space left"), atomic.publish_folder(folder, replace=replace) as aside:
        (aside / "new").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(folder) == ["old"] and os.listdir(tmp_path) == ["tokenizer"]


def test_a_file_of_its_name_is_not_taken_for_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").write_text("a file")
    with pytest.raises(OSError), atomic.publish_folder(tmp_path / "tokenizer", replace=False) as aside:
        (aside / "new").write_text("")
    assert os.listdir(tmp_path) == ["tokenizer"]


def test_a_folder_that_cannot_take_its_place_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "tokenizer", Path.rename
    with atomic.publish_folder(folder, replace=True) as aside:
        (aside / "old").write_text("old")

    def rename(path: Path, target: Path) -> Path:
        if (path / "new").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), atomic.publish_folder(folder, replace=True) as aside:
        (aside / "new").write_text("new")
    assert os.listdir(folder) == ["old"] and os.listdir(tmp_path) == ["tokenizer"]
