"""A network beside the trained one that no step moves: a reference, a teacher.

It is no submodule of the stage, so neither the optimizer nor a checkpoint sees it: a run that goes on reads it again
from where it came from. It is sharded where the trained network is, and computes with the same kernels and in the same
precision, so that equal weights say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from lifecycle.batch import DataFeed
from lifecycle.model import Decoder, ModelConfig
from lifecycle.stages.setup import Setup


class HeldBeside(Protocol):
    """What a stage holds beside its network and gives to `Stage`, which calls both on every rank."""

    def build(self, mesh: DeviceMesh | None) -> None:
        """With the stage's own network, sharded over `mesh` if there is one."""

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Before the first step and the first validation of a process; the network is on its device."""


class FrozenNetwork:
    """The decoder of `config` with the weights that `read` gives (fp32, by our names). Raises `UserError` where it
    cannot be read."""

    def __init__(self, *, config: ModelConfig, read: Callable[[], Mapping[str, Tensor]], setup: Setup) -> None:
        self._config, self._read, self._setup = config, read, setup
        self._network: Decoder | None = None

    @property
    def network(self) -> Decoder:
        """The network, from `build` on; ask it without gradients."""
        assert self._network is not None
        return self._network

    def build(self, mesh: DeviceMesh | None) -> None:
        """Read the weights, each rank its shards of them where there is a mesh."""
        if self._network is None:
            self._network = self._setup.build_frozen(self._config, mesh, self._read)

    def begin(self, device: torch.device, feed: DataFeed) -> None:
        """Move it to where the stage computes."""
        self.network.to(device)
