"""Samples as packed rows in which the prompt of a group stands once for several of its samples.

    prompt without its last token | last token, sample 1 | last token, sample 2 | ...

Each sample sees the shared part and itself, and its positions go on from there: the numbers are those of separate rows.
The last token of the prompt stands in every sample, for its label, their first token, differs.

How wide a row is, is a matter of cost. A position costs c for its weights and a for each position of its row that
attention looks at; c / a is 6 widths of the model (24 D^2 against 4 D multiplications a layer, with an inner width of
the feed-forward part of 8/3 D). Behind a prompt of P positions m samples of C tokens each cost (P / m + C) (c + a (P +
m C)), which is least at m = sqrt(P (c + a P) / (a C^2)). Rows have other costs too, for samples are whole and rows
equally wide: so widths around that number are tried, and that of the cheapest rows is taken.

Shapes: N samples, T most tokens of one, B rows, W positions of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifecycle.batch import IGNORED, PADDING, WIDTHS, Rollout, TokenBatch, first_fit

WEIGHTS_TO_ATTENTION = 6
"""c / a as a multiple of the model's width."""
TRIED = 12
"""Numbers of samples in a row that are compared, beside whole groups."""


@dataclass(frozen=True, kw_only=True)
class Laid:
    """Rows of samples. order: the number of each sample, row after row. place_of_token: (tokens,) int64, of every
    trained token, in the order of the rows, its place in the flattened (N, T) of the rollout."""

    tokens: TokenBatch
    order: list[int]
    place_of_token: Tensor


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Samples of one prompt that stand side by side."""

    samples: list[int]
    prompt: list[int]
    size: int


def laid(
    rollout: Rollout,
    trained_NT: Tensor,
    source_N: Sequence[int],
    *,
    width: int,
    shared: bool,
) -> Laid:
    """The samples of a rollout that have a token to train on, in rows of at most `width` positions, which hold every
    one of them. trained_NT: bool. shared: whether samples of one prompt, which follow on one another, share it."""
    chunks, rows, used = _plan(rollout, trained_NT.any(1).tolist(), width, shared=shared)
    shape = (max(len(rows), 1), min(_rounded(used), max(width, used)))
    made = {name: np.full(shape, fill, dtype=np.int64) for name, fill in PADDING.items()}
    order, ids, trained = list[int](), rollout.token_ids.numpy(), trained_NT.numpy()
    for number, row in enumerate(rows):
        at, document = 0, 1
        for place, i in enumerate(row, start=1):
            room = {name: array[number, at:] for name, array in made.items()}
            _write(room, chunks[i], rollout.length.tolist(), ids, trained, source_N, document=document, place=place)
            at, document = at + chunks[i].size, document + len(chunks[i].samples)
            order += chunks[i].samples
    T = trained.shape[1]
    places = [np.flatnonzero(trained[n]) + n * T for n in order]
    tensors = {name: torch.from_numpy(array) for name, array in made.items()}
    if not any(len(chunk.samples) > 1 for chunk in chunks):
        del tensors["shared"]
    flat = np.concatenate(places) if places else np.zeros(0, np.int64)
    return Laid(tokens=TokenBatch.of(tensors), order=order, place_of_token=torch.from_numpy(flat))


def row_width(rollout: Rollout, wanted: Sequence[bool], *, shared: bool, width: int, most: int) -> int:
    """Positions of a row: those with which the wanted samples cost least, as many as the longest of them needs at
    least, `most` otherwise. width: of the model."""
    sizes = [(len(rollout.prompts[n]) - 1, int(rollout.length[n])) for n in range(len(rollout)) if wanted[n]]
    if not sizes:
        return most
    longest, (P, C) = max(map(sum, sizes)), np.array(sizes, dtype=np.float64).mean(0)
    prompts = len({int(rollout.prompt_id[n]) for n in range(len(rollout)) if wanted[n]}) if shared else len(sizes)
    group = len(sizes) / prompts
    cheapest = math.sqrt(P * (WEIGHTS_TO_ATTENTION * width + P)) / C
    numbers = {*np.linspace(1, max(2 * cheapest, 2), TRIED).round(), *(group * np.array([0.5, 1, 2, 3, 4])).round()}
    wide = (math.ceil(P * math.ceil(m / group) + m * C) for m in numbers)
    tried = {max(min(_rounded(one), most), longest) for one in wide}

    def cost(one: int) -> int:
        _, rows, used = _plan(rollout, wanted, one, shared=shared)
        return len(rows) * _rounded(used) * (WEIGHTS_TO_ATTENTION * width + _rounded(used))

    return min(sorted(tried), key=cost)


def _plan(
    rollout: Rollout, wanted: Sequence[bool], width: int, *, shared: bool
) -> tuple[list[_Chunk], list[list[int]], int]:
    """Chunks of samples, their numbers by row, and the positions of the fullest row."""
    chunks = _chunks(rollout, wanted, width, shared=shared)
    rows = first_fit([chunk.size for chunk in chunks], width)
    return chunks, rows, max((sum(chunks[i].size for i in row) for row in rows), default=1)


def _rounded(positions: int) -> int:
    """Up to one of few widths."""
    return -(-positions // WIDTHS) * WIDTHS


def _chunks(rollout: Rollout, wanted: Sequence[bool], width: int, *, shared: bool) -> list[_Chunk]:
    lengths, out = rollout.length.tolist(), list[_Chunk]()
    for n, prompt in enumerate(rollout.prompts):
        if not wanted[n]:
            continue
        last, length = out[-1] if out else None, lengths[n]
        goes_on = shared and last is not None and rollout.prompt_id[last.samples[-1]] == rollout.prompt_id[n]
        if goes_on and last is not None and last.size + length <= width:
            out[-1] = _Chunk([*last.samples, n], last.prompt, last.size + length)
        else:
            out.append(_Chunk([n], prompt, len(prompt) - 1 + length))
    return out


def _write(
    room: dict[str, NDArray[np.int64]],
    chunk: _Chunk,
    lengths: Sequence[int],
    ids: NDArray[np.int64],
    trained: NDArray[np.bool_],
    source_N: Sequence[int],
    *,
    document: int,
    place: int,
) -> None:
    """At the beginning of `room`. document: number of its first sample in the row; place: of the prompt."""
    P, several = len(chunk.prompt) - 1, len(chunk.samples) > 1
    room["input_ids"][:P], room["position_ids"][:P] = chunk.prompt[:P], np.arange(P)
    room["document_ids"][:P], room["source_ids"][:P] = document, source_N[chunk.samples[0]]
    room["shared"][:P] = place if several else 0
    at = P
    for number, n in enumerate(chunk.samples, start=document):
        C = lengths[n]
        part = slice(at, at + C)
        room["input_ids"][part] = [chunk.prompt[P], *ids[n, : C - 1]]
        room["labels"][part] = np.where(trained[n, :C], ids[n, :C], IGNORED)
        room["position_ids"][part] = np.arange(P, P + C)
        room["document_ids"][part], room["source_ids"][part] = number, source_N[n]
        room["shared"][part] = -place if several else 0
        at += C
