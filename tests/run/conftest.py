"""A place to run in and a run that nothing happened to, one of each a test file."""

from pathlib import Path

import pytest
from tests.run.cli import lifecycle, make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The run that nothing happened to."""
    lifecycle(place, "run=whole", "checkpoint.keep_last=99", cold=True)
    return place / "outputs/whole"
