"""The preallocated cache of keys and values that decoding reads and writes.

    cache = Cache.empty(config, rows=16, capacity=512, device=device, dtype=torch.float32)
    hidden_BTD = model(prompt_ids_BT, position_ids_BT, cache=cache)         # prefill, whole or chunk by chunk
    hidden_B1D = model(token_ids_B1, position_ids_B1, cache=cache)          # one token more in every row

A token is written at the slot of its position and sees the slots of its row up to its own (and within the window).
Rows that begin with a call see nothing that was there before: they attend to the call's own keys and read no slot.
Latent attention keeps its compressed vectors only: kv_rank + rope_dim numbers a token and layer.

Shapes: R rows of the cache, C capacity in positions, L positions looked at, B rows of a call, T positions of a call,
G key-value heads, K width of a head, P rotated part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lifecycle.model.config import ModelConfig
from lifecycle.model.layers.attention import DocumentMask, attention, cached_attention, slide
from lifecycle.model.layers.rope import rotary_table


@dataclass(kw_only=True)
class Cache:
    """Slots for `capacity` positions of every row; plain tensors, so that it can be copied, moved and captured.

    keys: by layer, (R, G, C + 1, K); values: the same. With latent attention keys are (R, 1, C + 1, kv_rank +
    rope_dim), the compressed vector and the rotated shared key, and there are no values. The slot after the last takes
    what padding (position -1) writes and is never read. angles: cos and signed sin of every position, each (C, P) fp32.
    windows: by layer. config: of the model. limit: how many positions attention looks at, None for all: no token of a
    call may stand at or after it. Keep it near the longest row for speed, or fixed where shapes must be. begins: every
    row of a call begins with it, at positions 0, 1, 2, ... with padding behind them.
    """

    keys: list[Tensor]
    values: list[Tensor]
    angles: tuple[Tensor, Tensor]
    windows: tuple[int | None, ...]
    config: ModelConfig
    limit: int | None = None
    begins: bool = False

    @staticmethod
    def empty(config: ModelConfig, *, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> Cache:
        """A cache that holds nothing yet. `dtype`: the compute dtype of the model (bf16 under autocast)."""
        kinds, heads, width = _sizes(config)
        # zeros: a slot that is masked out counts 0 times its content, which must be a number
        stored = [
            torch.zeros(rows, heads, capacity + 1, width, device=device, dtype=dtype)
            for _ in range(kinds * config.layers)
        ]
        return Cache(
            keys=stored[: config.layers],
            values=stored[config.layers :],
            angles=rotary_table(torch.arange(capacity, device=device), config),
            windows=tuple(config.window(layer) for layer in range(config.layers)),
            config=config,
        )

    @staticmethod
    def position_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
        """What one position of one row takes, all layers together."""
        kinds, heads, width = _sizes(config)
        return kinds * config.layers * heads * width * dtype.itemsize

    def grow(self, capacity: int, *, rows: int) -> None:
        """Enlarge to `capacity` positions and the first `rows` rows, which keep their content; other rows are dropped.
        One layer at a time, so that two whole caches never exist."""
        held = self.capacity
        for stored in (self.keys, self.values):
            for layer, old in enumerate(stored):
                new = old.new_zeros(rows, old.shape[1], capacity + 1, old.shape[3])
                new[:, :, :held] = old[:rows, :, :held]
                stored[layer] = new
        self.angles = rotary_table(torch.arange(capacity, device=self.keys[0].device), self.config)

    @property
    def rows(self) -> int:
        """How many sequences it holds."""
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        """How many positions a row holds."""
        return self.keys[0].shape[2] - 1

    @property
    def bytes_per_position(self) -> int:
        """What one position of one row takes, all layers together."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in (*self.keys, *self.values))

    def copy_rows(self, sources: Tensor | int, targets: Tensor, *, length: int | None = None) -> None:
        """The first `length` positions (None: all) of rows `sources` into rows `targets` (integers, on the device), all
        at once; one source goes into every target, as a prompt is prefilled once for all samples of it.
        """
        stop = self.capacity if length is None else length
        for stored in (*self.keys, *self.values):
            stored[targets, :, :stop] = stored[sources, :, :stop]

    def place(self, position_ids_BT: Tensor, rows_B: Tensor | slice | None) -> CallSlots:
        """The slots, masks and angles of one call's tokens at `position_ids_BT` (-1: padding), for all layers.

        rows_B: the cache row of each call row; a slice where they follow on one another, which copies nothing; None:
        call row b is cache row b.
        """
        cos, sin = (table[position_ids_BT][:, :, None] for table in self.angles)
        return CallSlots(
            cache=self,
            rows_B=rows_B,
            slots_M=self._slots(position_ids_BT, rows_B),
            masks={} if self.begins else self._masks(position_ids_BT),
            documents=self._documents(position_ids_BT) if self.begins else None,
            angles=(cos, sin),
        )

    def _documents(self, position_ids_BT: Tensor) -> dict[int | None, DocumentMask | None]:
        """By window, what a call whose rows begin with it sees of itself; None: all before each token."""
        T, device = position_ids_BT.shape[1], position_ids_BT.device
        return {w: None if w is None else slide(None, w, T, device) for w in dict.fromkeys(self.windows)}

    def _masks(self, position_ids_BT: Tensor) -> dict[int | None, Tensor]:
        """By window, what each token sees of its row."""
        device = position_ids_BT.device
        slots_L = torch.arange(self.capacity if self.limit is None else self.limit, device=device)
        # padding (-1) looks at slot 0: a row of attention that sees nothing would not be a number
        own_B1T1 = position_ids_BT.clamp(min=0)[:, None, :, None]
        seen = slots_L <= own_B1T1
        masks = {w: seen if w is None else seen & (slots_L > own_B1T1 - w) for w in dict.fromkeys(self.windows)}
        # not bool: kernels want what is added to the scores, and torch would make it in every layer
        return {w: self._added(mask) for w, mask in masks.items()}

    def _slots(self, position_ids_BT: Tensor, rows_B: Tensor | slice | None) -> Tensor:
        """(B T G,) line of (R G (C + 1), K) where each key of a call is stored; padding in the last slot of its row."""
        heads, slots = self.keys[0].shape[1], self.capacity + 1
        device = position_ids_BT.device
        rows = slice(0, len(position_ids_BT)) if rows_B is None else rows_B
        row_B = torch.arange(rows.start, rows.stop, device=device) if isinstance(rows, slice) else rows
        head_BG = row_B[:, None] * heads + torch.arange(heads, device=device)
        return (head_BG[:, None] * slots + (position_ids_BT % slots)[:, :, None]).flatten()

    def _added(self, seen: Tensor) -> Tensor:
        return torch.full(seen.shape, -torch.inf, dtype=self.keys[0].dtype, device=seen.device).masked_fill_(seen, 0)


