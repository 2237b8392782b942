"""Which checkpoints stay."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lifecycle.checkpoint import CheckpointError, keep, list_committed, mark_best, mark_safe, read_best
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.checkpoint.retention import remedies, size_of
from lifecycle.errors import UserError


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_committed(folder)]


def save(writer: CommittedCheckpointIO, folder: Path, step: int) -> None:
    writer.save_checkpoint({"global_step": step, "state_dict": {"w": torch.ones(2)}}, folder / f"step-{step:08d}")


def test_the_last_k_the_best_and_the_milestones_stay() -> None:
    assert keep([50, 10, 20, 30, 40], keep_last=2, marked=[20], milestones=[10, 15]) == {10, 20, 40, 50}
    assert keep([10], keep_last=3, marked=[None], milestones=[]) == {10}
    assert keep([], keep_last=1, marked=[5], milestones=[6]) == set()


def test_keeping_none_is_refused() -> None:
    with pytest.raises(UserError, match="checkpoint.keep_last is 0"):
        keep([1], keep_last=0, marked=[None], milestones=[])


def test_each_commit_prunes(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(keep_last=2, milestones=(2,))
    for step in range(1, 8):
        if step == 3:
            mark_best(tmp_path, 3, 1.5)
        save(writer, tmp_path, step)
    writer.teardown()
    assert steps(tmp_path) == [2, 3, 6, 7]
    assert read_best(tmp_path) == {"step": 3, "value": 1.5, "metric": "valid/loss", "previous": None}


def test_the_old_best_stays_until_the_new_best_is_committed(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(keep_last=1, async_save=False)
    mark_best(tmp_path, 1, 2.0)
    save(writer, tmp_path, 1)
    save(writer, tmp_path, 2)
    mark_best(tmp_path, 4, 1.0)
    save(writer, tmp_path, 3)
    assert steps(tmp_path) == [1, 3]
    mark_best(tmp_path, 4, 1.0)  # again after a crash
    save(writer, tmp_path, 4)
    assert steps(tmp_path) == [4]


def test_what_a_guard_may_go_back_to_stays_until_there_is_a_later_one(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(keep_last=1, async_save=False)
    mark_safe(tmp_path, 1)
    mark_best(tmp_path, 1, 2.0)
    for step in (1, 2):
        save(writer, tmp_path, step)
    mark_best(tmp_path, 3, 1.0)  # what is best for the new text need not be safe
    save(writer, tmp_path, 3)
    assert steps(tmp_path) == [1, 3]
    mark_safe(tmp_path, 5)
    save(writer, tmp_path, 4)
    assert steps(tmp_path) == [1, 3, 4]
    save(writer, tmp_path, 5)
    assert steps(tmp_path) == [3, 5]


def test_the_checkpoint_just_written_stays_beside_later_ones(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(keep_last=1, async_save=False)
    save(writer, tmp_path, 9)
    save(writer, tmp_path, 4)
    assert steps(tmp_path) == [4, 9]


def disk(monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
    """A disk of `size` bytes that holds what is in `folder` and nothing else."""

    def usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=size - size_of(folder))

    monkeypatch.setattr("shutil.disk_usage", usage)


def test_what_is_over_a_retention_that_is_less_than_it_was_goes_before_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = CommittedCheckpointIO(keep_last=9, async_save=False)
    for step in range(1, 5):
        save(many, tmp_path, step)
    one = size_of(tmp_path) // 4
    disk(monkeypatch, tmp_path, 4 * one + one // 2)
    with pytest.raises(CheckpointError, match=r"keep_last=1 lets 3 older checkpoints go at the next start"):
        save(many, tmp_path, 5)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert "lets 1 older checkpoint go at" in remedies(tmp_path, keep_last=2, milestones=[])
    save(CommittedCheckpointIO(keep_last=2, async_save=False), tmp_path, 5)
    assert steps(tmp_path) == [4, 5]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("room_for", "left"), [(4, [2, 3, 5]), (3, [2, 3, 5])])
def test_where_room_is_short_the_oldest_goes_before_the_save_that_would_have_put_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: int, left: list[int]
) -> None:
    writer = CommittedCheckpointIO(keep_last=3, async_save=False)
    for step in range(1, 4):
        save(writer, tmp_path, step)
    disk(monkeypatch, tmp_path, room_for * size_of(tmp_path) // 3 + 100)
    save(writer, tmp_path, 5)
    assert steps(tmp_path) == left


def test_the_last_good_checkpoint_the_best_and_the_milestones_never_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CommittedCheckpointIO(keep_last=1, milestones=(1,), async_save=False)
    save(writer, tmp_path, 1)
    mark_best(tmp_path, 2, 1.0)
    save(writer, tmp_path, 2)
    save(writer, tmp_path, 3)
    (tmp_path / "damaged-step-00000009").mkdir()
    (tmp_path / "damaged-step-00000009" / "state.pt").write_bytes(bytes(700))
    disk(monkeypatch, tmp_path, size_of(tmp_path) + 100)
    with pytest.raises(CheckpointError) as raised:
        save(writer, tmp_path, 4)
    assert steps(tmp_path) == [1, 2, 3]
    said = str(raised.value)
    assert "keep_last" not in said  # it is 1 already
    assert "checkpoint.milestones=[] beside it lets 1 more go" in said
    assert "1 damaged ones" in said and "may be deleted by hand (700 bytes)" in said


def test_where_nothing_of_the_run_can_go_nothing_is_advised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, tmp_path, 100)
    with pytest.raises(CheckpointError, match=r"100 bytes are free: make room .*\. Of this run nothing can go$"):
        save(CommittedCheckpointIO(async_save=False), tmp_path, 1)


def test_lightning_cannot_remove_a_checkpoint(tmp_path: Path) -> None:
    writer = CommittedCheckpointIO(async_save=False)
    save(writer, tmp_path, 1)
    writer.remove_checkpoint(tmp_path / "step-00000001")
    assert steps(tmp_path) == [1]
