"""Optimizers and clipping under FSDP2 on two gloo processes give what one process gives."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_sharded_training_equals_whole_training_and_restarts_bit_equal(tmp_path: Path) -> None:
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
    made = sorted(path.name for path in tmp_path.glob("*-*"))
    assert made == ["adamw-0", "adamw-1", "muon-0", "muon-1"]
