"""A decoder shared out between two gloo processes trains like a whole one."""

from pathlib import Path

import pytest
from tests.two_ranks import run_two


@pytest.mark.slow
def test_a_sharded_decoder_trains_like_a_whole_one(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("sharded.py"), tmp_path)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
