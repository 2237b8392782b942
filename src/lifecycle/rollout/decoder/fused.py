"""A decoder for the next token of a few sequences on a CPU, all blocks in one call of our own C (fused.c).

The same numbers as the model's own cached forward pass, up to rounding. With few rows, torch spends most of a step on
starting kernels and on products that are laid out for many rows. Here a matrix is read in panels of 16 or 32 columns,
for 6 or 12 rows at a time, as many as the processor's registers hold; a row reads only its own positions; and samples
of one prompt read the prompt's keys and values from one row, which is still in the processor's cache. A row's bits do
not depend on the other rows. Plain and latent attention, dense feed-forward parts and experts.

A model in bf16 is read as bf16, half the bytes, and summed in fp32; what torch rounds to bf16 is rounded here too. The
cache may be fp32 or bf16, whatever the model is.

Shapes: B rows, D width, N outputs, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder, ModelConfig
from lifecycle.model.decoder import Block, SelfAttention
from lifecycle.model.layers.latent import INNER_EPS, LatentAttention
from lifecycle.model.layers.moe import MoEFeedForward
from lifecycle.model.layers.norm_swiglu import FeedForward
from lifecycle.model.layers.rope import softmax_scale
from lifecycle.rollout.decoder.packed_linear import joined, joined_biases
from lifecycle.rollout.decoder.shared_prefix import SharedPrefix
from lifecycle.system.native.c_library import library

WHOLE, LANES = 16, 8
"""Columns of half a panel of the widest vectors, which no matrix can do without, and floats of the narrowest."""

DTYPES = (torch.float32, torch.bfloat16)
"""Dtypes that weights and cache may have."""

SOURCE = Path(__file__).with_name("fused.c")
SLOWER = "tokens are decoded by torch alone, about half as fast"

_Pointer, _Long = ctypes.c_void_p, ctypes.c_long


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Pointer) for name in ("attention_norm", "qkv_bias", "q_norm", "k_norm", "ffn_norm")),
        *((name, _Pointer) for name in ("router", "router_bias", "shared_gate", "qkv", "o", "gate_up", "down")),
        *((name, _Pointer) for name in ("q_down", "kv_down", "k_up", "v_up", "experts_gate_up", "experts_down")),
        *((name, _Pointer) for name in ("keys", "values")),
        *((name, _Long) for name in ("window", "F")),
        ("chosen", _Pointer),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, _Long) for name in ("layers", "D", "H", "G", "K", "P", "V", "C", "F")),
        *((name, _Long) for name in ("rank", "q_rank", "nope", "value", "kept")),
        *((name, _Long) for name in ("E", "A", "X", "groups", "active_groups", "sigmoid", "normalise")),
        *((name, _Long) for name in ("half", "half_head", "half_cache")),
        *((name, ctypes.c_float) for name in ("eps", "inner_eps", "scale", "routed_scale")),
        ("norm", _Pointer),
        ("head", _Pointer),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("B", _Long),
        *(
            (name, _Pointer)
            for name in ("rows", "positions", "prefix_rows", "prefix_lengths", "cos", "sin", "x", "logits")
        ),
        ("scratch", _Pointer),
    ]


def fits(model: Decoder) -> bool:
    """Whether `Fused` can take the model: fp32 or bf16 on a CPU with a C compiler, and sizes of whole vectors."""
    config, weight, latent, moe = model.config, model.embedding.weight, model.config.latent, model.config.moe
    panels, vectors = [config.width, config.vocab], []
    if latent is None:
        panels.append((config.heads + 2 * config.kv_heads) * config.head_dim)
        vectors.append(config.head_dim)
    else:
        panels += [config.attention_width, latent.kv_rank, latent.v_dim, latent.q_rank or 0]
        vectors += [latent.nope_dim, latent.rope_dim]
    if moe is None or moe.first_dense:
        vectors.append(config.ffn_width)
    if moe is not None:
        vectors += [moe.ffn_width, moe.shared_width]
    whole = all(n % WHOLE == 0 for n in panels) and all(n % LANES == 0 for n in vectors)
    return whole and weight.device.type == "cpu" and weight.dtype in DTYPES and library(SOURCE, SLOWER) is not None


class Fused:
    """The model's blocks with their matrices laid out for fused.c.

    refresh_model: brings the model's own weights up to date first, where it is a cast copy. head: fp32, in place of the
    model's own; its product is not rounded. notes_experts: whether `visited` is kept.
    """

    shares_prefix = True
    prefill = None

    def __init__(
        self,
        model: Decoder,
        *,
        refresh_model: Callable[[], None] | None,
        head: Tensor | None = None,
        notes_experts: bool = False,
    ) -> None:
        found = library(SOURCE, SLOWER)
        assert found is not None
        self._library, self._source, self._refresh_model, self._head = found, model, refresh_model, head
        self._notes_experts = notes_experts
        self.visited: Tensor | None = None
        self._library.scratch_size.restype = self._library.panel_columns.restype = _Long
        self._panel = int(self._library.panel_columns())
        config = model.config
        self._model = _Model(
            **{"layers": config.layers, "D": config.width, "H": config.heads, "G": config.kv_heads},
            **{"K": config.head_dim, "P": config.rotary_dim, "V": config.vocab, "eps": config.norm_eps},
            half=model.embedding.weight.dtype == torch.bfloat16,
            half_head=(model.embedding.weight if head is None else head).dtype == torch.bfloat16,
            **_latent_sizes(config),
            **_experts_sizes(config),
        )
        self._layers = (_Layer * config.layers)()
        self._kept: list[Tensor] = []
        self._lay_out()

    def __call__(
        self,
        ids_B1: Tensor,
        positions_B1: Tensor,
        cache: Cache,
        rows_B: Tensor | None,
        shared: SharedPrefix | None = None,
    ) -> Tensor:
        """Logits (B, V), see `DecodeBackend`."""
        model, B = self._source, len(ids_B1)
        self._point_at(cache)
        x_BD = F.embedding(ids_B1[:, 0], model.embedding.weight).float()
        logits_BV = torch.empty(B, model.config.vocab, dtype=torch.float32, device="cpu")
        rows_B = torch.arange(B, device="cpu") if rows_B is None else rows_B.contiguous()
        positions_B = positions_B1[:, 0].contiguous()
        size = self._library.scratch_size(ctypes.byref(self._model), _Long(B))
        scratch = torch.empty(size, dtype=torch.float32, device="cpu")
        prefix = (None, None) if shared is None else (shared.rows.data_ptr(), shared.lengths.data_ptr())
        addresses = (x.data_ptr() for x in (*cache.angles, x_BD, logits_BV, scratch))
        step = _Step(B, rows_B.data_ptr(), positions_B.data_ptr(), *prefix, *addresses)
        self._note_experts(B)
        self._library.decode(ctypes.byref(self._model), self._layers, ctypes.byref(step), torch.get_num_threads())
        return model.capped(logits_BV.to((model.embedding.weight if self._head is None else self._head).dtype))

    def _note_experts(self, rows: int) -> None:
        """Make room for the experts that this step's rows visit."""
        moe = self._source.config.moe
        if not self._notes_experts or moe is None:
            return
        layers = self._layers[moe.first_dense :]
        room_LBA = torch.empty(len(layers), rows, moe.active, dtype=torch.int32, device="cpu")
        for layer, room_BA in zip(layers, room_LBA, strict=True):
            layer.chosen = room_BA.data_ptr()
        self.visited = room_LBA.transpose(0, 1)

    def refresh(self) -> None:
        """Lay out changed weights."""
        if self._refresh_model is not None:
            self._refresh_model()
        self._lay_out()

    def _point_at(self, cache: Cache) -> None:
        assert cache.keys[0].dtype in DTYPES  # the C code does not check it
        self._model.C, self._model.half_cache = cache.capacity + 1, cache.keys[0].dtype == torch.bfloat16
        for number, (layer, keys, window) in enumerate(zip(self._layers, cache.keys, cache.windows, strict=True)):
            values = cache.values[number].data_ptr() if cache.values else None
            layer.keys, layer.values, layer.window = keys.data_ptr(), values, window or 0

    def _lay_out(self) -> None:
        self._kept = []  # before new ones are made, not after: they are as large as the model
        model = self._source
        head = model.head_weight if self._head is None else self._head
        self._model.norm, self._model.head = self._vector(model.norm.weight), self._matrix([head])
        for layer, block in zip(self._layers, model.blocks, strict=True):
            assert isinstance(block, Block)
            layer.attention_norm = self._vector(block.attention_norm.weight)
            layer.ffn_norm = self._vector(block.ffn_norm.weight)
            layer.o = self._matrix([block.attention.o_proj.weight])
            if isinstance(block.attention, SelfAttention):
                self._lay_out_attention(layer, block.attention)
            else:
                self._lay_out_latent(layer, block.attention)
            if isinstance(block.ffn, FeedForward):
                self._lay_out_dense(layer, block.ffn)
            else:
                self._lay_out_experts(layer, block.ffn)

    def _lay_out_attention(self, layer: _Layer, attention: SelfAttention) -> None:
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        layer.qkv = self._matrix([part.weight for part in qkv])
        layer.qkv_bias = self._vector(joined_biases([part.bias for part in qkv]))
        layer.q_norm = self._vector(None if attention.q_norm is None else attention.q_norm.weight)
        layer.k_norm = self._vector(None if attention.k_norm is None else attention.k_norm.weight)

    def _lay_out_latent(self, layer: _Layer, attention: LatentAttention) -> None:
        """W_uk of every head is transposed: it is applied to the query (see latent.py)."""
        sizes = attention.sizes
        if sizes.q_rank is None:
            layer.qkv = self._matrix([attention.q_proj.weight])
        else:
            layer.q_down, layer.qkv = (self._matrix([m.weight]) for m in (attention.q_down, attention.q_up))
            layer.q_norm = self._vector(attention.q_norm.weight)
        down = attention.kv_down.weight
        layer.kv_down = self._matrix([F.pad(down, (0, 0, 0, -len(down) % WHOLE))])
        layer.k_norm = self._vector(attention.kv_norm.weight)
        up_HXC = attention.kv_up.weight.unflatten(0, (attention.heads, -1))
        k_up, v_up = up_HXC.split((sizes.nope_dim, sizes.v_dim), dim=1)
        layer.k_up, layer.v_up = self._matrices(k_up.mT), self._matrices(v_up)

    def _lay_out_dense(self, layer: _Layer, ffn: FeedForward) -> None:
        layer.F = len(ffn.gate_proj.weight)
        layer.gate_up = self._matrix([ffn.gate_proj.weight, ffn.up_proj.weight])
        layer.down = self._matrix([ffn.down_proj.weight])

    def _lay_out_experts(self, layer: _Layer, ffn: MoEFeedForward) -> None:
        layer.router, layer.router_bias = self._vector(ffn.router.weight), self._vector(ffn.router.bias)
        gate_up_EXD = torch.cat((ffn.experts.gate_proj, ffn.experts.up_proj), dim=1)
        layer.experts_gate_up = self._matrices(gate_up_EXD)
        layer.experts_down = self._matrices(ffn.experts.down_proj)
        if ffn.shared is not None:
            self._lay_out_dense(layer, ffn.shared)
            layer.shared_gate = self._vector(None if ffn.shared_gate is None else ffn.shared_gate.weight)

    def _matrix(self, weights: Sequence[Tensor]) -> int:
        """Address of weights (N, K), stacked along N, as panels, see `_matrices`."""
        return self._matrices(joined(weights)[None])

    def _matrices(self, weights_MNK: Tensor) -> int:
        """Address of M matrices behind one another, each as its panels of P columns, (N / P, K, P), or
        (N / P, K / 2, P, 2) in bf16; the last panel has half as many where N wants it."""
        matrices, columns, width = weights_MNK.shape
        made_MX = torch.empty(matrices, columns * width, dtype=weights_MNK.dtype, device="cpu")
        whole = columns - columns % self._panel
        for first, last, panel in ((0, whole, self._panel), (whole, columns, WHOLE)):
            parts = weights_MNK.detach()[:, first:last].unflatten(1, (-1, panel)).transpose(2, 3)
            if parts.dtype == torch.bfloat16:
                parts = parts.unflatten(2, (-1, 2)).transpose(3, 4)
            made_MX[:, first * width : last * width].view(parts.shape).copy_(parts)
        self._kept.append(made_MX)
        return made_MX.data_ptr()

    def _vector(self, vector: Tensor | None) -> int | None:
        """Address of a copy in fp32."""
        if vector is None:
            return None
        self._kept.append(vector.detach().float().clone())
        return self._kept[-1].data_ptr()


def _latent_sizes(config: ModelConfig) -> dict[str, float]:
    latent = config.latent
    if latent is None:
        return {}
    kept = latent.kv_rank + latent.rope_dim
    return {
        **{"rank": latent.kv_rank, "q_rank": latent.q_rank or 0, "nope": latent.nope_dim, "value": latent.v_dim},
        **{"kept": kept + -kept % WHOLE, "inner_eps": INNER_EPS, "scale": softmax_scale(config)},
    }


def _experts_sizes(config: ModelConfig) -> dict[str, float]:
    moe = config.moe
    if moe is None:
        return {"F": config.ffn_width}
    return {
        **{"F": max(config.ffn_width if moe.first_dense else 0, moe.shared_width), "E": moe.experts, "A": moe.active},
        **{"X": moe.ffn_width, "groups": moe.groups, "active_groups": moe.active_groups},
        **{"sigmoid": moe.score == "sigmoid", "normalise": moe.normalise, "routed_scale": moe.scale},
    }
