"""One token more in many rows: the decoder of a model, made ready once for each version of its weights.

A dense model on one device is decoded with its matrices joined: queries, keys and values are one product, gate and up
another; on a CPU they are also laid out for products with few rows (oneDNN). Under autocast the weights are cast once,
not at every token. On a CPU without bf16 units, bf16 products are made in fp32 and rounded, which is what those units
do, only faster than their emulation. Every other model (experts, latent attention, sharded, adapted) is called as is.

Shapes: B rows, T = 1 position, D width, V vocabulary, H query heads, G key-value heads, K width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lifecycle.model import Cache, Decoder
from lifecycle.model.attention import cached_attention
from lifecycle.model.cache import Place, Slots
from lifecycle.model.decoder import Block, SelfAttention
from lifecycle.model.layers import FeedForward
from lifecycle.model.rope import rotate

JOINED_BYTES = 4 << 30
"""Largest model whose matrices are copied to join them."""

Linear = Callable[[Tensor], Tensor]


class Step(Protocol):
    """Logits (B, V) of the next token of every row, and the fresh weights whenever they have changed."""

    def __call__(self, ids_B1: Tensor, positions_B1: Tensor, cache: Cache, rows_B: Tensor | None) -> Tensor: ...

    def refresh(self) -> None: ...


def compute_dtype(model: Decoder) -> torch.dtype:
    """The dtype that products run in: autocast's where it is on, else that of the weights."""
    device_type = model.embedding.weight.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return model.embedding.weight.dtype


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products are made by the hardware: everywhere but on older CPUs."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cache_dtype(model: Decoder, step: Step) -> torch.dtype:
    """Of the keys and values that the step reads fastest; a wider one holds the same numbers."""
    dtype = compute_dtype(model)
    emulated = dtype == torch.bfloat16 and not has_bf16_units(model.embedding.weight.device)
    return torch.float32 if emulated and isinstance(step, Joined) else dtype


def eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """What was compiled for training runs eagerly here: it would be compiled again for every shape."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def is_plain(model: Decoder) -> bool:
    """Whether the model is nothing but its own parts on one device: neither sharded nor adapted."""
    kinds = {type(module).__module__.partition(".")[0] for module in model.modules()}
    return kinds <= {"lifecycle", "torch"} and not any(isinstance(p, DTensor) for p in model.parameters())


def prepare(model: Decoder, *, rows: int, packed: bool = True) -> tuple[Decoder, Step]:
    """The model to prefill with, and the step to decode with; `rows`: how many will be decoded together at most.

    packed: lay matrices out for the CPU, where that is known to help; compilers cannot look into the layout.
    """
    dtype = compute_dtype(model)
    if not is_plain(model):
        return model, AsItIs(model)
    cast = Cast(model, dtype) if dtype != model.embedding.weight.dtype else None
    ready = model if cast is None else cast.model
    dense = all(type(block.attention) is SelfAttention and type(block.ffn) is FeedForward for block in _blocks(ready))
    size = sum(p.numel() for p in ready.parameters()) * dtype.itemsize
    if dense and size <= JOINED_BYTES:
        return ready, Joined(ready, rows=rows if packed else None, cast=cast)
    return ready, AsItIs(ready, cast=cast)


class Cast:
    """A copy of a model whose matrices are in the compute dtype, as autocast would cast them at every product.

    Norms and routers keep their dtype: autocast computes them in fp32.
    """

    def __init__(self, model: Decoder, dtype: torch.dtype) -> None:
        self._source = model
        with torch.device("meta"):
            self.model = Decoder(model.config)
        kept = ("norm.weight", "router.weight", "router.bias")
        weights = {
            name: weight.detach().clone() if name.endswith(kept) else weight.detach().to(dtype)
            for name, weight in model.state_dict().items()
        }
        self.model.load_state_dict(weights, assign=True)

    def refresh(self) -> None:
        """Copy the source's present weights."""
        for mine, theirs in zip(self.model.state_dict().values(), self._source.state_dict().values(), strict=True):
            mine.copy_(theirs)


class AsItIs:
    """The model itself, with its own cached forward pass."""

    def __init__(self, model: Decoder, *, cast: Cast | None = None) -> None:
        self._model, self._cast = model, cast

    def __call__(self, ids_B1: Tensor, positions_B1: Tensor, cache: Cache, rows_B: Tensor | None) -> Tensor:
        with eagerly(self._model):
            hidden_B1D = self._model(ids_B1, positions_B1, cache=cache, rows=rows_B)
        return self._model.logits(hidden_B1D)[:, 0]

    def refresh(self) -> None:
        """Take over changed weights."""
        if self._cast is not None:
            self._cast.refresh()


