"""Every stage is final: it defines what `Stage` leaves open, and overrides nothing that has a body there."""

import importlib
import inspect
from pathlib import Path

import lightning.pytorch as pl
import pytest

import lifecycle.stages
from lifecycle.stages.base import Stage

DECLARED = {
    "__init__",
    "__module__",
    "__qualname__",
    "__doc__",
    "__abstractmethods__",
    "_abc_impl",
    "__static_attributes__",
}


def stages() -> list[type[Stage]]:
    for file in Path(lifecycle.stages.__file__).parent.glob("*.py"):
        importlib.import_module(f"lifecycle.stages.{file.stem}")
    return sorted(Stage.__subclasses__(), key=lambda stage: stage.__name__)


def abstract(stage: type) -> frozenset[str]:
    return frozenset(getattr(stage, "__abstractmethods__", ()))


def overridden(stage: type) -> set[str]:
    """Methods that a stage defines anew although `Stage`, or Lightning for it, has a body for them."""
    left_open = abstract(Stage)
    return {
        name
        for name, value in vars(stage).items()
        if name not in DECLARED | left_open
        and (inspect.isfunction(value) or isinstance(value, property))
        and (hasattr(Stage, name) or hasattr(pl.LightningModule, name))
    }


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: stage.__name__)
def test_a_stage_is_final_and_overrides_no_concrete_method(stage: type[Stage]) -> None:
    assert stage.__mro__[1] is Stage and not abstract(stage)
    assert all(
        issubclass(built, pl.LightningModule) for built in stage.__subclasses__()
    )  # of its objects (`module.py`)
    assert not overridden(stage)


def test_an_override_would_be_found() -> None:
    hook = {"on_train_start": Stage.on_train_end, "training_step": Stage.on_train_end, "_own": Stage.on_train_end}
    assert overridden(type("Plain", (), hook)) == {"on_train_start"}
