"""Triton's interpreter, which runs a GPU's kernels on tensors of a CPU. It is asked for when Triton is imported, and so
has a process of its own: a test file runs itself again in it (`interpret_tests`)."""

import os
from typing import Any

import pytest
import torch
from tests.apart import run_apart, run_tests_apart

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that the file's first test starts")
GPU = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = [pytest.param("cpu", marks=HERE), pytest.param("cuda", marks=[pytest.mark.gpu, GPU])]


def interpret(*command: str) -> str:
    """Run `python -m COMMAND` in the interpreter, and give what it printed; skips where Triton is not there."""
    return run_apart("triton", *command, TRITON_INTERPRET="1")


def interpret_tests(file: str) -> None:
    """Run the tests of a file in the interpreter."""
    run_tests_apart("triton", file, TRITON_INTERPRET="1")


def _bounds_of_loops() -> None:
    """Triton 3.6 reads the bounds of a loop in a way that NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if INTERPRETED:  # in a process that does nothing else
    _bounds_of_loops()