class Joined:
    """A dense model with joined matrices."""

    def __init__(self, model: Decoder, *, rows: int | None, cast: Cast | None) -> None:
        self._model, self._cast = model, cast
        self._blocks = [JoinedBlock(block, rows=rows) for block in _blocks(model)]
        self._head = _linear([model.head_weight], [None], rows)

    def __call__(self, ids_B1: Tensor, positions_B1: Tensor, cache: Cache, rows_B: Tensor | None) -> Tensor:
        model = self._model
        place = cache.place(positions_B1, rows_B)
        x_BD = F.embedding(ids_B1[:, 0], model.embedding.weight)
        for number, block in enumerate(self._blocks):
            x_BD = block(x_BD, place, place.layer(number))
        logits_BV = self._head(model.norm(x_BD))
        cap = model.config.logit_softcap
        return logits_BV if cap is None else cap * torch.tanh(logits_BV / cap)

    def refresh(self) -> None:
        """Take over changed weights."""
        if self._cast is not None:
            self._cast.refresh()
        for joined, block in zip(self._blocks, _blocks(self._model), strict=True):
            joined.refresh(block)
        self._head.refresh([self._model.head_weight], [None])


class JoinedBlock:
    """One block, T = 1."""

    def __init__(self, block: Block, *, rows: int | None) -> None:
        attention, ffn = block.attention, block.ffn
        assert isinstance(attention, SelfAttention) and isinstance(ffn, FeedForward)
        self._block, self._attention = block, attention
        self._qkv, self._o, self._gate_up, self._down = (
            _linear([m.weight for m in part], [m.bias for m in part], rows) for part in _parts(attention, ffn)
        )
        self._sizes = (attention.q_proj.weight.shape[0], attention.k_proj.weight.shape[0])

    def __call__(self, x_BD: Tensor, place: Place, slots: Slots) -> Tensor:
        block, attention = self._block, self._attention
        y_B1XK = self._qkv(block.attention_norm(x_BD)).view(len(x_BD), 1, -1, attention.head_dim)
        queries, keys = (size // attention.head_dim for size in self._sizes)
        if attention.q_norm is None or attention.k_norm is None:
            turned = rotate(y_B1XK[:, :, : queries + keys], *place.angles)
            q, k = turned[:, :, :queries], turned[:, :, queries:]
        else:
            q = rotate(attention.q_norm(y_B1XK[:, :, :queries]), *place.angles)
            k = rotate(attention.k_norm(y_B1XK[:, :, queries : queries + keys]), *place.angles)
        held_k, held_v = slots.write(k, y_B1XK[:, :, queries + keys :])
        seen = cached_attention(q.to(held_k.dtype), held_k, held_v, slots.mask_B1TL)
        x_BD = x_BD + self._o(seen.reshape(len(x_BD), -1).to(x_BD.dtype))
        gate, up = self._gate_up(block.ffn_norm(x_BD)).chunk(2, dim=-1)
        return x_BD + self._down(F.silu(gate) * up)

    def refresh(self, block: Block) -> None:
        """Take over changed weights."""
        assert isinstance(block.attention, SelfAttention) and isinstance(block.ffn, FeedForward)
        joined = (self._qkv, self._o, self._gate_up, self._down)
        for linear, part in zip(joined, _parts(block.attention, block.ffn), strict=True):
            linear.refresh([m.weight for m in part], [m.bias for m in part])


def _parts(attention: SelfAttention, ffn: FeedForward) -> list[list[nn.Linear]]:
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [ffn.gate_proj, ffn.up_proj],
        [ffn.down_proj],
    ]


def _blocks(model: Decoder) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


class Wide:
    """y = x W' + b with the rows of several matrices joined into W; a matrix alone is not copied."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        self.weight, self.bias = _joined(weights), _joined_biases(biases)

    def __call__(self, x_BD: Tensor) -> Tensor:
        return F.linear(x_BD, self.weight, self.bias)

    def refresh(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        """In place: recorded graphs know the address."""
        if len(weights) > 1:
            torch.cat([w.detach() for w in weights], out=self.weight)
            bias = _joined_biases(biases)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)
        else:
            self.weight, self.bias = _joined(weights), _joined_biases(biases)


class Packed:
    """The same in fp32, in the layout that oneDNN wants for products with about `rows` rows."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor | None], rows: int) -> None:
        self._rows = rows
        self.refresh(weights, biases)

    def __call__(self, x_BD: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x_BD.float(), self._weight, self._bias, "none", [], "")
        return out.to(x_BD.dtype)

    def refresh(self, weights: list[Tensor], biases: list[Tensor | None]) -> None:
        """Lay out again."""
        bias = _joined_biases(biases)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(_joined(weights).float(), self._rows)
        self._bias = None if bias is None else bias.float()


def _linear(weights: list[Tensor], biases: list[Tensor | None], rows: int | None) -> Wide | Packed:
    """Packed for products with `rows` rows; None: not packed."""
    weight = weights[0]
    known = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not has_bf16_units(weight.device))
    packs = rows is not None and known and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return Packed(weights, biases, rows) if packs and rows is not None else Wide(weights, biases)


def _joined(weights: list[Tensor]) -> Tensor:
    return weights[0].detach() if len(weights) == 1 else torch.cat([w.detach() for w in weights])


def _joined_biases(biases: list[Tensor | None]) -> Tensor | None:
    given = [b.detach() for b in biases if b is not None]
    return torch.cat(given) if given else None
