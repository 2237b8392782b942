"""Causal attention inside documents: one function over four kernels that give the same answer.

    kernel = best_kernel(device, torch.bfloat16)                           # once a run
    documents = DocumentMask.from_ids(batch.document_ids, kernel=kernel)      # once a micro-batch, not in compiled code
    out_BTHK = attention(q_BTHK, k_BTGK, v_BTGK, documents)                # None: each sequence is one document

`flash` (the flash-attn package), `cudnn` (NVIDIA's, see gpu/cudnn_attention.py) and `varlen` (torch's own) take the
documents as a list of boundaries and run on CUDA; `sdpa` takes them as a mask and runs everywhere. `cached_attention`
is the same for tokens whose earlier keys stand in a cache. A sliding window w lets a position see itself and the w - 1
before it (arXiv 2004.05150, section 3.1).

Shapes: B sequences, T positions, N = B * T, H query heads, G key-value heads, K width of a head, S slots for
boundaries, L positions of a cache.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.errors import UserError
from lifecycle.model.layers.cpu import packed_attention
from lifecycle.model.layers.gpu import cudnn_attention

Kernel = Literal["sdpa", "varlen", "flash", "cudnn"]

LEAST_SLOTS = 64
"""Boundaries are padded to a power of two from here up, so that compiled code sees few shapes."""


@dataclass(frozen=True, kw_only=True)
class DocumentMask:
    """Which positions may attend to each other, in the form that one kernel takes; the other form is None.

    mask_B1TT: bool, for sdpa. starts_S: first positions of the documents, for the boundary kernels (see `_starts`).
    window: how many positions each attends to, itself included; a mask includes it. tells_groups: whether the kernel
    has to be told that several query heads share a key-value head; stored, because compiled code cannot look it up.
    """

    kernel: Kernel
    mask_B1TT: Tensor | None = None
    starts_S: Tensor | None = None
    window: int | None = None
    tells_groups: bool = False

    @staticmethod
    def from_ids(
        document_ids_BT: Tensor,
        *,
        kernel: Kernel,
        pieces: int | None = None,
        shared_BT: Tensor | None = None,
    ) -> DocumentMask:
        """From the document number of every position (B, T); neighbours with equal numbers are one document, and so is
        padding. shared_BT: prompts that several documents begin with (`TokenBatch.shared`), for sdpa alone.

        pieces: `count_pieces(document_ids_BT)`, or more, counted on the host; without it the boundary kernels count
        here, which synchronises once on CUDA.
        """
        if kernel == "sdpa":
            T = document_ids_BT.shape[1]
            same = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
            if shared_BT is not None:  # those who follow prompt k see the positions of prompt k
                same = same | (shared_BT[:, :, None] == -shared_BT[:, None, :]) & (shared_BT[:, None, :] > 0)
            return DocumentMask(kernel=kernel, mask_B1TT=(same & lower_triangle(T, same.device))[:, None])
        tells = kernel in ("varlen", "cudnn") and varlen_is_told_groups()  # the former stands in for the latter
        return DocumentMask(kernel=kernel, starts_S=_starts(document_ids_BT, pieces), tells_groups=tells)

    def to(self, device: torch.device, non_blocking: bool = False) -> DocumentMask:
        """The same on `device`."""
        mask, starts = self.mask_B1TT, self.starts_S
        return replace(
            self,
            mask_B1TT=None if mask is None else mask.to(device, non_blocking=non_blocking),
            starts_S=None if starts is None else starts.to(device, non_blocking=non_blocking),
        )


def best_kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    """In half precision on CUDA: cuDNN's where it is installed and the fastest, else flash-attn if that is installed,
    else torch's variable-length kernel. SDPA elsewhere."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    if cudnn_attention.is_best(device):
        return "cudnn"
    if importlib.util.find_spec("flash_attn") is not None:
        return "flash"
    return "varlen" if importlib.util.find_spec("torch.nn.attention.varlen") is not None else "sdpa"


