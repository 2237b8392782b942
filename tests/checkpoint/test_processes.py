"""Whole runs in their own processes, killed and resumed, on one process, under DDP, and sharded (gloo, CPU)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lifecycle.checkpoint import CheckpointError, list_committed, load, verify

TOY = Path(__file__).with_name("toy.py")


def train(
    folder: Path, strategy: str, ranks: int, steps: int, *, keep_last: int = 9, kill_after: int = 0
) -> dict[int, float]:
    """Losses by step of one launch."""
    command = [sys.executable, str(TOY), str(folder), strategy, *map(str, (ranks, steps, keep_last, kill_after))]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "TOY_START")}
    done = subprocess.run(
        command, capture_output=True, text=True, start_new_session=True, env=environment, timeout=180, check=False
    )
    assert done.returncode == (-9 if kill_after else 0), done.stderr[-3000:]
    words = [line.split() for line in done.stdout.splitlines() if line.startswith("loss ")]
    return {int(step): float.fromhex(value) for _, step, value in words}


def names(folder: Path) -> list[str]:
    return [path.name for path in list_committed(folder)]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), ("ddp", 2)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, strategy: str, ranks: int) -> None:
    whole = train(tmp_path / "a", strategy, ranks, 8)
    assert sorted(whole) == list(range(1, 9))
    first = train(tmp_path / "b", strategy, ranks, 8, keep_last=2, kill_after=5)
    second = train(tmp_path / "b", strategy, ranks, 8, keep_last=2)
    assert sorted(first) == [1, 2, 3, 4, 5] and sorted(second) == [5, 6, 7, 8]
    assert first | second == whole
    assert names(tmp_path / "a") == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    assert names(tmp_path / "b") == ["step-00000006", "step-00000008"]
    assert verify(tmp_path / "b" / "step-00000008").tokens == 64
    weights = [load(tmp_path / run / "step-00000008")["state_dict"] for run in "ab"]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_sharded_run_goes_on_bit_for_bit_on_two_ranks_and_closely_on_other_numbers(tmp_path: Path) -> None:
    whole = train(tmp_path / "a", "sharded", 2, 12)
    folder = tmp_path / "b"
    first = train(folder, "sharded", 2, 8, keep_last=2, kill_after=5)
    second = train(folder, "sharded", 2, 8, keep_last=2)
    assert sorted(first) == [1, 2, 3, 4, 5] and sorted(second) == [5, 6, 7, 8]
    assert first | second == {step: whole[step] for step in range(1, 9)}
    assert names(folder) == ["step-00000006", "step-00000008"]
    one = train(folder, "sharded", 1, 10, keep_last=2)  # 2 ranks -> 1
    assert sorted(one) == [9, 10]
    two = train(folder, "sharded", 2, 12, keep_last=2)  # 1 rank -> 2
    assert sorted(two) == [11, 12]
    for step, loss in (one | two).items():
        assert loss == pytest.approx(whole[step], rel=1e-6)  # sums over ranks are ordered otherwise
    with pytest.raises(CheckpointError, match="hardware.strategy=fsdp"):
        load(folder / "step-00000012")


@pytest.mark.slow
def test_a_damaged_shard_is_passed_over(tmp_path: Path) -> None:
    whole = train(tmp_path, "sharded", 2, 4)
    shard = tmp_path / "step-00000004" / "__1_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    again = train(tmp_path, "sharded", 2, 4)
    assert again == {step: whole[step] for step in (3, 4)}
    assert names(tmp_path) == ["step-00000002", "step-00000004"] and (tmp_path / "damaged-step-00000004").is_dir()


@pytest.mark.slow
def test_a_save_that_one_rank_cannot_write_ends_all_ranks_with_what_was_saved_before(tmp_path: Path) -> None:
    command = [sys.executable, str(TOY), str(tmp_path), "sharded", "2", "10", "9", "0"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "TOY_START")} | {"TOY_FULL": "6"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180, check=False)
    assert done.returncode != 0
    assert "step-00000006 could not be written (No space left on device)" in done.stderr
    assert "Of this run: checkpoint.keep_last=1 lets 1 older checkpoint go at the next start (" in done.stderr
    assert names(tmp_path) == ["step-00000002", "step-00000004"]
    assert not list(tmp_path.glob(".staging-*"))
    steps = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("loss ")]
    assert steps[-1] < 10  # it was raised at the save after, not at the end
