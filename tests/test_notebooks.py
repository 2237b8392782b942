"""Notebooks run top to bottom on a tiny run, and are kept without what they printed."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.run.cli import lifecycle, make_place
from tests.run.prompts import write_prompts

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


SAMPLED = (
    *("stage=grpo", "data=asked", "init_from=outputs/second", "stage.rewards=length", "stage.grading.target_words=4"),
    *("stage.global_batch_tokens=null", "stage.prompts_per_step=4", "stage.samples_per_prompt=3"),
    *("stage.sequence_length=48", "stage.sampling.max_new_tokens=12", "stage.max_epochs=null", "stage.max_steps=24"),
    *("stage.optimizer.lr=1e-3", "stage.keep_rollouts=1", "stage.preflight.prompts=0"),
)
LOOKS_AT = {"inspect_checkpoint": "second", "rollouts": "taught"}
"""Which run each notebook is given."""
SAYS = {
    "inspect_checkpoint": ("outputs/first", "finished", "⟦", "entropy"),
    "rollouts": ("outputs/second", "finished", "⟦", "entropy", "prompts were asked again and changed"),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_place(tmp_path_factory.mktemp("place"))
    lifecycle(place, "run=first", "stage.max_steps=8", "model.logit_softcap=2")  # what an export leaves out
    lifecycle(place, "run=second", "stage.max_steps=8", "init_from=outputs/first")
    write_prompts(place, "asked")
    lifecycle(place, "run=taught", *SAMPLED)
    return place / "outputs"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    for cell in cells(notebook):
        assert cell["outputs"] == [] and cell["execution_count"] is None, "strip the outputs before you commit"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_top_to_bottom_on_a_tiny_run(
    notebook: Path, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("LIFECYCLE_RUN", str(outputs / LOOKS_AT[notebook.stem]))
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
    assert all(words in said for words in SAYS[notebook.stem]), said
