"""What a run began with is read again by the run that goes on, unless it is something else by now."""

from pathlib import Path

import pytest
import torch
from tests.model.huggingface.families import LLAMA, made

from lifecycle.errors import UserError
from lifecycle.lineage.parent import find_parent
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model.huggingface import export
from lifecycle.runs.stage import began_with


def test_a_run_that_goes_on_reads_what_it_began_with_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(made(LLAMA), Path("given"))
    parent, run = find_parent("given"), RunFolder(Path("outputs/mine"))
    run.update(**parent.lineage())
    checkpoint = str(run.checkpoints / "step-00000004")
    again = began_with(parent, checkpoint)
    assert torch.equal(again.read()["norm.weight"], made(LLAMA).norm.weight)
    assert again.sha256() == began_with(parent, None).sha256() == run.lineage()["parent"]["sha256"]
    export(made(LLAMA, seed=7), Path("given"))
    began_with(parent, None).read()  # a new run begins with what is there
    for ask in (again.read, again.sha256):
        with pytest.raises(UserError, match=r"mine' began with weights of hash .* put them back there"):
            ask()
