"""`torch.cuda.graph` as a tape on the CPU: what is called while it records runs again, call by call, at each replay.

As on CUDA, a replay reads what its inputs hold then and writes into the tensors that the recording gave; what the host
did in between is not done again. What a graph cannot hold is refused: reading a tensor on the host, shapes that hang on
content, memory that the host fills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "lift_fresh", "equal"}


class Tape(TorchDispatchMode):
    """Stands for a `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, list[Tensor]]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.replays = 0
        self.shared: Tape = self

    def pool(self) -> Tape:
        return self.shared

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in FORBIDDEN, f"{function} cannot be recorded"
        for argument, given in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((given, given.clone()))
        out = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.calls.append((function, args, kwargs or {}, made))
        return out

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, made in self.calls:
            again = [x for x in tree_leaves(function(*args, **kwargs)) if isinstance(x, Tensor)]
            for old, new in zip(made, again, strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


@contextmanager
def record(tape: Tape, pool: Tape | None = None) -> Iterator[None]:
    tape.shared = tape if pool is None else pool
    with tape:
        yield
    for written, held in reversed(tape.before):  # nothing runs while it is recorded
        written.copy_(held)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Graphs are tapes; what was recorded. The engine goes the ways that it goes on CUDA."""
    made: list[Tape] = []

    def new() -> Tape:
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr("lifecycle.rollout.decoder.fused.fits", lambda model: False)  # C, which no tape hears
    monkeypatch.setattr("lifecycle.rollout.sampling.draw.eager_on_cpu", lambda _: False)
    return made
