"""`Module`: a class that Lightning knows nothing of, whose objects are LightningModules."""

import copy
from abc import ABC, abstractmethod

import lightning.pytorch as pl
import pytest
import torch

from lifecycle.stages.run.module import Module


class Open(Module, ABC):
    """As `Stage` is."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    @abstractmethod
    def twice(self) -> int:
        """To be defined."""

    def on_train_start(self) -> None:
        """Come before Lightning's own."""


class Closed(Open):
    """As a stage is."""

    def twice(self) -> int:
        """Two times one."""
        return 2


def test_an_object_is_a_lightning_module_and_its_class_is_none() -> None:
    made = Closed(width=3)
    assert not issubclass(Closed, pl.LightningModule)
    assert isinstance(made, pl.LightningModule) and isinstance(made, Closed) and isinstance(made, Open)
    assert [name for name, _ in made.named_parameters()] == ["layer.weight", "layer.bias"]
    assert (type(made).__name__, type(made).__module__, made.twice()) == ("Closed", __name__, 2)
    assert type(made).on_train_start is Open.on_train_start


def test_objects_of_one_class_have_one_class() -> None:
    made = Closed(width=3)
    assert type(made) is type(Closed(width=2))
    assert type(copy.deepcopy(made)) is type(made)


def test_what_is_abstract_stays_so() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Open(width=3)  # type: ignore[abstract]
