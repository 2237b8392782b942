"""Every command that README and docs/ print is one that `lifecycle` takes."""

import re
import shlex
from pathlib import Path

import pytest

from lifecycle import config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^    (?:python -m )?lifecycle +(.*)$", re.MULTILINE)


def commands() -> list[str]:
    """The words after `lifecycle`, lines that go on joined; without help and the printing of a config."""
    texts = [page.read_text().replace("\\\n", " ") for page in PAGES]
    found = [line for text in texts for line in COMMAND.findall(text)]
    return [line for line in found if not line.startswith(("#", "--cfg"))]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what the pages have a user write: configs, and a function."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "my_filters.py").write_text("def educational(text):\n    return 1.0\n")
    for group, shipped in (("model", "tiny"), ("data", "files")):
        text = (ROOT / f"conf/{group}/{shipped}.yaml").read_text()
        (folder / group).mkdir()
        (folder / group / "mine.yaml").write_text(text.replace("    path: null ", "    path: texts "))
    return folder


@pytest.mark.parametrize("line", commands())
def test_a_command_is_taken(line: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(mine)
    words = [word for word in shlex.split(line, comments=True) if "=" in word]
    single = [word.split(",")[0] if re.fullmatch(r"\w+=\d+(,\d+)+", word) else word for word in words]  # of a sweep
    cfg = config.compose(single, config_dirs=[mine])
    config.check(cfg)
    for name, source in config.build(cfg.data).sources.items():
        source.check(name)
