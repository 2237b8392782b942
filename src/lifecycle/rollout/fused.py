"""A dense decoder for one token a row on a CPU, all blocks in one call of our own C (fused.c).

The same numbers as the model's own cached forward pass, up to rounding. With few rows a step of torch's kernels spends
its time on starting them and on products made for many rows; here a matrix is read once, in panels of 16 columns, by
six rows at a time, a row reads only the positions that it has, and samples of one prompt read the prompt's keys and
values from one place, where the processor still holds them. A row's bits do not depend on its neighbours.

A model in bf16 is read as bf16, half the bytes, and summed in fp32; what torch rounds to bf16 is rounded here too. The
cache may be fp32 or bf16, whatever the model is.

Shapes: B rows, D width, N outputs, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder
from lifecycle.model.decoder import Block, SelfAttention
from lifecycle.model.layers import FeedForward
from lifecycle.rollout.lending import Lent
from lifecycle.rollout.native import library
from lifecycle.rollout.products import joined, joined_biases

PANEL, LANES = 16, 8
"""Of fused.c: columns of a panel, floats of a vector."""

DTYPES = (torch.float32, torch.bfloat16)
"""Of weights, and of the cache."""

_Pointer, _Long = ctypes.c_void_p, ctypes.c_long


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Pointer) for name in ("attention_norm", "qkv_bias", "q_norm", "k_norm", "ffn_norm")),
        *((name, _Pointer) for name in ("qkv", "o", "gate_up", "down", "keys", "values")),
        ("window", _Long),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _Long) for name in ("layers", "D", "H", "G", "K", "P", "F", "V", "C", "half", "half_cache")),
        ("eps", ctypes.c_float),
        ("norm", _Pointer),
        ("head", _Pointer),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("B", _Long),
        *((name, _Pointer) for name in ("rows", "positions", "lenders", "shared", "cos", "sin", "x", "logits")),
        ("scratch", _Pointer),
    ]


def fits(model: Decoder) -> bool:
    """Whether `Fused` can take a dense model: fp32 or bf16 on a CPU with a C compiler, and sizes of whole vectors."""
    config, weight = model.config, model.embedding.weight
    qkv = (config.heads + 2 * config.kv_heads) * config.head_dim
    whole = all(n % PANEL == 0 for n in (config.width, qkv, config.vocab))
    whole = whole and config.ffn_width % LANES == 0 and config.head_dim % LANES == 0
    return whole and weight.device.type == "cpu" and weight.dtype in DTYPES and library("fused") is not None


class Fused:
    """The model's blocks with their matrices laid out for fused.c.

    refresh_model: brings the model's own weights up to date first, where it is a cast copy.
    """

    lends = True

    def __init__(self, model: Decoder, *, refresh_model: Callable[[], None] | None) -> None:
        found = library("fused")
        assert found is not None
        self._library, self._source, self._refresh_model = found, model, refresh_model
        self._library.scratch_size.restype = _Long
        config = model.config
        self._model = _Model(
            *(config.layers, config.width, config.heads, config.kv_heads, config.head_dim, config.rotary_dim),
            *(config.ffn_width, config.vocab, 0, model.embedding.weight.dtype == torch.bfloat16, 0, config.norm_eps),
        )
        self._layers = (_Layer * config.layers)()
        self._kept: list[Tensor] = []
        self._lay_out()

    def __call__(
        self, ids_B1: Tensor, positions_B1: Tensor, cache: Cache, rows_B: Tensor | None, lent: Lent | None = None
    ) -> Tensor:
        """Logits (B, V), see `Step`."""
        model, B = self._source, len(ids_B1)
        self._point_at(cache)
        x_BD = F.embedding(ids_B1[:, 0], model.embedding.weight).float()
        logits_BV = torch.empty(B, model.config.vocab, device="cpu")
        rows_B = torch.arange(B, device="cpu") if rows_B is None else rows_B.contiguous()
        positions_B = positions_B1[:, 0].contiguous()
        scratch = torch.empty(self._library.scratch_size(ctypes.byref(self._model), _Long(B)), device="cpu")
        lenders = (None, None) if lent is None else (lent.lenders.data_ptr(), lent.lengths.data_ptr())
        addresses = (x.data_ptr() for x in (*cache.angles, x_BD, logits_BV, scratch))
        step = _Step(B, rows_B.data_ptr(), positions_B.data_ptr(), *lenders, *addresses)
        self._library.decode(ctypes.byref(self._model), self._layers, ctypes.byref(step), torch.get_num_threads())
        return model.capped(logits_BV.to(model.embedding.weight.dtype))

    def refresh(self) -> None:
        """Take over changed weights."""
        if self._refresh_model is not None:
            self._refresh_model()
        self._lay_out()

    def _point_at(self, cache: Cache) -> None:
        assert cache.keys[0].dtype in DTYPES  # C reads what it is told
        self._model.C, self._model.half_cache = cache.capacity + 1, cache.keys[0].dtype == torch.bfloat16
        for layer, keys, values, window in zip(self._layers, cache.keys, cache.values, cache.windows, strict=True):
            layer.keys, layer.values, layer.window = keys.data_ptr(), values.data_ptr(), window or 0

    def _lay_out(self) -> None:
        self._kept = []  # before new ones are made, not after: they are as large as the model
        model = self._source
        self._model.norm, self._model.head = self._vector(model.norm.weight), self._matrix([model.head_weight])
        for layer, block in zip(self._layers, model.blocks, strict=True):
            assert isinstance(block, Block) and isinstance(block.attention, SelfAttention)
            assert isinstance(block.ffn, FeedForward)
            attention, ffn = block.attention, block.ffn
            qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
            layer.attention_norm = self._vector(block.attention_norm.weight)
            layer.qkv = self._matrix([part.weight for part in qkv])
            layer.qkv_bias = self._vector(joined_biases([part.bias for part in qkv]))
            layer.q_norm = self._vector(None if attention.q_norm is None else attention.q_norm.weight)
            layer.k_norm = self._vector(None if attention.k_norm is None else attention.k_norm.weight)
            layer.o, layer.ffn_norm = self._matrix([attention.o_proj.weight]), self._vector(block.ffn_norm.weight)
            layer.gate_up = self._matrix([ffn.gate_proj.weight, ffn.up_proj.weight])
            layer.down = self._matrix([ffn.down_proj.weight])

    def _matrix(self, weights: Sequence[Tensor]) -> int:
        """Address of weights (N, K) over one another as panels: (N / PANEL, K, PANEL), in bf16 two of K together."""
        dtype = torch.bfloat16 if self._model.half else torch.float32
        panels = joined(weights).to(dtype).unflatten(0, (-1, PANEL)).transpose(1, 2)
        if self._model.half:
            panels = panels.unflatten(1, (-1, 2)).transpose(2, 3)
        self._kept.append(panels.contiguous())
        return self._kept[-1].data_ptr()

    def _vector(self, vector: Tensor | None) -> int | None:
        """Address of a copy in fp32."""
        if vector is None:
            return None
        self._kept.append(vector.detach().float().clone())
        return self._kept[-1].data_ptr()
