"""Every command that a page prints does what a user would see, typed in the order of the pages, at toy size."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs.pages import PAGES, ROOT, Command, blocks, commands
from tests.docs.place import Shell, make_place, put_models, shell

pytestmark = pytest.mark.slow

NOT_TYPED = (
    ("make ", "builds .venv and fetches from a package index"),
    ("source ", "is for the shell of the user"),
    ("sh benchmarks/studies/", "takes an hour, and reads texts that are not in the project"),
    ("python benchmarks/studies/", "takes an hour"),
    ("PYTHONPATH=src:. python -m benchmarks.gpu", "needs a GPU"),
)
"""Lines that begin so are not run, and why."""

TYPED = [command for command in commands() if not command.line.startswith(tuple(begin for begin, _ in NOT_TYPED))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def run(place: Path) -> Iterator[Shell]:
    """A shell in the place, where the demo has been run."""
    with shell(place) as run:
        put_models(place, run)
        yield run


def typed(line: str, run: Shell) -> subprocess.CompletedProcess[str]:
    """The line, done without an error."""
    done = run(line)
    said = f"{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0 and "Traceback" not in done.stderr, said
    return done


def first_that_makes(name: str) -> str | None:
    """The first line of the pages that leaves the run `name`."""
    return next((line for _, line in TYPED if re.search(rf"\brun={name}\b", line)), None)


def make_what_it_reads(line: str, place: Path, run: Shell) -> None:
    """Where a test is run alone: the runs that the command names, by the commands of the pages that make them."""
    for name in re.findall(r"(?:init_from|prepared|tokenizer)=(?:outputs/)?(\w+)", line) + re.findall(
        r"outputs/(\w+)", line
    ):
        maker = first_that_makes(name)
        if maker and maker != line and not (place / "outputs" / name).exists():
            make_what_it_reads(maker, place, run)
            typed(maker, run)


@pytest.mark.parametrize(
    "command", TYPED, ids=lambda command: " ".join([f"{command.page}:", *command.line.partition(" #")[0].split()])
)
def test_a_command_runs(command: Command, place: Path, run: Shell) -> None:
    line = command.line
    make_what_it_reads(line, place, run)
    done = typed(line, run)
    if line.startswith("cp conf/data/files.yaml"):  # "then give data.sources.mine.path in it"
        mine = place / "conf/data/mine.yaml"
        mine.write_text(mine.read_text().replace("    path: null ", "    path: texts "))
    name = re.search(r"\brun=(\w+)", line)
    if name and not line.startswith("lifecycle -m") and "dry_run=true" not in line:
        assert json.loads((place / "outputs" / name[1] / "run.json").read_text())["status"] == "finished"
    if "dry_run=true" in line:
        assert "parameters" in done.stdout


PYTHON = [(page, block) for page in ("docs/python.md", "docs/models.md") for block in blocks(page)]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=[f"{page}: {n}" for n, (page, _) in enumerate(PYTHON)])
def test_python_of_the_pages_runs(page: str, block: str, place: Path, run: Shell) -> None:
    (place / "block.py").write_text(block)
    typed("python block.py", run)


def test_what_is_not_typed_is_on_the_pages() -> None:
    for begin, _ in NOT_TYPED:
        assert any(command.line.startswith(begin) for command in commands()), begin


def test_every_line_with_the_program_is_found() -> None:
    found = {command.line for command in commands()}
    for page in PAGES:
        for line in page.read_text().splitlines():
            if re.match(r"\s+.*\blifecycle(\.report)? \S*=", line):
                assert any(line.strip().rstrip("\\").strip() in one for one in found), (page.relative_to(ROOT), line)
