"""A place to run in, one a test file, and a run that nothing happened to: made once a process, then copied."""

import shutil
from pathlib import Path

import pytest
from tests.run.cli import lifecycle, make_place


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with the run that nothing happened to, by a new Python, as a user would."""
    place = make_place(tmp_path_factory.mktemp("untouched"))
    lifecycle(place, "run=whole", "checkpoint.keep_last=99", cold=True)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def whole(untouched: Path, place: Path) -> Path:
    """The run that nothing happened to, as if it had been made here: what it says of its files names this place."""
    whole = place / "outputs/whole"
    shutil.copytree(untouched / "outputs/whole", whole)
    for name in ("data.json", "run.json"):
        (whole / name).write_text((whole / name).read_text().replace(str(untouched), str(place)))
    return whole
