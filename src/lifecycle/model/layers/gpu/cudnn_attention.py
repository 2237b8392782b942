"""Causal attention inside documents by NVIDIA's cuDNN, through its Python package (`nvidia-cudnn-frontend`).

Its kernels take the documents as lengths and offsets ("ragged" tensors). A graph of cuDNN is built once for each shape
and kept: torch's own call of cuDNN for such tensors builds one at every call.

Shapes: N tokens of all documents, S documents (boundaries are S + 1), H query heads, G key-value heads, K width.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HOPPER = 9
"""First generation on which cuDNN's kernels were measured to be the fastest."""

WIDEST = 128
"""Of a head, in the backward pass."""

INT32 = 2**31
"""Offsets into queries are counted in numbers, by 32 bits."""

DTYPES = (torch.bfloat16, torch.float16)


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("cudnn") is not None


@functools.cache
def is_best(device: torch.device) -> bool:
    """Whether it is there, on a GPU for which it is the fastest kernel."""
    return is_installed() and torch.cuda.get_device_capability(device)[0] >= HOPPER


def takes(q_NHK: Tensor) -> bool:
    """Whether it can attend with queries like these."""
    K = q_NHK.shape[-1]
    return q_NHK.dtype in DTYPES and K <= WIDEST and K % 8 == 0 and q_NHK.numel() < INT32


def cudnn_attention(
    q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, starts_S: Tensor, longest: int, scale: float | None
) -> Tensor:
    """softmax(scale q k') v over the earlier tokens of the same document -> (N, H, K). starts_S: int32, the first token
    of each document, and N; longest: no document has more tokens. Differentiable once."""
    scale = q_NHK.shape[-1] ** -0.5 if scale is None else scale
    out: Tensor = _forward(q_NHK, k_NGK, v_NGK, starts_S, longest, scale)[0]
    return out


