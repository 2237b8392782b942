"""A micro-batch on the device that computes on it."""

from __future__ import annotations

import torch

from lifecycle.batch import Micro
from lifecycle.model import DocumentMask, count_pieces
from lifecycle.model.layers.attention import Kernel


def on_device(
    batch: Micro, device: torch.device, *, kernel: Kernel, compiled: bool
) -> tuple[Micro, DocumentMask | None]:
    """The batch, and which positions of its packed rows see each other.

    None stands for rows of one document each, and for none at all; compiled code always gets the mask, or it would be
    compiled twice.
    """
    packed, moved = batch.packed, batch.to(device, non_blocking=True)
    if packed is None or moved.packed is None or (packed.single and not compiled):
        return moved, None
    pieces = count_pieces(packed.document_ids)  # here on the CPU, where counting waits for nothing
    ids, shared = moved.packed.document_ids, moved.packed.shared
    documents = DocumentMask.from_ids(ids, kernel=kernel, pieces=pieces, shared_BT=shared)
    return moved, documents
