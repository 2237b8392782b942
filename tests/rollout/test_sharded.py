"""Over a sharded decoder every rank samples what one process would, however many prompts each has."""

from pathlib import Path

import pytest
from tests.two_ranks import run_two


@pytest.mark.slow
def test_an_adapter_over_ranks_is_sampled_without_dropout_and_as_it_is_now(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("sharded_adapter.py"), tmp_path)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}


@pytest.mark.slow
def test_ranks_with_unequal_work_step_together(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("sharded.py"), tmp_path)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