@torch.library.custom_op("lifecycle::cudnn_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> tuple[Tensor, Tensor]:
    """The attention, and (N, H) the logarithm of what the softmax divides by."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, log_sums = _empty(q)
    graph = _graph(_Shape.of(q, k, starts, longest, scale), False)
    graph.run({"q": q, "k": k, "v": v, "out": out, "log_sums": log_sums}, starts)
    return out, log_sums


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float) -> tuple[Tensor, Tensor]:
    return _empty(q)


@torch.library.custom_op("lifecycle::cudnn_attention_gradient", mutates_args=())
def _backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    out: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    given = {"q": q, "k": k, "v": v, "out": out, "d_out": d_out}
    given = {name: x.contiguous() for name, x in given.items()}
    d_q, d_k, d_v = (x.new_empty(x.shape) for x in (q, k, v))
    graph = _graph(_Shape.of(q, k, starts, longest, scale), True)
    graph.run({**given, "log_sums": log_sums, "d_q": d_q, "d_k": d_k, "d_v": d_v}, starts)
    return d_q, d_k, d_v


@_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    out: Tensor,
    log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.longest, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def _gradient(ctx: Any, d_out: Tensor, d_log_sums: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, starts, out, log_sums = ctx.saved_tensors
    return (*_backward(d_out, q, k, v, starts, ctx.longest, ctx.scale, out, log_sums), None, None, None)


_forward.register_autograd(_gradient, setup_context=_keep)


def _empty(q: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What a graph of cuDNN is built for."""

    documents: int
    tokens: int
    longest: int
    heads: int
    kv_heads: int
    width: int
    scale: float
    half: torch.dtype
    device: torch.device

    @staticmethod
    def of(q: Tensor, k: Tensor, starts: Tensor, longest: int, scale: float) -> _Shape:
        N, H, K = q.shape
        sizes = {"documents": len(starts) - 1, "tokens": N, "longest": longest, "heads": H, "kv_heads": k.shape[1]}
        return _Shape(**sizes, width=K, scale=scale, half=q.dtype, device=q.device)


class _Graph:
    """One graph of cuDNN, forward or backward, with names for its tensors."""

    def __init__(self, shape: _Shape, *, backward: bool) -> None:
        import cudnn

        self._shape, self._cudnn, kinds = shape, cudnn, cudnn.data_type
        self._half = kinds.BFLOAT16 if shape.half == torch.bfloat16 else kinds.HALF
        self._handle = cudnn.create_handle()
        self._graph = cudnn.pygraph(
            io_data_type=self._half,
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self._handle,
        )
        self._named: dict[str, Any] = {}
        for name, extra in (("q_offsets", 1), ("k_offsets", 1), ("row_offsets", 1), ("lengths", 0), ("k_lengths", 0)):
            dim = [shape.documents + extra, 1, 1, 1]
            self._named[name] = self._graph.tensor(name=name, dim=dim, stride=[1, 1, 1, 1], data_type=kinds.INT32)
        (self._backward if backward else self._forward)()
        self._graph.validate()
        self._graph.build_operation_graph()
        self._graph.create_execution_plans([cudnn.heur_mode.A])
        self._graph.check_support()
        self._graph.build_plans()

    def _layout(self, heads: int) -> tuple[list[int], list[int]]:
        """Of a ragged tensor (N, heads, K), as cuDNN counts: documents, heads, tokens, width."""
        T, K = self._shape.longest, self._shape.width
        return [self._shape.documents, heads, T, K], [T * heads * K, K, heads * K, 1]

    def _given(self, name: str, heads: int, offsets: str) -> Any:
        dim, stride = self._layout(heads)
        tensor = self._graph.tensor(name=name, dim=dim, stride=stride, data_type=self._half)
        tensor.set_ragged_offset(self._named[offsets])
        self._named[name] = tensor
        return tensor

    def _result(self, name: str, tensor: Any, heads: int, offsets: str) -> None:
        dim, stride = self._layout(heads)
        tensor.set_output(True).set_dim(dim).set_stride(stride).set_data_type(self._half)
        tensor.set_ragged_offset(self._named[offsets])
        self._named[name] = tensor

    def _log_sums_layout(self) -> tuple[list[int], list[int]]:
        T, H = self._shape.longest, self._shape.heads
        return [self._shape.documents, H, T, 1], [T * H, 1, H, 1]

    def _options(self) -> dict[str, Any]:
        return {
            "attn_scale": self._shape.scale,
            "use_padding_mask": True,
            "seq_len_q": self._named["lengths"],
            "seq_len_kv": self._named["k_lengths"],
            "use_causal_mask": True,
        }

    def _inputs(self) -> dict[str, Any]:
        H, G = self._shape.heads, self._shape.kv_heads
        kinds = (("q", H, "q_offsets"), ("k", G, "k_offsets"), ("v", G, "k_offsets"))
        return {name: self._given(name, heads, offsets) for name, heads, offsets in kinds}

    def _forward(self) -> None:
        out, log_sums = self._graph.sdpa(name="forward", **self._inputs(), generate_stats=True, **self._options())
        self._result("out", out, self._shape.heads, "q_offsets")
        dim, stride = self._log_sums_layout()
        log_sums.set_output(True).set_dim(dim).set_stride(stride).set_data_type(self._cudnn.data_type.FLOAT)
        log_sums.set_ragged_offset(self._named["row_offsets"])
        self._named["log_sums"] = log_sums

    def _backward(self) -> None:
        H, G, tokens = self._shape.heads, self._shape.kv_heads, self._shape.tokens
        inputs = self._inputs()
        out, d_out = (self._given(name, H, "q_offsets") for name in ("out", "d_out"))
        dim, stride = self._log_sums_layout()
        stats = self._graph.tensor(name="log_sums", dim=dim, stride=stride, data_type=self._cudnn.data_type.FLOAT)
        stats.set_ragged_offset(self._named["row_offsets"])
        self._named["log_sums"] = stats
        most = {"max_total_seq_len_q": tokens, "max_total_seq_len_kv": tokens}
        d_q, d_k, d_v = self._graph.sdpa_backward(
            name="backward", **inputs, o=out, dO=d_out, stats=stats, **most, **self._options()
        )
        for name, tensor, heads in (("d_q", d_q, H), ("d_k", d_k, G), ("d_v", d_v, G)):
            self._result(name, tensor, heads, "q_offsets" if name == "d_q" else "k_offsets")

    def run(self, tensors: dict[str, Tensor], starts_S: Tensor) -> None:
        """On the current stream."""
        shape, lengths = self._shape, starts_S.diff()
        by_name = {
            **tensors,
            "q_offsets": starts_S * (shape.heads * shape.width),
            "k_offsets": starts_S * (shape.kv_heads * shape.width),
            "row_offsets": starts_S * shape.heads,
            "lengths": lengths,
            "k_lengths": lengths,
        }
        room = torch.empty(max(self._graph.get_workspace_size(), 1), dtype=torch.uint8, device=shape.device)
        stream = torch.cuda.current_stream(shape.device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        self._graph.execute({self._named[name]: x for name, x in by_name.items()}, room, handle=self._handle)


@functools.lru_cache(maxsize=64)
def _graph(shape: _Shape, backward: bool) -> _Graph:
    return _Graph(shape, backward=backward)
