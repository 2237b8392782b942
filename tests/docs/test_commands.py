"""Every command that README and docs/ print is one that `lifecycle` takes; `test_typed.py` runs them."""

import re
import shlex
from pathlib import Path

import pytest
from tests.docs.pages import ROOT, commands

from lifecycle import config

LINES = [m[1] for _, line in commands() if (m := re.match(r"(?:.*\| )?(?:python -m )?lifecycle +([^#-].*)", line))]


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


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_taken(line: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(mine)
    words = [word for word in shlex.split(line, comments=True) if "=" in word]
    cfg = config.compose(words, config_dirs=[mine])
    config.check(cfg)
    for name, source in config.build(cfg.data).sources.items():
        source.check(name)
