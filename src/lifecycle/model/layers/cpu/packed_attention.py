"""Attention of packed rows on a CPU by our own C (packed_attention.c), forward and backward.

torch's kernel computes the products of a masked key like any others. In a row of many documents, or of many answers to
one prompt, most keys are masked; here tiles of 64 x 64 that nobody sees are passed over, and what is left is multiplied
at the processor's full rate. One operator of torch, so compiled code calls it as plain code does, and an autograd
formula beside it:

    out_BTHK = packed_attention(q_BTHK, k_BTGK, v_BTGK, mask_BTT, K**-0.5)      # mask None: all earlier positions

The same bits whatever the number of threads.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifecycle.system.native.c_library import library

SOURCE = Path(__file__).with_name("packed_attention.c")
SLOWER = "attention is computed by torch alone, which takes up to four times as long on packed rows"

DTYPES = (torch.float32, torch.bfloat16)


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("B", "T", "H", "G", "K", "V", "half", "mask_rows")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "mask", "out", "log_sums")),
        *((name, ctypes.c_void_p) for name in ("d_out", "d_q", "d_k", "d_v")),
    ]


_found: bool | None = None


def is_there() -> bool:
    """Whether this machine has it: it needs a C compiler, once. Compiled code reads what was found before."""
    global _found
    if _found is None:
        _found = library(SOURCE, SLOWER) is not None
    return _found


def packed_attention(q_BTHK: Tensor, k_BTGK: Tensor, v_BTGV: Tensor, mask_BTT: Tensor | None, scale: float) -> Tensor:
    """softmax(scale q k') v over what the mask shows -> (B, T, H, V), on a CPU, in fp32 or bf16.

    mask_BTT: bool, (1, T, T) for all rows or (B, T, T), true where a query (row) sees a key; each query sees one at
    least. None: all positions up to its own. H is a multiple of G; query head h reads key-value head h // (H / G).
    Differentiable once in q, k and v.
    """
    out: Tensor = _forward(q_BTHK, k_BTGK, v_BTGV, mask_BTT, scale)[0]
    return out


@torch.library.custom_op("lifecycle::packed_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """The attention, and (B, H, T) the logarithm of what the softmax divides by."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, log_sums = _empty(q, v)
    _run("forward", q, k, v, mask, scale, out, log_sums)
    return out, log_sums


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    return _empty(q, v)


@torch.library.custom_op("lifecycle::packed_attention_gradient", mutates_args=())
def _backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_out, q, k, v = d_out.contiguous(), q.contiguous(), k.contiguous(), v.contiguous()
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _run("backward", q, k, v, mask, scale, out, log_sums, d_out, *gradients)
    return gradients


@_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, scale = inputs
    ctx.save_for_backward(q, k, v, mask, *output)
    ctx.scale = scale


def _gradient(ctx: Any, d_out: Tensor, d_log_sums: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, mask, out, log_sums = ctx.saved_tensors
    return (*_backward(d_out, q, k, v, mask, ctx.scale, out, log_sums), None, None)


_forward.register_autograd(_gradient, setup_context=_keep)


def _empty(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    (B, T, H, _), V = q.shape, v.shape[-1]
    return q.new_empty(B, T, H, V), q.new_empty(B, H, T, dtype=torch.float32)


def _run(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *others: Tensor) -> None:
    """Call the C function of this name; what it writes are the last of its arrays."""
    (B, T, H, K), (G, V) = q.shape, v.shape[2:]
    mask = None if mask is None else mask.contiguous()
    addresses = (None if x is None else x.data_ptr() for x in (q, k, v, mask, *others))
    rows = 0 if mask is None else len(mask)
    call = _Call(B, T, H, G, K, V, q.dtype == torch.bfloat16, rows, scale, *addresses)
    found = library(SOURCE, SLOWER)
    assert found is not None and q.dtype == k.dtype == v.dtype and q.dtype in DTYPES
    assert mask is None or (mask.dtype == torch.bool and mask.shape in ((1, T, T), (B, T, T)))
    if getattr(found, name)(ctypes.byref(call), torch.get_num_threads()):
        raise MemoryError(f"attention found no memory for {T} positions")