@cache
def varlen_is_told_groups() -> bool:
    """Whether torch's variable-length kernel asks to be told of shared key-value heads; 2.11's shares them untold."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def check_kernel(kernel: Kernel, device: torch.device) -> None:
    """Refuse a kernel that cannot run here. Errors: `UserError`."""
    if kernel == "sdpa":
        return
    package = {"flash": "flash_attn", "cudnn": "cudnn", "varlen": "torch.nn.attention.varlen"}[kernel]
    if device.type != "cuda":
        raise UserError(f"hardware.attention is {kernel}, which runs on CUDA only, not on {device.type}; choose sdpa")
    if importlib.util.find_spec(package) is None:
        raise UserError(f"hardware.attention is {kernel}, but {package} is not installed; install it or choose auto")


def count_pieces(document_ids_BT: Tensor) -> int:
    """The number of runs of equal document numbers in all sequences together, padding included; (B, T) on the CPU."""
    B, T = document_ids_BT.shape
    return int((document_ids_BT[:, 1:] != document_ids_BT[:, :-1]).sum()) + (B if T else 0)


def lower_triangle(T: int, device: torch.device, *, shift: int = 0) -> Tensor:
    """(T, T) bool, true where the key (column) stands `shift` or more positions before the query (row)."""
    positions = torch.arange(T, device=device)
    return positions[:, None] - shift >= positions[None, :]


def slide(documents: DocumentMask | None, window: int, T: int, device: torch.device) -> DocumentMask | None:
    """The mask with a sliding window of `window` positions, for T positions; made once a forward pass, not a layer."""
    if window >= T:
        return documents
    if documents is not None and documents.mask_B1TT is None:
        return replace(documents, window=window)
    near = lower_triangle(T, device) & ~lower_triangle(T, device, shift=window)
    mask = near[None, None] if documents is None else documents.mask_B1TT & near  # type: ignore[operator]
    return DocumentMask(kernel="sdpa", mask_B1TT=mask, window=window)


def attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, documents: DocumentMask | None, *, scale: float | None = None
) -> Tensor:
    """softmax(scale q k') v over the earlier positions of the same document -> (B, T, H, K); scale None: K^(-1/2).

    H must be a multiple of G; query head h reads key-value head h // (H / G). None means that every sequence is one
    document, in which case plain causal attention is enough.
    """
    if documents is None or documents.kernel == "sdpa":
        return _sdpa(q_BTHK, k_BTGK, v_BTGK, documents, scale)
    kernel = {"flash": _flash, "cudnn": _cudnn, "varlen": _varlen}[documents.kernel]
    flat = (x.flatten(0, 1) for x in (q_BTHK, k_BTGK, v_BTGK))
    return kernel(*flat, documents=documents, longest=q_BTHK.shape[1], scale=scale).reshape(q_BTHK.shape)


def cached_attention(
    q_BTHK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, mask_B1TL: Tensor, *, scale: float | None = None
) -> Tensor:
    """softmax(scale q k') v over the slots of a cache that `mask_B1TL` shows -> (B, T, H, K); mask: see `CallSlots`."""
    B, T, H, K = q_BTHK.shape
    G = k_BGLK.shape[1]
    mask = mask_B1TL if mask_B1TL.dtype == torch.bool else mask_B1TL.to(q_BTHK.dtype)  # latents may be held wider
    if T == 1:  # the heads of a group are queries of one head: nothing is repeated, and keys are read once
        q = q_BTHK.reshape(B, G, H // G, K)
        if q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64):
            return _one_query(q, k_BGLK, v_BGLK, mask, scale).reshape(B, 1, H, K)
        # reshape: kernels lay their results out differently, some with the heads behind the queries
        return F.scaled_dot_product_attention(q, k_BGLK, v_BGLK, attn_mask=mask, scale=scale).reshape(B, 1, H, K)
    out = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2), k_BGLK, v_BGLK, attn_mask=mask, scale=scale, enable_gqa=G != H
    )
    return out.transpose(1, 2)


def _one_query(q_BGrK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, added_B11L: Tensor, scale: float | None) -> Tensor:
    """The same as plain products: for so few queries the set-up of the CPU's kernel takes longer than its products."""
    B, G, _, K = q_BGrK.shape
    q, k, v = (x.flatten(0, 1) for x in (q_BGrK, k_BGLK, v_BGLK))
    added = added_B11L.expand(B, G, 1, -1).flatten(0, 1)
    scores = torch.baddbmm(added, q, k.transpose(1, 2), alpha=K**-0.5 if scale is None else scale)
    return torch.bmm(scores.softmax(-1), v).view(q_BGrK.shape)


