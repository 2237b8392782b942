"""Forward passes over whole sequences of any lengths, to score them: those of similar length together, padded.

    for numbers, hidden_BTD in hidden_states(model, [[1, 5, 9], [1, 7]]):
        ...                       # hidden_BTD[0, t] of sequence numbers[0] predicts its token t + 1

Longest first, so that what does not fit in memory shows at once. Shapes: B sequences of a pass, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lifecycle.model.decoder import Decoder

POSITIONS = 16_384
"""Of one forward pass, padding with them."""


@torch.no_grad()
def hidden_states(
    model: Decoder, sequences: Sequence[Sequence[int] | NDArray[np.int32]]
) -> Iterator[tuple[list[int], Tensor]]:
    """The numbers of the sequences of each pass, and (B, T, D) of all tokens but the last; one token has no others.

    T is that of the longest of them, at least 1. Sequences are padded at their end, which no other position sees.
    """
    order = np.argsort([len(ids) for ids in sequences], kind="stable")[::-1].tolist()
    device = model.embedding.weight.device
    while order:
        length = max(1, len(sequences[order[0]]) - 1)
        size = max(1, POSITIONS // length)
        numbers, order = order[:size], order[size:]
        ids = np.zeros((len(numbers), length), np.int64)
        for row, number in enumerate(numbers):
            inputs = sequences[number][:-1]
            ids[row, : len(inputs)] = inputs
        positions_BT = torch.arange(length, device=device).expand(len(numbers), -1)
        hidden_BTD: Tensor = model(torch.from_numpy(ids).to(device), positions_BT)
        yield numbers, hidden_BTD
