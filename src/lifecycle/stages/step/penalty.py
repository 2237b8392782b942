"""Penalties on the weights: terms of a step's loss that depend on no batch, and add their own gradient.

A stage passes one to `Stage`, which prepares or restores it before the first step, adds its gradient once a step after
the backward passes, logs it as `train/<name>`, and saves it in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from lifecycle.batch import DataFeed, TokenBatch
from lifecycle.losses.ewc import add_ewc_gradients, diagonal_fisher


class Penalty(Protocol):
    """A penalty on the weights and its state, such as the weights that it compares them with."""

    name: str

    def begin(self, parameters: Sequence[Tensor], feed: DataFeed) -> None:
        """Prepare it, unless it was restored. Called before the first step of a process, the weights on their
        device."""

    def gradients(self, parameters: Sequence[Tensor]) -> Tensor:
        """Add the gradient of the penalty to that of every parameter; returns the penalty, a scalar."""

    def state(self) -> dict[str, Any] | None:
        """State that cannot be derived later, as plain containers and tensors. None before `begin`."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""


class EwcPenalty:
    """Elastic weight consolidation (`losses.ewc`) towards the weights that the run begins with.

    strength: of the penalty. rows: of the replayed data, on which the Fisher information is estimated by
    `log_likelihood`, the summed log-probability of a batch's trained tokens.
    """

    name = "ewc"

    def __init__(self, *, strength: float, rows: int, log_likelihood: Callable[[TokenBatch], Tensor]) -> None:
        self._strength, self._rows, self._log_likelihood = strength, rows, log_likelihood
        self._anchors: list[Tensor] | None = None
        self._fisher: list[Tensor] = []

    def begin(self, parameters: Sequence[Tensor], feed: DataFeed) -> None:
        """Copy the weights and estimate the Fisher information; a restored state is moved to the weights' device."""
        if self._anchors is None:
            self._fisher = diagonal_fisher(parameters, feed.replayed_rows(self._rows), self._log_likelihood)
            self._anchors = [parameter.detach().clone() for parameter in parameters]
        else:  # it was read before the run had its device
            device = parameters[0].device
            self._anchors, self._fisher = ([t.to(device) for t in part] for part in (self._anchors, self._fisher))

    def gradients(self, parameters: Sequence[Tensor]) -> Tensor:
        """Add the gradient of the penalty to that of every parameter; returns the penalty, a scalar in fp32."""
        assert self._anchors is not None
        return add_ewc_gradients(parameters, self._anchors, self._fisher, strength=self._strength)

    def state(self) -> dict[str, list[Tensor]] | None:
        """The weights at the beginning, and the Fisher information of each."""
        return None if self._anchors is None else {"anchors": self._anchors, "fisher": self._fisher}

    def restore(self, state: Mapping[str, list[Tensor]] | Sequence[list[Tensor]] | None) -> None:
        """Go on from `state`; in checkpoints of older versions both lists, one after the other."""
        if state is not None:
            both = state.values() if isinstance(state, Mapping) else state
            self._anchors, self._fisher = (list(part) for part in both)
