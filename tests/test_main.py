"""What the console script settles before torch loads."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lifecycle.__main__ import _run, others_at_work
from lifecycle.runs.begin_end import RunResult


@pytest.mark.parametrize(
    ("said", "busy"),
    [
        ("0.00 0.00 0.00 3/80 22294\n", True),
        ("9.00 9.00 9.00 1/80 22294\n", False),  # what was busy has ended
        ("nothing of the kind\n", False),
    ],
)
def test_threads_at_work_now_count_and_not_the_average(tmp_path: Path, said: str, busy: bool) -> None:
    loads = tmp_path / "loadavg"
    loads.write_text(said)
    assert others_at_work(loads) is busy


def test_a_system_that_does_not_say_is_taken_for_quiet(tmp_path: Path) -> None:
    assert not others_at_work(tmp_path / "absent")


def test_ctrl_c_while_everything_loads_is_no_traceback() -> None:
    code = (
        "import os, signal; from lifecycle import __main__ as m; from lifecycle.config import command; "
        "command.hydra_main = {}; m.main()"
    )
    while_loading = "lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)"
    for ignored, left in ((False, 130), (True, 0)):  # ignored: as in the background of a shell script
        run = subprocess.run(
            [sys.executable, "-c", code.format(while_loading)],
            capture_output=True,
            text=True,
            preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
        )
        assert (run.returncode, run.stderr) == (left, "")


def test_what_an_earlier_job_of_a_sweep_left_is_still_collected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = RunResult(folder=tmp_path, status="finished", metrics={}, model=None, result=None)
    monkeypatch.setattr("lifecycle.run.run", lambda cfg: done)
    frozen = gc.get_freeze_count()
    assert gc.isenabled() and _run(OmegaConf.create()) == 0
    assert gc.get_freeze_count() == frozen
    try:
        gc.disable()  # as the first job finds it
        assert _run(OmegaConf.create()) == 0
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.enable()
