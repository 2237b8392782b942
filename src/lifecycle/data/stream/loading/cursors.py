"""The cursors of all ranks as one plain state, and back: what a checkpoint holds of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lifecycle.batch import Cursor
from lifecycle.data.stream.loading.exchange import gather
from lifecycle.data.stream.pieces import State
from lifecycle.errors import UserError


def gathered(cursor: Cursor) -> State:
    """The cursor with the streams of all ranks: every rank must call."""
    mine = {s: with_tensors(state) for s, state in cursor.streams.items()}
    return {
        "step": cursor.step,
        "streams": gather(mine),
        "tail": with_tensors(cursor.tail) if cursor.tail else None,
    }


def cursor_in(state: Mapping[str, Any]) -> Cursor:
    """The inverse of `gathered`. Raises `UserError` for the state of an earlier version."""
    if "tail" not in state:
        raise UserError(
            "the checkpoint was written by an earlier version, which assigned rows to streams in another way: go on "
            "with that version, or start a new run from its weights (stage=midtrain init_from=RUN)"
        )
    return Cursor(step=state["step"], streams={int(s): one for s, one in state["streams"].items()}, tail=state["tail"])


def check_streams(cursor: Cursor | None, streams: int) -> None:
    """Raise `UserError` where a checkpoint has another number of logical streams than the run."""
    known = sorted(cursor.streams) if cursor else []
    if known and known != list(range(streams)):
        raise UserError(
            f"the checkpoint was written with {len(known)} logical streams, this run has {streams}: "
            f"set data.streams={len(known)}"
        )


def states_of(cursor: Cursor | None, mine: range) -> dict[int, State]:
    """The states of this rank's streams, and on rank 0 that of the tail: over all ranks, what the run has read."""
    if cursor is None:
        return {}
    states = {s: dict(cursor.streams[s]) for s in mine if s in cursor.streams}
    return {**states, -1: dict(cursor.tail)} if cursor.tail and 0 in mine else states


def with_tensors(state: Mapping[str, Any]) -> State:
    """A stream's state with its arrays as tensors: a checkpoint holds plain containers and tensors only."""
    anchor = _tensors_in(state["anchor"])
    return {**state, "anchor": {**anchor, "sources": {n: _tensors_in(at) for n, at in anchor["sources"].items()}}}


def _tensors_in(state: Mapping[str, Any]) -> State:
    return {
        key: torch.as_tensor(value, device="cpu") if isinstance(value, np.ndarray) else value
        for key, value in state.items()
    }
