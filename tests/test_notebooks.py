"""Notebooks run top to bottom on a tiny run, and are kept without what they printed."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.run.cli import lifecycle, make_place

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_place(tmp_path_factory.mktemp("place"))
    lifecycle(place, "run=first", "stage.max_steps=8", "model.logit_softcap=2")  # what an export leaves out
    lifecycle(place, "run=second", "stage.max_steps=8", "init_from=outputs/first")
    return place / "outputs/second"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    for cell in cells(notebook):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "strip the outputs before you commit"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom_on_a_tiny_run(
    notebook: Path, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("LIFECYCLE_RUN", str(run_folder))
    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    shown: list[int] = []

    def show() -> None:
        shown.extend(plt.get_fignums())
        for number in plt.get_fignums():
            plt.figure(number).savefig(tmp_path / f"{notebook.stem}-{number}.png")  # drawing finds what making does not
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    printed, names = io.StringIO(), {"__name__": "__main__"}
    with contextlib.redirect_stdout(printed):
        for number, cell in enumerate(cells(notebook), 1):
            exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), names)
    said = printed.getvalue()
    assert len(shown) >= 3
    assert "outputs/first" in said and "finished" in said and "⟦" in said and "entropy" in said
