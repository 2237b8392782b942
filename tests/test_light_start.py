"""A fault of the config and a dry run load nothing that training alone needs: it would take most of their time.

In interpreters of their own: what this one has loaded says nothing.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "lightning",
    "torchmetrics",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "transformers",
    "matplotlib",
    "datasets",
    "pandas",
    "sympy",
    "torchao",
)

CODE = """
import sys
from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.run import run

try:
    run(config.compose(sys.argv[1:]))
except UserError as error:
    print(error)
print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""


def said(folder: Path, *words: str) -> list[str]:
    """The lines that a run of this config says; the last one names what of `HEAVY` it has loaded."""
    command = [sys.executable, "-c", CODE.format(heavy=HEAVY), "model=tiny", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("stage", ["pretrain", "sft", "distill", "dpo", "reward", "grpo", "ppo"])
def test_a_fault_of_the_config_is_found_without_what_training_needs(stage: str, tmp_path: Path) -> None:
    lines = said(tmp_path, f"stage={stage}", "data=python_stdlib", "logger=tensorboard", "stage.max_tokens=many")
    assert any("stage.max_tokens is 'many'" in line for line in lines)
    assert lines[-1] == "loaded:"


def test_a_dry_run_does_without_what_training_needs(tmp_path: Path) -> None:
    lines = said(tmp_path, "stage=pretrain", "data=python_stdlib", "dry_run=true")
    assert any("FLOPs a token" in line for line in lines)
    assert lines[-1] == "loaded:"