def _sizes(config: ModelConfig) -> tuple[int, int, int]:
    """Tensors of a layer, heads and width of each."""
    latent = config.latent
    return (2, config.kv_heads, config.head_dim) if latent is None else (1, 1, latent.kv_rank + latent.rope_dim)


@dataclass(frozen=True, kw_only=True)
class CallSlots:
    """The tokens of one call in a cache.

    slots_M: of the call's keys, see `Cache._slots`. masks: by window, (B, 1, T, L), what is added to scores: 0 where a
    slot is seen, -inf elsewhere. documents: by window, in their place where all rows begin with the call. angles: cos
    and signed sin of the tokens' positions, each (B, T, 1, P).
    """

    cache: Cache
    rows_B: Tensor | slice | None
    slots_M: Tensor
    masks: dict[int | None, Tensor]
    documents: dict[int | None, DocumentMask | None] | None
    angles: tuple[Tensor, Tensor]

    def layer(self, number: int) -> Slots:
        """The call's slots in layer `number`."""
        cache = self.cache
        window = cache.windows[number]
        return Slots(
            place=self,
            keys=cache.keys[number],
            values=cache.values[number] if cache.values else None,
            mask_B1TL=self.masks.get(window),
            documents=None if self.documents is None else self.documents[window],
        )


@dataclass(frozen=True, kw_only=True)
class Slots:
    """One layer's part of a cache for one call, which stores its tokens first, then attends to what its rows hold.

    mask_B1TL: what is seen of them; None where all rows begin with the call: they see `documents` of it.
    """

    place: CallSlots
    keys: Tensor
    values: Tensor | None
    mask_B1TL: Tensor | None
    documents: DocumentMask | None

    def attend(self, q_BTHK: Tensor, keys_BTGK: Tensor, values_BTGK: Tensor) -> Tensor:
        """Store the keys and values of the call's tokens, then (B, T, H, K) of their queries, in the cache's dtype."""
        assert self.values is not None
        stored = zip((self.keys, self.values), (keys_BTGK, values_BTGK), strict=True)
        return self.look(q_BTHK.to(self.keys.dtype), *(self._store(s, new) for s, new in stored))

    def look(self, q_BTHK: Tensor, keys_BTGK: Tensor, values_BTGK: Tensor) -> Tensor:
        """The same where the keys and values are stored already; all in the cache's dtype."""
        assert self.values is not None
        if self.mask_B1TL is None:
            return attention(q_BTHK, keys_BTGK, values_BTGK, self.documents)
        k_BGLK, v_BGLK = (self._held(s, self.mask_B1TL) for s in (self.keys, self.values))
        return cached_attention(q_BTHK, k_BGLK, v_BGLK, self.mask_B1TL)

    def write_latent(self, joint_BT1K: Tensor) -> Tensor:
        """Store the compressed vectors of the call's tokens, joined with their shared keys; returns those of its rows
        (B, 1, L, K), which are the call's own where all begin with it."""
        new_BT1K = self._store(self.keys, joint_BT1K)
        return new_BT1K.transpose(1, 2) if self.mask_B1TL is None else self._held(self.keys, self.mask_B1TL)

    def _store(self, stored: Tensor, new_BTGK: Tensor) -> Tensor:
        """Returns what was stored, in its dtype."""
        new_BTGK, lines = new_BTGK.to(stored.dtype), stored.view(-1, stored.shape[-1])
        lines.index_copy_(0, self.place.slots_M, new_BTGK.reshape(-1, stored.shape[-1]))
        return new_BTGK

    def _held(self, stored: Tensor, mask_B1TL: Tensor) -> Tensor:
        """(B, G, L, K) of the call's rows."""
        rows = self.place.rows_B
        return stored[slice(0, len(mask_B1TL)) if rows is None else rows, :, : mask_B1TL.shape[-1]]
