"""Over a sharded decoder every rank samples what one process would, however many prompts each has."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_ranks_with_unequal_work_step_together(tmp_path: Path) -> None:
    script = Path(__file__).with_name("sharded.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "store"), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=180)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
