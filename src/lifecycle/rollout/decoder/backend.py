"""The decoding backends, which give the next token's logits of many sequences, and the choice between them.

On a CPU with a C compiler a model is decoded by one call a token (see fused.py), in fp32 and in bf16. On a GPU it is
decoded with its matrices joined, by kernels of our own (see joined_blocks.py); elsewhere a dense model is so without
those. Under autocast the weights are cast once, not at every token. Where torch decodes on a CPU without bf16 units,
bf16 products are made in fp32 and rounded, which is what those units do, only faster than their emulation. A model with
an adapter is decoded as a copy with the adapter in its weights. Every other model (sharded, very large, elsewhere
experts and latent attention) is called as is.

Shapes: B sequences, each in a row of the cache, T = 1 position, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from lifecycle.model import Cache, Decoder
from lifecycle.model.adapters import dropout_off, plain_weights
from lifecycle.model.layers.experts import Experts
from lifecycle.model.layers.gpu import available
from lifecycle.model.precision import dtype_of, product_dtype
from lifecycle.rollout.decoder import fused
from lifecycle.rollout.decoder.fused import Fused
from lifecycle.rollout.decoder.joined_blocks import Joined, Prefill
from lifecycle.rollout.decoder.joined_matrices import is_dense, numbers_to_join
from lifecycle.rollout.decoder.packed_linear import has_bf16_units
from lifecycle.rollout.decoder.shared_prefix import SharedPrefix
from lifecycle.system.shards import is_sharded

JOINED_BYTES = 4 << 30
"""Largest model whose matrices are copied to join them; experts' are not."""


LARGEST_LATENT = 512
"""Numbers of a compressed vector that a program of latent attention holds for each of its heads."""


class DecodeBackend(Protocol):
    """Gives logits (B, V) of the next token of every sequence; `refresh` takes over changed weights.

    shares_prefix: whether it reads a shared prefix from one row of the cache; the others ignore `shared`. visited:
    (B, layers, A), the experts that the sequences of the last call visited, where they are noted. prefill: what writes
    prompts into the cache; None: the model's own forward pass.
    """

    shares_prefix: bool
    visited: Tensor | None

    @property
    def prefill(self) -> Prefill | None: ...

    def __call__(
        self,
        ids_B1: Tensor,
        positions_B1: Tensor,
        cache: Cache,
        rows_B: Tensor | None,
        shared: SharedPrefix | None = None,
    ) -> Tensor: ...

    def refresh(self) -> None: ...


def compute_dtype(model: Decoder) -> torch.dtype:
    """The dtype that products run in: autocast's where it is on, else that of the weights."""
    weight = model.embedding.weight
    return product_dtype(weight, weight.dtype)


def cache_dtype(model: Decoder, step: DecodeBackend, dtype: torch.dtype) -> torch.dtype:
    """The dtype of keys and values that the backend reads fastest; a wider one holds the same numbers. dtype: of the
    products."""
    emulated = dtype == torch.bfloat16 and not has_bf16_units(model.embedding.weight.device)
    return torch.float32 if emulated and isinstance(step, Fused | Joined) else dtype


