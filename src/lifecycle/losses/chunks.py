"""What losses from hidden states share: the logits of one chunk of tokens exist at a time, and so do their gradients.

    for part in chunks(N, chunk):    logits = hidden[part] @ weight'   ->   gradients.add(part, hidden[part], d logits)

Products run in the autocast dtype where autocast is on, else in that of the hidden states; sums are fp32, or fp64.

Shapes: N tokens, D width, V vocabulary, C tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lifecycle.batch import IGNORED

CPU_CHUNK_BYTES = 16 << 20
"""fp32 logits of one chunk on a CPU: they stay within its last cache."""

DEVICE_CHUNK_BYTES = 1 << 30
"""The same on an accelerator: large enough that products keep it busy and the weight's gradient is visited rarely."""

LEAST_CHUNK_TOKENS = 512
"""Fewer would read the head too often."""


class HeadGradients:
    """Gradients in the hidden states and in the matrix behind them, added up chunk by chunk.

    weight_VD: in the dtype of products. wanted: which of the two. hidden_ND: the first, None where it is not wanted.
    """

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, wanted: tuple[bool, bool]) -> None:
        self.hidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        self._sum_VD = torch.zeros_like(weight_VD, dtype=sum_dtype(weight_VD.dtype)) if wanted[1] else None
        self._head_VD = weight_VD

    def add(self, part: slice, hidden_CD: Tensor, grad_CV: Tensor) -> None:
        """Of the logits of a chunk. hidden_CD, grad_CV: in the dtype of products."""
        if self.hidden_ND is not None:
            self.hidden_ND[part] = grad_CV @ self._head_VD
        if self._sum_VD is None:
            return
        if self._sum_VD.dtype == grad_CV.dtype:
            self._sum_VD.addmm_(grad_CV.T, hidden_CD)
        else:
            self._sum_VD += grad_CV.T @ hidden_CD

    def of_weight(self, dtype: torch.dtype) -> Tensor | None:
        """(V, D) the second, in the dtype of the weight; None where it is not wanted."""
        return None if self._sum_VD is None else self._sum_VD.to(dtype)


def check_tokens(ids_N: Tensor, *, vocab: int, ignored: bool) -> None:
    """Refuse an id outside the vocabulary; `ignored`: -100 is allowed.

    ValueError on a CPU; elsewhere an assertion on the device, which does not synchronise. The look-up itself would not
    refuse: negative ids count from the end in compiled code.
    """
    known_N = (ids_N >= 0) & (ids_N < vocab)
    if ignored:
        known_N |= ids_N == IGNORED
    wanted = f"wanted 0 to {vocab - 1}" + (f", or {IGNORED} for a token that is not trained" if ignored else "")
    if ids_N.device.type != "cpu":
        torch._assert_async(known_N.all(), f"a label names no token; {wanted}")
    elif not known_N.all():
        raise ValueError(f"a label is {int(ids_N[~known_N][0])}; {wanted}")


def chunks(tokens: int, chunk: int) -> Iterator[slice]:
    """Slices of at most `chunk` of `tokens` tokens, of nearly equal length: a short last one would waste a product."""
    pieces = -(-tokens // chunk)
    size = -(-tokens // max(pieces, 1))
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, max(size, 1)))


def default_chunk(labels_N: Tensor, *, vocab: int) -> int:
    """Tokens of a chunk whose logits are small enough for where they are."""
    limit = CPU_CHUNK_BYTES if labels_N.device.type == "cpu" else DEVICE_CHUNK_BYTES
    return max(LEAST_CHUNK_TOKENS, limit // (4 * vocab))


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of products with `hidden`: autocast's where it is on."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def sum_dtype(compute: torch.dtype) -> torch.dtype:
    """The dtype of logarithms and sums."""
    return torch.float64 if compute == torch.float64 else torch.float32
