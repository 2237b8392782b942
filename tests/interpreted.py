"""Triton's interpreter, which runs a GPU's kernels on tensors of a CPU. It is asked for when Triton is imported, and so
has a process of its own: a test file runs itself again in it (`interpret_tests`)."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the file's first test starts")
GPU = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param("cpu", marks=HERE), pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]


ROOT = Path(__file__).parents[1]
APART = ROOT / ".venv/triton"
"""Where `make test` puts Triton: a run that found it beside torch would compile by it, and it is for a GPU."""


def interpret(*command: str) -> str:
    """Run `python -m COMMAND` in the interpreter, and give what it printed; skips where Triton is not there."""
    if not APART.exists() and importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton: make test")
    paths = [str(ROOT / "src"), str(ROOT), *([str(APART)] if APART.exists() else [])]
    here = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-m", *command], env=here, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def interpret_tests(file: str) -> None:
    """Run the tests of a file in the interpreter."""
    said = interpret("pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", file)
    assert " passed" in said


@contextmanager
def bounds_of_loops() -> Iterator[None]:
    """Triton 3.6 reads the bounds of a loop in a way that NumPy 2.4 refuses."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with mock.patch.object(interpreter, "_patch_lang_tensor", patched):
        yield
