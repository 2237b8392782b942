"""Loss of a chunk of logits, on a CPU, by our own C (terms.c): its parts, and the gradient in place of the logits.

torch makes and reads four arrays of the size of the logits for that; here a row stays in the processor's cache, and its
gradient is written over it. The same bits whatever the number of threads.

Shapes: C tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from lifecycle.batch import IGNORED
from lifecycle.system.native.c_library import library

SOURCE = Path(__file__).with_name("terms.c")
SLOWER = "the loss is computed by torch alone, which takes a twentieth more of a training step"

DTYPES = (torch.float32, torch.bfloat16)


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("C", "V", "half", "differentiate", "dft", "ignored")),
        *((name, ctypes.c_float) for name in ("z_loss", "softcap")),
        *((name, ctypes.c_void_p) for name in ("logits", "labels", "weights", "out")),
    ]


def is_there() -> bool:
    """Whether this machine has it: it needs a C compiler, once."""
    return library(SOURCE, SLOWER) is not None


def terms(
    logits_CV: Tensor,
    labels_C: Tensor,
    weights_C: Tensor | None,
    z_loss: float,
    differentiate: bool,
    dft: bool = False,
    softcap: float | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Summed loss, cross-entropy and penalty, and the logits, which hold the gradient of loss + penalty now.

    Logits in fp32 or bf16, contiguous; labels as of `linear_cross_entropy`.
    """
    C, V = logits_CV.shape
    found = library(SOURCE, SLOWER)
    assert found is not None and logits_CV.dtype in DTYPES and logits_CV.is_contiguous()
    out_3C = torch.empty(3, C, dtype=torch.float32, device=logits_CV.device)
    labels_C = labels_C.long().contiguous()
    weights_C = None if weights_C is None else weights_C.float().contiguous()
    addresses = (None if x is None else x.data_ptr() for x in (logits_CV, labels_C, weights_C, out_3C))
    numbers = (C, V, logits_CV.dtype == torch.bfloat16, differentiate, dft, IGNORED, z_loss, softcap or 0.0)
    if found.terms(ctypes.byref(_Call(*numbers, *addresses)), torch.get_num_threads()):
        raise MemoryError(f"the loss found no memory for {V} logits in each thread")
    loss, nll, penalty = out_3C.sum(1).unbind()
    return (loss, nll, penalty), logits_CV
