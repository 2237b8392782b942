"""A LightningModule that Lightning is imported for when the first one is built, not when its class is defined.

The check of a config and a dry run read what the class of a stage declares, and build none: Lightning takes seconds.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule as Module
else:

    class Module:
        """In the place of `LightningModule`, which comes behind it in the bases of every object."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Self:
            return object.__new__(_with_lightning(cls))


@functools.cache
def _with_lightning(of: type) -> type:
    """The class that an object of the class `of` has: of the same name, and a LightningModule too."""
    from lightning.pytorch import LightningModule

    if issubclass(of, LightningModule):  # that of an object, which is copied
        return of
    kind: Any = type(of)  # that of abstract classes
    built: type = kind(of.__name__, (of, LightningModule), {"__module__": of.__module__, "__doc__": of.__doc__})
    return built
