"""A sharded policy: its reference is refreshed shard by shard, and its sampler notes experts, on two ranks."""

from pathlib import Path

import pytest
from tests.two_ranks import run_two


@pytest.mark.slow
def test_a_sharded_reference_is_refreshed_and_experts_are_noted(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("sharded.py"), tmp_path)
    assert (tmp_path / "done-0").exists() and (tmp_path / "done-1").exists()
