"""Items as arrays and plain lists: what checkpoints, caches and shards hold of them.

    joined([Example(ids=[0, 5, 1]), Example(ids=[0, 7, 8, 1])], "carry")
        {"carry_ids": [0 5 1 0 7 8 1], "carry_lengths": [3, 4]}

Beside the ids of all sequences, end to end, stand their masks and weights where some sequence has such, and one plain
mapping an item where there is more to say of it than its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch.items import Example, Item, Pair, Prompt

SIDES = 2
"""Sequences of a pair."""

PAIRED = frozenset({"preference", "comparison"})
"""Views whose items are pairs."""


def sequences(item: Item) -> tuple[Example, ...]:
    """The sequences that an item holds: itself, both sides of a pair, or the prompt."""
    if isinstance(item, Example):
        return (item,)
    return (item.chosen, item.rejected) if isinstance(item, Pair) else (Example(ids=item.ids),)


def facts(item: Item) -> dict[str, Any] | None:
    """What an item is beside its tokens, in plain values; None for one that is nothing more."""
    if isinstance(item, Pair):
        return {"kind": "pair", "prompt": len(item.prompt), "margin": item.margin}
    if isinstance(item, Prompt):
        return {"kind": "prompt", "id": item.id, "answer": item.answer, "meta": dict(item.meta)}
    return None if item.wanted is None else {"kind": "unpaired", "wanted": item.wanted}


def made_of(parts: Sequence[Example], known: Mapping[str, Any] | None) -> Item:
    """The item of these sequences and facts: the inverse of `sequences` and `facts`."""
    kind = known["kind"] if known else "example"
    if known is None or kind == "example":
        return parts[0]
    if kind == "pair":
        chosen, rejected = parts
        return Pair(prompt=chosen.ids[: known["prompt"]], chosen=chosen, rejected=rejected, margin=known["margin"])
    if kind == "prompt":
        return Prompt(id=known["id"], ids=parts[0].ids, answer=known["answer"], meta=known["meta"])
    return Example(ids=parts[0].ids, trained=parts[0].trained, weight=parts[0].weight, wanted=known["wanted"])


def trained_of(example: Example) -> NDArray[np.bool_]:
    """(n,) bool: its mask, written out."""
    return np.ones(len(example.ids), np.bool_) if example.trained is None else example.trained


def weight_of(example: Example) -> NDArray[np.float32]:
    """(n,) float32: its weights, written out."""
    return np.ones(len(example.ids), np.float32) if example.weight is None else example.weight


def joined(items: Iterable[Item], name: str) -> dict[str, Any]:
    """Items as few arrays and lists, whose names begin with `name`."""
    listed = list(items)
    parts = [part for item in listed for part in sequences(item)]
    state: dict[str, Any] = {
        f"{name}_ids": np.concatenate([part.ids for part in parts] or [np.zeros(0, np.int32)]),
        f"{name}_lengths": [len(part.ids) for part in parts],
    }
    if any(part.trained is not None for part in parts):
        state[f"{name}_trained"] = np.concatenate([trained_of(part) for part in parts])
    if any(part.weight is not None for part in parts):
        state[f"{name}_weights"] = np.concatenate([weight_of(part) for part in parts])
    known = [facts(item) for item in listed]
    if any(one is not None for one in known):
        state[f"{name}_facts"] = known
    return state


def split(state: Mapping[str, Any], name: str) -> list[Item]:
    """The inverse of `joined`."""
    lengths = state[f"{name}_lengths"]
    if not lengths:
        return []
    ends = np.cumsum(lengths)[:-1]
    parts = iter(_examples(state, name, ends))
    known = state.get(f"{name}_facts")
    if known is None:
        return list(parts)
    return [made_of([next(parts) for _ in range(SIDES if one and one["kind"] == "pair" else 1)], one) for one in known]


def _examples(state: Mapping[str, Any], name: str, ends: NDArray[np.int64]) -> Iterator[Example]:
    ids = np.split(np.asarray(state[f"{name}_ids"]), ends)
    trained = _split(state.get(f"{name}_trained"), ends, len(ids))
    weights = _split(state.get(f"{name}_weights"), ends, len(ids))
    for one, mask, weight in zip(ids, trained, weights, strict=True):
        yield Example(ids=one, trained=mask, weight=weight)


def _split(values: Any, ends: NDArray[np.int64], count: int) -> list[Any]:
    return [None] * count if values is None else np.split(np.asarray(values), ends)