@contextmanager
def as_sampled(model: Decoder) -> Iterator[None]:
    """Run a model that is being trained without its adapter's dropout, and eagerly where it was compiled: it would be
    compiled again for every shape."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    drops = model.adapter is not None and model.adapter.dropout > 0
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    with eager, dropout_off(model) if drops else nullcontext():
        yield


def is_plain(model: Decoder) -> bool:
    """Whether the model consists of its own modules and its adapter on one device: not sharded."""
    kinds = {type(module).__module__.partition(".")[0] for module in model.modules()}
    adapters = set() if model.adapter is None else {"peft", "bitsandbytes"}
    return kinds <= {"lifecycle", "torch"} | adapters and not any(is_sharded(p) for p in model.parameters())


def has_kernels(model: Decoder, dtype: torch.dtype, *, packed: bool, cache: torch.dtype | None) -> bool:
    """Whether a plain model is decoded by our own kernels; for packed and cache see `prepare`."""
    taken = dtype in available.DTYPES and cache in (None, *available.DTYPES)
    small = numbers_to_join(model) * dtype.itemsize <= JOINED_BYTES
    latent = model.config.latent
    fits = small and (latent is None or latent.kv_rank <= LARGEST_LATENT)
    return packed and taken and fits and available.is_there(model.embedding.weight.device)


def why_not_recorded(
    model: Decoder, dtype: torch.dtype, *, packed: bool = True, cache: torch.dtype | None = None
) -> str | None:
    """Why decode steps with products in `dtype` cannot be recorded as CUDA graphs; None: they can. A graph holds fixed
    shapes, and nothing that the host waits for. For packed and cache see `prepare`."""
    if not is_plain(model):
        return "it is sharded, or some of its parts are not its own"
    if has_kernels(model, dtype, packed=packed, cache=cache):
        return None
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    return experts[0].why_the_host_waits(dtype) if experts else None


def prepare(
    model: Decoder,
    *,
    rows: int,
    dtype: torch.dtype,
    packed: bool = True,
    cache: torch.dtype | None = None,
    head: torch.dtype | None = None,
    notes_experts: bool = False,
) -> tuple[Decoder, DecodeBackend]:
    """The model to prefill with, and the backend to decode with; rows: most sequences that are decoded together.

    dtype: of products (see `compute_dtype`). packed: lay matrices out for the CPU, where that is known to help;
    compilers cannot look into the layout. cache: the dtype of the keys and values, None where the step may choose (see
    `cache_dtype`). head: the dtype of its product, where that is wider than those of the others; None: theirs.
    notes_experts: keep `visited`.
    """
    head = None if head is None or head.itemsize <= dtype.itemsize else head
    if not is_plain(model):
        return model, AsItIs(model, head=head, notes_experts=notes_experts)
    as_it_is = dtype == model.embedding.weight.dtype and model.adapter is None and head is None
    cast = None if as_it_is else Cast(model, dtype, head=head)
    ready, exact = (model, None) if cast is None else (cast.model, cast.head)
    size = sum(p.numel() for p in ready.parameters()) * dtype.itemsize
    refresh_model = cast.refresh if cast else None
    if size <= JOINED_BYTES and packed and cache in (None, *fused.DTYPES) and fused.fits(ready):
        return ready, Fused(ready, refresh_model=refresh_model, head=exact, notes_experts=notes_experts)
    kernels = has_kernels(ready, dtype, packed=packed, cache=cache)
    if kernels or (size <= JOINED_BYTES and is_dense(ready)):
        return ready, Joined(
            ready,
            rows=rows if packed else None,
            refresh_model=refresh_model,
            head=exact,
            kernels=kernels,
            notes_experts=notes_experts,
        )
    return ready, AsItIs(ready, cast=cast, notes_experts=notes_experts)


class Cast:
    """A copy of a model whose matrices are in the compute dtype, as autocast would cast them at every product, and hold
    what its adapter adds. head: a copy of its head in another dtype besides; None: there is none."""

    def __init__(self, model: Decoder, dtype: torch.dtype, *, head: torch.dtype | None = None) -> None:
        self._source = model
        self.head = None if head is None else model.head_weight.detach().to(head, copy=True)
        with torch.device("meta"):
            self.model = Decoder(model.config)
        weights = {
            name: weight.detach().to(dtype_of(name, dtype), copy=True) for name, weight in plain_weights(model).items()
        }
        self.model.load_state_dict(weights, assign=True)

    def refresh(self) -> None:
        """Copy the source's present weights."""
        present = plain_weights(self._source)
        for name, mine in self.model.state_dict().items():
            mine.copy_(present[name])
        if self.head is not None:
            self.head.copy_(self._source.head_weight.detach())


class AsItIs:
    """The model itself, with its own cached forward pass. head: the dtype of the head's product; None: that of the
    others."""

    shares_prefix = False
    prefill = None

    def __init__(
        self,
        model: Decoder,
        *,
        cast: Cast | None = None,
        head: torch.dtype | None = None,
        notes_experts: bool = False,
    ) -> None:
        self._model, self._cast, self._head = model, cast, head
        self._notes_experts = notes_experts and model.config.moe is not None
        self.visited: Tensor | None = None

    def __call__(
        self,
        ids_B1: Tensor,
        positions_B1: Tensor,
        cache: Cache,
        rows_B: Tensor | None,
        shared: SharedPrefix | None = None,
    ) -> Tensor:
        visited: list[Tensor] | None = [] if self._notes_experts else None
        with as_sampled(self._model):
            hidden_B1D = self._model(ids_B1, positions_B1, cache=cache, rows=rows_B, visited=visited)
        self.visited = torch.stack(visited, dim=1) if visited else None
        exact = None if self._cast is None else self._cast.head
        if self._head is not None:
            exact = self._model.head_weight.to(self._head)
        return self._model.logits(hidden_B1D, exact)[:, 0]

    def refresh(self) -> None:
        """Lay out changed weights."""
        if self._cast is not None:
            self._cast.refresh()
