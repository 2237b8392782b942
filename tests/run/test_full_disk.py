"""Files that cannot grow: the run ends in plain words, what was saved is whole, and the same command goes on."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.run.cli import assert_same_run, facts, lifecycle, started, step_folder, wait_for

from lifecycle.checkpoint import list_committed, verify


def test_a_limit_of_file_sizes_ends_the_run_in_plain_words_and_costs_no_checkpoint(place: Path, whole: Path) -> None:
    run = place / "outputs/full"
    with started(place, "run=full") as process:
        wait_for(lambda: step_folder(run, 8).exists(), process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, 60_000))  # from now on no larger file
        done = process.end()
    assert done.code == 2 and "Traceback" not in done.err, done
    assert "could not be written" in done.err and "limit of file sizes" in done.err
    assert facts(run)["status"] == "failed" and "could not be written" in facts(run)["error"]
    assert {path.name for path in (run / "checkpoints").iterdir()} <= {"step-00000008", "step-00000016", "best.json"}
    for checkpoint in list_committed(run / "checkpoints"):
        verify(checkpoint)
    lifecycle(place, "run=full")
    assert_same_run(run, whole)
    assert facts(run)["error"] is None


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """The folder of the run `small` on a disk of its own of 6 MB."""
    folder = place / "outputs/small"
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "toy", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["run.json", "checkpoints/step-00000008", "ledger.json"])
def test_a_disk_that_another_fills_at_any_moment_ends_the_run_in_plain_words(
    place: Path, whole: Path, small_disk: Path, moment: str
) -> None:
    with started(place, "run=small") as process:
        wait_for(lambda: (small_disk / moment).exists(), process)
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        done = process.end()
    assert done.code == 2 and "Traceback" not in done.err and "No space left" in done.err, done
    for checkpoint in list_committed(small_disk / "checkpoints"):
        verify(checkpoint)
    (small_disk / "ballast").unlink()
    lifecycle(place, "run=small")
    assert_same_run(small_disk, whole)


@pytest.mark.slow
def test_fewer_kept_checkpoints_make_room_on_a_full_disk(place: Path, whole: Path, small_disk: Path) -> None:
    full = lifecycle(place, "run=small", "checkpoint.keep_last=99", "checkpoint.every_steps=1", code=2)
    older = len(list_committed(small_disk / "checkpoints")) - 1
    assert f"Of this run: checkpoint.keep_last=1 lets {older} older checkpoints go at the next start" in full.err
    lifecycle(place, "run=small", "checkpoint.keep_last=1", "checkpoint.every_steps=1")
    assert_same_run(small_disk, whole)


@pytest.mark.slow
def test_a_disk_that_may_not_be_written_any_more_ends_the_run_in_plain_words(
    place: Path, whole: Path, small_disk: Path
) -> None:
    with started(place, "run=small") as process:
        wait_for(lambda: step_folder(small_disk, 8).exists(), process)
        while subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, check=False).returncode:
            assert process.poll() is None  # it has a file open just now
        done = process.end()
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert done.code == 2 and "Traceback" not in done.err and "Read-only file system" in done.err, done
    lifecycle(place, "run=small")
    assert_same_run(small_disk, whole)
