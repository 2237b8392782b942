"""The draw of draw.py in one kernel a row (gpu/draw_kernel.py), where Triton can compile it: on a CUDA device.

One operator of torch, so that compiled code calls it as plain code does.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.row_sets import FEW, RowSets

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of logits that the kernel takes; fp64 goes the plain way."""

BLOCK, WARPS = 4096, 8
"""Logits of a row that a program looks at together, and its warps: the fastest for one row on an H200."""


def takes(logits_RV: Tensor, settings: DeviceSampling) -> bool:
    """Whether these are drawn from by the kernel."""
    return settings.has_kernels and logits_RV.dtype in DTYPES


def fused_draw(
    logits_RV: Tensor, uniforms_R: Tensor, settings: DeviceSampling, *, seen_RV: Tensor | None, sets: bool
) -> tuple[Tensor, Tensor, RowSets | None]:
    """Ids (R,) int64; (3, R) fp32 log-probability, untruncated log-probability and entropy; what was drawn from, None
    without `sets` or truncation. See `draw.Drawn`."""
    form = settings.form
    forms = [form.greedy, form.width is not None, form.top_p, form.min_p]
    seen_RV = seen_RV if form.penalised else None
    numbers, banned_V = settings.numbers, settings.banned_V
    sets = sets and form.truncates
    ids_R, facts_3R, *kept = _draw(logits_RV, uniforms_R, numbers, seen_RV, banned_V, forms, sets)
    return ids_R, facts_3R, RowSets(kept[0], kept[1], kept[2], logits_RV.shape[1]) if sets else None


@torch.library.custom_op("lifecycle::fused_uniforms", mutates_args=())
def fused_uniforms(seeds: Tensor, numbers: Tensor) -> Tensor:
    """`parameters.uniforms` in one kernel."""
    from lifecycle.rollout.sampling.gpu.step_kernels import ROWS, uniform_kernel

    out, R = torch.empty(seeds.shape, dtype=torch.float64, device=seeds.device), len(seeds)
    with torch.cuda.device_of(seeds):
        uniform_kernel[(-(-R // ROWS),)](seeds.contiguous(), numbers.contiguous(), out, R, ROWS=ROWS)
    return out


@fused_uniforms.register_fake
def _(seeds: Tensor, numbers: Tensor) -> Tensor:
    return torch.empty(seeds.shape, dtype=torch.float64, device=seeds.device)


@torch.library.custom_op("lifecycle::fused_draw", mutates_args=())
def _draw(
    logits: Tensor,
    uniforms: Tensor,
    settings: Tensor,
    seen: Tensor | None,
    banned: Tensor | None,
    forms: list[bool],
    sets: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from lifecycle.rollout.sampling.gpu.draw_kernel import draw_rows

    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    R, V = logits.shape
    made = _results(logits, sets)
    greedy, top_k, top_p, min_p = forms
    scratch = torch.empty(R, 1 + 2 * FEW, dtype=torch.int32, device=logits.device)
    seen = None if seen is None else seen.contiguous()
    given = [logits, *(logits if x is None else x.view(torch.uint8) for x in (seen, banned)), uniforms.contiguous()]
    with torch.cuda.device_of(logits):
        draw_rows[(R,)](
            *given,
            settings,
            scratch,
            *made,
            logits.stride(0),
            0 if seen is None else seen.stride(0),
            V=V,
            GREEDY=greedy,
            TOP_K=top_k,
            TOP_P=top_p,
            MIN_P=min_p,
            PENALISED=seen is not None,
            BANS=banned is not None,
            SETS=sets,
            BLOCK=BLOCK,
            BLOCKS=max(16, 1 << (-(-V // BLOCK) - 1).bit_length()),
            num_warps=WARPS,
        )
    return made


@_draw.register_fake
def _(
    logits: Tensor,
    uniforms: Tensor,
    settings: Tensor,
    seen: Tensor | None,
    banned: Tensor | None,
    forms: list[bool],
    sets: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _results(logits, sets)


def _results(logits: Tensor, sets: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Tensors for ids, facts and sets."""
    (R, V), device = logits.shape, logits.device
    rows = R if sets else 0
    return (
        torch.empty(R, dtype=torch.long, device=device),
        torch.empty(3, R, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.long, device=device),
        torch.empty(rows, FEW, dtype=torch.int32, device=device),
        torch.empty(rows, -(-V // 32), dtype=torch.int32, device=device),
    )