def _starts(document_ids_BT: Tensor, pieces: int | None) -> Tensor:
    """First position of every piece in the flattened rows, int32, filled up with N (empty pieces).

    The longest piece is not computed: T bounds it, and a constant keeps compiled code from recompiling.
    """
    B, T = document_ids_BT.shape
    pieces = count_pieces(document_ids_BT) if pieces is None else pieces
    slots = max(LEAST_SLOTS, 1 << pieces.bit_length())
    first = torch.ones_like(document_ids_BT, dtype=torch.bool)
    first[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    positions = torch.arange(B * T, device=document_ids_BT.device)
    # a sort instead of nonzero(), whose result has a size that the host would have to read
    ordered = torch.where(first.flatten(), positions, B * T).sort().values[:slots]
    return F.pad(ordered, (0, slots + 1 - len(ordered)), value=B * T).to(torch.int32)


def _sdpa(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, documents: DocumentMask | None, scale: float | None
) -> Tensor:
    mask_B1TT = None if documents is None else documents.mask_B1TT
    if q_BTHK.device.type == "cpu":
        q_BTHK, k_BTGK, v_BTGK = _as_autocast((q_BTHK, k_BTGK, v_BTGK))
        if q_BTHK.dtype in packed_attention.DTYPES and packed_attention.is_there():
            mask_BTT = None if mask_B1TT is None else mask_B1TT[:, 0]
            scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
            return packed_attention.packed_attention(q_BTHK, k_BTGK, v_BTGK, mask_BTT, scale)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BTGK, v_BTGK))
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if q.device.type == "cpu":
        window = None if documents is None else documents.window
        out = _sdpa_in_blocks(q, k, v, mask_B1TT, window, options)
    elif mask_B1TT is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TT, **options)
    return out.transpose(1, 2)


def _as_autocast(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Queries, keys and values in one dtype: autocast's, where it is on (norms of queries and keys leave fp32)."""
    if not torch.is_autocast_enabled("cpu"):
        return parts
    return [part.to(torch.get_autocast_dtype("cpu")) for part in parts]


def _sdpa_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, mask_B1TT: Tensor | None, window: int | None, options: dict[str, Any]
) -> Tensor:
    """torch's kernel for a CPU computes masked products too, so cut the queries: those of a block need no key after
    `stop`, nor one before the first one's window."""
    T = q.shape[2]
    block = 256 if T <= 1024 else 512
    if mask_B1TT is None and (T <= block or T > 1024):  # in long sequences the kernel leaves out enough itself
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, **options)
    mask = lower_triangle(T, q.device)[None, None] if mask_B1TT is None else mask_B1TT
    parts = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if window is None else max(start - window + 1, 0)
        seen = mask[:, :, start:stop, first:stop]
        parts.append(
            F.scaled_dot_product_attention(
                q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], attn_mask=seen, **options
            )
        )
    return torch.cat(parts, dim=2)


def _varlen(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, *, documents: DocumentMask, longest: int, scale: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    starts_S, grouped = documents.starts_S, q_NHK.shape[1] != k_NGK.shape[1]
    assert starts_S is not None
    options: dict[str, Any] = {"scale": scale, "window_size": (_left(documents), 0)}  # the default looks both ways
    if grouped and documents.tells_groups:
        options["enable_gqa"] = True
    out = varlen_attn(*(q_NHK, k_NGK, v_NGK, starts_S, starts_S, longest, longest), **options)
    assert isinstance(out, Tensor)  # a pair only if the log-sums are asked for
    return out


def _flash(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, *, documents: DocumentMask, longest: int, scale: float | None
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    starts_S = documents.starts_S
    bounds = dict(cu_seqlens_q=starts_S, cu_seqlens_k=starts_S, max_seqlen_q=longest, max_seqlen_k=longest)
    window = (_left(documents), 0)
    out: Tensor = flash_attn_varlen_func(
        q_NHK, k_NGK, v_NGK, causal=True, softmax_scale=scale, window_size=window, **bounds
    )
    return out


def _cudnn(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, *, documents: DocumentMask, longest: int, scale: float | None
) -> Tensor:
    if documents.window is not None or not cudnn_attention.takes(q_NHK):
        return _varlen(q_NHK, k_NGK, v_NGK, documents=documents, longest=longest, scale=scale)
    assert documents.starts_S is not None
    return cudnn_attention.cudnn_attention(q_NHK, k_NGK, v_NGK, documents.starts_S, longest, scale)


def _left(documents: DocumentMask) -> int:
    """Positions before its own that a query sees, in the kernels' terms: -1 is all."""
    return -1 if documents.window is None else documents.window - 1
