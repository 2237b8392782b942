"""What a run says of the code that made it, also where there is nothing to ask."""

from pathlib import Path

import pytest

from lifecycle.lineage.run_folder import origin


def test_a_machine_without_git_runs_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = origin()
    assert made["git"] is None and "torch" in made["versions"]
