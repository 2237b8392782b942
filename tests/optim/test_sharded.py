"""Optimizers and clipping under FSDP2 on two gloo processes give what one process gives."""

from pathlib import Path

import pytest
from tests.two_ranks import run_two


@pytest.mark.slow
def test_sharded_training_equals_whole_training_and_restarts_bit_equal(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("sharded.py"), tmp_path)
    made = sorted(path.name for path in tmp_path.glob("*-*"))
    assert made == ["adamw-0", "adamw-1", "muon-0", "muon-1"]
