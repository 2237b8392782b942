"""Arrows between the rooms point one way, nothing imports in a circle, and every room is small enough to be seen whole.

A room is a folder of `src/lifecycle`, or a file of its top. What counts is every import in the text: also those inside
functions, and those for the type checker alone.
"""

import ast
import graphlib
import importlib
import sys
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lifecycle"
MOST_AT_THE_TOP = 25
"""Rooms and files of `src/lifecycle`."""
MOST_FILES = 12
"""Files of a room (rooms within it apart); a room that needs more has rooms of its own."""
MOST_LINES = 300
"""Lines of a file that are not blank."""

MAY_IMPORT: dict[str, set[str]] = {
    # The ground floor knows nothing of ours.
    "bounds": set(),
    "errors": set(),
    "batch": {"errors"},
    "system": {"errors"},
    "losses": {"errors", "batch", "system"},  # system: our C, which it is compiled by
    "model": {"bounds", "errors", "system"},
    "optim": {"bounds", "errors", "system"},
    "rewards": {"bounds", "errors", "system"},
    "tokenizer": {"bounds", "errors", "system"},
    # what is known of a prompt (`rewards.record`) is told to the environment that answers its completions
    "rollout": {"bounds", "errors", "batch", "model", "rewards", "system"},
    # Data and stages meet in batch/ alone.
    "data": {"bounds", "errors", "batch", "system", "tokenizer"},
    "stages": {"bounds", "errors", "batch", "duration", "losses", "model", "optim", "rewards", "rollout", "system"},
    "checkpoint": {"errors", "system"},
    "callbacks": {"bounds", "config", "errors", "batch", "checkpoint", "hardware", "stages", "system"},
    "duration": {"bounds", "errors"},
    # The configuration names its targets by text.
    "config": {"bounds", "duration", "errors"},
    "hardware": {"bounds", "errors"},
    "loggers": {"errors", "system"},
    "report": {"errors", "hardware", "loggers", "rewards", "system"},
}
"""By room (a folder, or a file of the top): the rooms it may import. Those not named join the others, and may any."""

DATA = (
    {"quality", "mixture"},
    {"read"},
    {"clean", "conversation"},
    {"curriculum", "views"},
    {"stream"},
    {"corpus", "ledger", "validation"},
    {"module"},
    {"survey"},
)
"""The floors of `data/`, rooms and files, the lowest first: each imports from lower floors alone."""
MOST_ARROWS_IN_DATA = 42
"""Pairs of rooms and files of `data/` of which one imports the other."""

BY_A_STRING = {
    "model.families": "the families, each found by its name",
    "config.signature": "what a configuration names as its `_target_`",
    "rollout.vllm": "a package that may be absent",
    "system.foreign": "a user's own function or class",
    "rewards.programs.judge": "modules of Python that tests use",
    "data.read.files.builtin_text": "Python's own library, for its texts",
}
"""Modules that import by a name in a string, and what."""


def dotted_name(file: Path) -> str:
    """`data.read.spec`; a room's own name for its __init__; empty for that of the project."""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {dotted_name(file): file for file in sorted(SOURCE.rglob("*.py"))}
FOLDERS = [name for name, file in MODULES.items() if file.name == "__init__.py"]


def imports(file: Path) -> set[str]:
    """Our modules that the file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name.startswith("lifecycle.") and name.removeprefix("lifecycle.") not in MODULES:
                name = name.rpartition(".")[0]
            if name.startswith("lifecycle"):
                found.add(name.removeprefix("lifecycle").removeprefix("."))
    here = dotted_name(file)
    return found | {name for name in MODULES if here == "model.families" and name.startswith(f"{here}.")}


IMPORTS = {name: imports(file) - {name} for name, file in MODULES.items()}


def inside(name: str, folder: str) -> str | None:
    """What of a folder a module belongs to: a file or a room there; the folder's own __init__ is ''."""
    if not folder or name == folder:
        return name[len(folder) :].split(".")[0]
    return name.removeprefix(f"{folder}.").split(".")[0] if name.startswith(f"{folder}.") else None


def arrows(folder: str) -> dict[str, set[str]]:
    """Which files and rooms of a folder import which others of it."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, imported in IMPORTS.items():
        here = inside(name, folder)
        if here is not None:
            found[here] |= {there for other in imported if (there := inside(other, folder)) not in (None, here)}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_arrow_points_back(name: str) -> None:
    here = inside(name, "")
    if here in MAY_IMPORT:
        forbidden = {other for other in IMPORTS[name] if inside(other, "") not in {*MAY_IMPORT[here], here, ""}}
        assert not forbidden, f"{here} must not import {sorted(forbidden)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_in_a_folder_imports_in_a_circle(folder: str) -> None:
    try:
        graphlib.TopologicalSorter(arrows(folder)).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"{folder or 'the top'}: {' <- '.join(error.args[1])}")


def test_data_is_built_in_floors() -> None:
    floor = {room: height for height, rooms in enumerate(DATA) for room in rooms}
    found = {room: imported for room, imported in arrows("data").items() if room}
    assert found.keys() == floor.keys()
    for room, imported in found.items():
        level = [other for other in imported if floor[other] >= floor[room]]
        assert not level, f"data/{room} must not import {level}"
    assert sum(map(len, found.values())) <= MOST_ARROWS_IN_DATA


def test_few_import_by_a_name_in_a_string() -> None:
    assert {name for name, file in MODULES.items() if "import_module(" in file.read_text()} == {*BY_A_STRING}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_can_be_seen_whole(folder: str) -> None:
    place = SOURCE.joinpath(*folder.split("."))
    files = [file.name for file in place.glob("*.py") if file.name != "__init__.py"]
    rooms = [room.name for room in place.iterdir() if (room / "__init__.py").exists()]
    if not folder:
        assert len(files) + len(rooms) <= MOST_AT_THE_TOP, sorted([*files, *rooms])
    else:
        assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files: give it rooms, each for an idea"


def test_a_file_is_one_idea() -> None:
    lines = {name: sum(bool(line.strip()) for line in file.read_text().splitlines()) for name, file in MODULES.items()}
    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def test_a_class_has_a_name_of_its_own() -> None:
    homes = defaultdict(list)
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    assert {called: places for called, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize("name", MODULES)
def test_only_the_entry_imports_run(name: str) -> None:
    assert name == "__main__" or not {inside(other, "") for other in IMPORTS[name]} & {"run", "__main__"}


def test_losses_need_torch_and_nothing_else() -> None:
    for file in (SOURCE / "losses").rglob("*.py"):
        allowed = {"torch", "lifecycle", *sys.stdlib_module_names, *(["triton"] if file.parent.name == "gpu" else [])}
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file


@pytest.mark.parametrize("name", [name for name, file in MODULES.items() if file.name != "__main__.py"])
def test_every_module_imports(name: str) -> None:
    if ".gpu." in name:
        pytest.importorskip("triton")
    importlib.import_module(f"lifecycle.{name}".removesuffix("."))
