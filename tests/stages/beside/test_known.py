"""What is known of sequences is found again by other processes; a damaged file is told and not read."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lifecycle.stages.beside.known import KnownValues, digest

ONE, OTHER = digest(b"one"), digest(b"other")


def written(folder: Path, key: bytes, value: Tensor) -> Path:
    """The file of one more value."""
    before, known = set(folder.glob("*")), KnownValues(folder)
    known.add(key, value)
    known.save()
    (made,) = set(folder.glob("*")) - before
    return made


def test_what_was_saved_is_found_again_and_saved_once(tmp_path: Path) -> None:
    written(tmp_path, ONE, torch.tensor([1.5, -2.0]))
    written(tmp_path, OTHER, torch.tensor([3.0]))
    again = KnownValues(tmp_path)
    again.save()
    assert len(again) == 2 == len(list(tmp_path.iterdir())) and not again.damaged
    assert again[ONE].tolist() == [1.5, -2.0] and again[OTHER].tolist() == [3.0]


@pytest.mark.parametrize("damage", ["cut off", "cut in its head", "emptied", "one bit"])
def test_a_damaged_file_is_told_and_computed_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path, ONE, torch.tensor([1.5, -2.0]))
    file = written(tmp_path, OTHER, torch.tensor([3.0]))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    changed = {
        "cut off": bytes(content[:-3]),
        "cut in its head": bytes(content[:5]),
        "emptied": b"",
        "one bit": bytes(content),
    }
    file.write_bytes(changed[damage])
    known = KnownValues(tmp_path)
    assert known.damaged == [file.name] and f"{file} is damaged" in capsys.readouterr().err
    assert ONE in known and OTHER not in known
    assert written(tmp_path / "elsewhere", ONE, torch.tensor([0.0])).parent.name == "elsewhere"  # a folder that is new
    known.add(OTHER, torch.tensor([3.0]))
    known.save()  # in its place
    assert KnownValues(tmp_path)[OTHER].tolist() == [3.0] and not capsys.readouterr().err


def test_a_file_that_was_put_into_the_folder_of_others_is_told_and_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name and content are right, and what it says is of another teacher, or of another K."""
    file = written(tmp_path / "one", ONE, torch.tensor([1.5, -2.0]))
    (tmp_path / "other").mkdir()
    there = shutil.copy(file, tmp_path / "other")
    known = KnownValues(tmp_path / "other")
    assert ONE not in known and not known.damaged
    assert f"{there} was made for the folder one" in capsys.readouterr().err


def test_a_file_of_an_older_version_says_no_folder_and_is_read(tmp_path: Path) -> None:
    file = written(tmp_path, ONE, torch.tensor([1.5]))
    content = save(load_file(file))
    file.unlink()
    (tmp_path / f"{hashlib.sha256(content).hexdigest()[:16]}.safetensors").write_bytes(content)
    assert KnownValues(tmp_path)[ONE].tolist() == [1.5]
