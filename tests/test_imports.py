"""Arrows between the rooms point one way, and every module can be imported."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lifecycle"

MAY_IMPORT: dict[str, set[str]] = {
    # The ground floor knows nothing of ours.
    "bounds": set(),
    "errors": set(),
    "batch": {"errors"},
    "system": {"errors"},
    "losses": {"errors", "batch"},
    "model": {"bounds", "errors", "system"},
    "optim": {"bounds", "errors"},
    "rewards": {"errors"},
    "tokenizer": {"bounds", "errors", "system"},
    "rollout": {"bounds", "errors", "batch", "model", "system"},
    # Data and stages meet in batch/ alone.
    "data": {"bounds", "errors", "batch", "system", "tokenizer"},
    "stages": {"bounds", "errors", "batch", "duration", "losses", "model", "optim", "rewards", "rollout"},
    "checkpoint": {"errors", "system"},
    "callbacks": {"bounds", "config", "errors", "batch", "checkpoint", "hardware", "stages", "system"},
    "duration": {"bounds", "errors"},
    # The configuration names its targets by text.
    "config": {"bounds", "duration", "errors"},
    "hardware": {"bounds", "errors"},
    "loggers": {"errors"},
    "report": {"errors", "hardware", "loggers", "system"},
}
"""By room (a folder, or a file of the top): the rooms it may import. Those not named join the others, and may any."""

MODULES = sorted(SOURCE.rglob("*.py"))


def dotted_name(file: Path) -> str:
    parts = ["lifecycle", *file.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(file: Path) -> set[str]:
    """Full names of our modules that the file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            assert node.level == 0, f"{file}: imports are absolute"
    return {name for name in names if name.startswith("lifecycle.")}


@pytest.mark.parametrize("file", MODULES, ids=dotted_name)
def test_no_arrow_points_back(file: Path) -> None:
    here = room(dotted_name(file))
    if here in MAY_IMPORT:
        forbidden = {name for name in imports(file) if room(name) not in {*MAY_IMPORT[here], here, "__version__"}}
        assert not forbidden, f"{here} must not import {sorted(forbidden)}"


@pytest.mark.parametrize("file", MODULES, ids=dotted_name)
def test_only_the_entry_is_imported_by_nobody(file: Path) -> None:
    importing_run = {name for name in imports(file) if room(name) in ("run", "__main__")}
    assert not importing_run or file.name == "__main__.py"


def test_losses_need_torch_and_nothing_else() -> None:
    allowed = {"torch", "lifecycle", *sys.stdlib_module_names}
    for file in (SOURCE / "losses").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file


@pytest.mark.parametrize("file", [f for f in MODULES if f.name != "__main__.py"], ids=dotted_name)
def test_every_module_imports(file: Path) -> None:
    importlib.import_module(dotted_name(file))
