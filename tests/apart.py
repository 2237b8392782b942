"""Packages that `make test` puts into folders of their own, where the tests that need them alone find them.

Beside torch every run would find them, and what is for a GPU changes what others do. A test file runs itself again.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_apart(package: str, *command: str, **environment: str) -> str:
    """Run `python -m COMMAND` where `package` can be imported, and give what it printed; skips without the package."""
    folder = ROOT / ".venv" / package
    if not folder.exists() and importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: make test")
    paths = [str(ROOT / "src"), str(ROOT), *([str(folder)] if folder.exists() else [])]
    here = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-m", *command], env=here, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def run_tests_apart(package: str, file: str, *, slow: bool = False, **environment: str) -> None:
    """Run the tests of a file there, but those that need a GPU: the slow ones, or the others."""
    wanted = "not gpu and slow" if slow else "not gpu and not slow"
    said = run_apart(package, "pytest", "-q", "-m", wanted, "-p", "no:cacheprovider", file, **environment)
    assert " passed" in said
