"""An engine that stays from one step of a run to the next, while the weights of its model change in place.

A new engine allocates its cache, copies the weights that it decodes with and records its CUDA graphs. One that stays
has them all, and their memory is missing in the update between two of its calls. So, unless told otherwise, it stays
where steps are recorded and the device had that memory to spare at the worst moment of the run so far, an update among
them: the engine of the first step goes, that of the second may stay. Draws are the same in either case.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lifecycle.model import Decoder
from lifecycle.rollout.engine import Engine

ROOM = 0.9
"""Share of the device's memory that may be in use; what is in pieces too small to use is not counted."""


class KeptEngine:
    """keep: whether it stays; None: where that pays and there is room."""

    def __init__(self, keep: bool | None) -> None:
        self._keep = keep
        self._engine: Engine | None = None
        self._made_for: tuple[Any, ...] = ()
        self._first: tuple[int, int] | None = None

    @contextmanager
    def of(self, model: Decoder, **settings: Any) -> Iterator[Engine]:
        """The engine of the model with these settings (`Engine`), for some calls."""
        device = model.embedding.weight.device
        wanted, stayed = (model, device, settings), self._engine is not None
        if self._engine is None or self._made_for != wanted:
            self._engine, stayed = None, False  # first, so that there are never two
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            self._engine, self._made_for = Engine(model, **settings), wanted
        try:
            yield self._engine
            stays = self._keep
            if stays is None and device.type == "cuda" and self._engine.graphs:
                if self._first is None:
                    torch.cuda.empty_cache()
                    self._first = model.weights_version, torch.cuda.memory_reserved(device) - before
                stays = self._has_room(model, device, stayed=stayed)
        except BaseException:
            stays = False
            raise
        finally:
            if not stays:
                self._engine, self._made_for = None, ()

    def _has_room(self, model: Decoder, device: torch.device, *, stayed: bool) -> bool:
        """Whether the memory was enough so far, an update included, for an engine beside all else."""
        assert self._first is not None
        version, held = self._first
        peak = torch.cuda.max_memory_allocated(device) + (0 if stayed else held)
        return model.weights_version != version and peak <= ROOM * torch.cuda.mem_get_info(device)[1]
