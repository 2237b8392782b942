"""The device side of sampling: prefill writes prompts into the cache, a decode step draws the next token of sequences.

A row is a row of the cache, with the sequence that is decoded in it. The table of rows is kept on the device, which
advances it; the host sends it again only when sequences begin or end. Model and draw change nothing but the cache, so
that they can be compiled; a step that is recorded as a CUDA graph also notes what it drew, and advances the table.

Shapes: S rows of the cache, B rows of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lifecycle.batch import Kept, listed
from lifecycle.model import Cache, Decoder, ModelConfig
from lifecycle.rollout.cache_room import Room, bucket
from lifecycle.rollout.decoder.backend import DecodeBackend, as_sampled
from lifecycle.rollout.decoder.shared_prefix import SharedPrefix, shared_prefix
from lifecycle.rollout.output import Collected
from lifecycle.rollout.sampling.draw import Drawn, draw
from lifecycle.rollout.sampling.fused_draw import fused_uniforms
from lifecycle.rollout.sampling.noted import Noted, advance
from lifecycle.rollout.sampling.on_device import DeviceSampling, Form
from lifecycle.rollout.sampling.parameters import Sampling, uniforms
from lifecycle.rollout.sampling.row_sets import RowSets
from lifecycle.rollout.scheduler import NUMBER, PLACE, POSITION, SEED, TOKEN, Chunk, Ints, Move, power
from lifecycle.rollout.weights_version import Version

FORMS = 4
"""Forms of sampling settings whose recorded graphs are kept."""

FINE = 8
"""Positions attended to are rounded up to a multiple of this where a new shape costs nothing."""


def prefill_tokens(device: torch.device) -> int:
    """Tokens of prompts in one forward pass: a GPU has computed fewer before the host has launched what comes next."""
    return 8192 if device.type == "cuda" else 1024


class DecodeStep:
    """The step of one model over `slots` rows.

    graphs: each pair of (rows, positions attended to) is recorded once as a CUDA graph for each form of the sampling
    settings, over a cache that has its whole room from the beginning. compiled: one compiled program for all of them;
    with both, the compiled program is recorded. On a CPU the draw is not compiled: run eagerly, it reads numbers to
    choose faster ways.
    """

    def __init__(
        self, decode: DecodeBackend, *, slots: int, device: torch.device, compiled: bool, graphs: bool
    ) -> None:
        self.decode = decode
        self.cache: Cache | None = None
        self._slots, self._device, self._compiled, self._graphs = slots, device, compiled, graphs
        self._table = torch.zeros(5, slots, dtype=torch.long, device=device)
        # not bound: a step that held itself would keep its cache until the next collection, through a whole update
        self._logits, self._compute = DecodeStep._eager_logits, DecodeStep._eager
        if compiled and device.type == "cpu":
            self._logits = torch.compile(DecodeStep._eager_logits)
        elif compiled:
            self._compute = torch.compile(DecodeStep._eager)
        self._recorded: dict[tuple[Form, int, int, bool], tuple[torch.cuda.CUDAGraph, Drawn]] = {}
        self._noted = Noted(slots, device)
        self._forms: dict[Form, DeviceSampling] = {}
        self._version: Version | None = None
        self._room: Room | None = None
        self._settings: DeviceSampling | None = None
        self._with_sets = True
        self._seen: Tensor | None = None
        self._ever_seen: Tensor | None = None
        self._shared: SharedPrefix | None = None

    def make_room(self, room: Room, config: ModelConfig, dtype: torch.dtype) -> None:
        """A cache for a call. The last one is kept if it is large enough, else freed before the new one is allocated.

        Errors: `UserError` where the device has no room for all that the call may need.
        """
        if self._graphs:  # one that grew would have to be recorded again
            room = replace(room, now=room.most)
        self._room, cache = room, self.cache
        held = 0 if cache is None else cache.rows * (cache.capacity + 1) * cache.bytes_per_position
        room.check(config, dtype, self._device, held=held)
        if cache is not None and cache.rows >= room.rows and cache.capacity >= room.now:
            return
        cache = self.cache = None
        self._recorded.clear()
        self.cache = Cache.empty(config, rows=room.rows, capacity=room.now, device=self._device, dtype=dtype)

    def _grow(self, positions: int) -> None:
        """Enlarge the cache, if need be, to rows of `positions` positions."""
        assert self.cache is not None and self._room is not None
        if positions > self.cache.capacity:
            self._recorded.clear()
            self.cache.grow(self._room.after(self.cache.capacity, positions), rows=self._room.rows)

    def set_sampling(self, sampling: Sampling, *, vocab: int) -> None:
        """Set the sampling parameters of the next steps; recorded graphs stay valid for parameters of the same form."""
        settings = DeviceSampling(sampling, vocab=vocab, device=self._device)
        if settings.form not in self._forms and len(self._forms) == FORMS:
            self._forms.clear()
            self._recorded.clear()
        self._settings = self._forms.setdefault(settings.form, settings)
        self._settings.take(settings)
        if settings.form.penalised and self._ever_seen is None:
            self._ever_seen = torch.zeros(self._slots, vocab, dtype=torch.bool, device=self._device)
        self._seen = self._ever_seen if settings.form.penalised else None

    def refresh(self, version: Version) -> None:
        """Lay out the model's weights again, unless `version` is certainly that of the last call."""
        last, self._version = self._version, version
        if last is None or version.surely_is(last):  # it is made with the weights of the first call
            return
        self.decode.refresh()
        if version.addresses != last.addresses:
            self._recorded.clear()

    def set_table(self, table: Ints, entered: Mapping[int, Sequence[int]]) -> None:
        """Send the table of the first rows (see scheduler.py). entered: row -> prompt of the sequences that began."""
        self._table[:, : table.shape[1]] = torch.from_numpy(table).to(self._device)
        if self._seen is not None:
            for row, prompt in entered.items():
                self._seen[row] = False
                self._seen[row, torch.tensor(prompt, device=self._device)] = True

    def share(self, groups: Mapping[int, list[int]], prompts: Sequence[Sequence[int]]) -> None:
        """Set the shared prefixes: samples of a prompt read it from one row. groups: prompt -> its active rows; empty:
        none."""
        if self.decode.shares_prefix:
            self._shared = shared_prefix(groups, {prompt: len(prompts[prompt]) - 1 for prompt in groups})

    def copy(self, moves: Sequence[Move]) -> None:
        """Copy the positions of the moves, all at once from the present cache."""
        if not moves:
            return
        assert self.cache is not None
        sources = torch.tensor([move.source for move in moves], device=self._device)
        targets = torch.tensor([move.target for move in moves], device=self._device)
        self.cache.copy_rows(sources, targets, length=max(move.length for move in moves))
        if self._seen is not None:
            self._seen[targets] = self._seen[sources]

    def prefill(self, model: Decoder, chunk: Chunk, *, width: int) -> None:
        """Write a chunk into the cache, `width` positions a line; a line is padded behind its ids."""
        assert self.cache is not None
        ids = np.zeros((len(chunk.rows), width), np.int64)
        positions = np.full_like(ids, -1)
        for line, (whole, start) in enumerate(zip(chunk.ids, chunk.starts, strict=True)):
            part = whole[start : min(start + width, len(whole) - 1)]
            ids[line, : len(part)] = part
            positions[line, : len(part)] = np.arange(start, start + len(part))
        end = int(positions.max()) + 1
        self._grow(end)  # there is room for all prompts, and not for what sequences are told
        self.cache.limit, self.cache.begins = min(bucket(end), self.cache.capacity), not any(chunk.starts)
        ids_BT, positions_BT = (torch.from_numpy(x).to(self._device) for x in (ids, positions))
        if self.decode.prefill is not None:
            self.decode.prefill(ids_BT, positions_BT, self.cache, self._rows(chunk.rows))
            return
        with as_sampled(model):
            model(ids_BT, positions_BT, cache=self.cache, rows=self._rows(chunk.rows))

    def _rows(self, rows: Sequence[int]) -> Tensor | slice:
        """Rows of the cache; a slice where they follow on one another, which reads them without a copy."""
        first, count = rows[0], len(rows)
        follows = list(rows) == list(range(first, first + count))
        return slice(first, first + count) if follows else torch.tensor(rows, device=self._device)

    def empty_pass(self, model: Decoder) -> None:
        """A forward pass over padding alone, which takes part in the collectives of the other ranks."""
        assert self.cache is not None
        nothing = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        self.cache.limit, self.cache.begins = min(bucket(1), self.cache.capacity), False
        with as_sampled(model):
            model(nothing, nothing - 1, cache=self.cache)

    def run(self, rows: int, longest: int, out: Collected, *, steps: int = 1) -> Ints:
        """Some decode steps of the first `rows` rows, the longest of which will hold `longest` positions behind the
        first. Returns their tokens (steps, rows) on the host, which looks once; what was drawn is added to `out`."""
        self._grow(longest + steps - 1)
        self._with_sets = out.with_sets
        wide = min(power(rows), self._slots) if self._graphs or self._compiled else rows
        limits = [self._limit(longest + number) for number in range(steps)]
        drawn = self._replayed(wide, limits, out) if self._graphs else self._computed(wide, limits, out)
        told = torch.stack([_asked(one, wide, out) for one in drawn]).cpu()
        _keep(drawn, told, out)
        tokens: Ints = told[:, 0, :rows].numpy()
        return tokens

    def _computed(self, rows: int, limits: Sequence[int], out: Collected) -> list[Drawn]:
        """A step for each of `limits`, positions that it looks at."""
        drawn = []
        for limit in limits:
            drawn.append(self._compute(self, rows, limit))
            self._note(self._table[:, :rows], drawn[-1], out)
        return drawn

    def _replayed(self, rows: int, limits: Sequence[int], out: Collected) -> list[Drawn]:
        """The same by recorded steps; what they drew is added to `out` at once, behind the last."""
        sets, steps = list[Kept | RowSets | Tensor | None](), len(limits)
        self._noted.restart()
        for limit in limits:
            kept = self._replay(rows, limit).kept if out.with_sets else None
            if isinstance(kept, RowSets):
                kept = self._noted.sets(len(sets), rows)
            elif isinstance(kept, Tensor) and len(sets) + 1 < steps:  # the next replay writes over it
                kept = kept.clone()
            sets.append(kept)
        ids_TB, facts_TBF = self._noted.first(steps, rows)
        table = self._table[:, :rows]
        ago_T1 = torch.arange(steps, 0, -1, device=self._device)[:, None]
        numbers_TB = table[NUMBER] - ago_T1 * (table[POSITION] >= 0)
        experts = self._noted.experts(steps, rows)
        out.add(table[PLACE].expand_as(numbers_TB), numbers_TB, ids_TB, facts_TBF, experts)
        return [Drawn(*of_one) for of_one in zip(ids_TB, *facts_TBF.unbind(-1), sets, strict=True)]

    def _limit(self, longest: int) -> int:
        """How many positions a step looks at: one of few numbers where a new one costs much."""
        assert self.cache is not None
        few = self._graphs or self._compiled
        return min(bucket(longest) if few else -(-longest // FINE) * FINE, self.cache.capacity)

    def tiles(self, table: Ints, out: Collected, size: int) -> Ints:
        """The same for all rows, in tiles of `size` rows that read equally many positions: the shape of what is
        computed for a row then follows from its own position alone."""
        self._grow(int(table[POSITION].max()) + 1)
        self._with_sets = out.with_sets
        looked_at: dict[int, list[int]] = {}
        for row in np.flatnonzero(table[POSITION] >= 0).tolist():
            looked_at.setdefault(bucket(int(table[POSITION, row]) + 1), []).append(row)
        tokens = np.zeros(table.shape[1], np.int64)
        for limit, rows in looked_at.items():
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                index = torch.tensor(part + part[:1] * (size - len(part)), device=self._device)
                tile = self._table[:, index]
                tile[POSITION, len(part) :] = -1
                drawn = self._draw(tile, index, self._eager_logits(tile, index, limit))
                n = len(part)
                self._note(tile[:, :n], drawn, out, index[:n])
                self._table[:, index[:n]] = tile[:, :n]
                asked = _asked(drawn, n, out).cpu()
                _keep([drawn], asked[None], out)
                tokens[part] = asked[0].numpy()
        return tokens

    def _note(self, table: Tensor, drawn: Drawn, out: Collected, rows: Tensor | None = None) -> None:
        """Add what was drawn for the first rows, those of `table`, to `out`, and advance the active rows."""
        n = table.shape[1]
        ids, facts = drawn.ids[:n], torch.stack(drawn[1:4], dim=-1)[:n].float()
        visited = self.decode.visited
        out.add(table[PLACE], table[NUMBER], ids, facts, None if visited is None else visited[:n])
        advance(table, ids, self._seen, torch.arange(n, device=self._device) if rows is None else rows)

    def _eager(self, rows: int, limit: int) -> Drawn:
        table = self._table[:, :rows]
        return self._draw(table, None, self._logits(self, table, None, limit))

    def _eager_logits(self, table: Tensor, index: Tensor | None, limit: int) -> Tensor:
        """(B, V) for the rows of `table`, which are rows `index` of the cache."""
        assert self.cache is not None
        self.cache.limit, self.cache.begins = limit, False
        return self.decode(table[TOKEN][:, None], table[POSITION][:, None], self.cache, index, self._shared)

    def _draw(self, table: Tensor, index: Tensor | None, logits_BV: Tensor) -> Drawn:
        assert self._settings is not None
        seen = None
        if self._seen is not None:
            seen = self._seen[: len(logits_BV)] if index is None else self._seen[index]
        u_B = (fused_uniforms if self._settings.has_kernels else uniforms)(table[SEED], table[NUMBER])
        return draw(logits_BV, u_B, self._settings, seen_RV=seen, sets=self._with_sets)

    def _replay(self, rows: int, limit: int) -> Drawn:
        assert self._settings is not None
        shape = self._settings.form, rows, limit, self._with_sets
        if shape not in self._recorded:
            # compilers and libraries set themselves up at their first call, which a graph may not hold
            drawn = self._compute(self, rows, limit)
            self._noted.set_up(self._table, drawn, self._seen, self.decode.visited)
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            # one pool of memory: graphs run one after the other, so what one computes with is free for the next
            with torch.cuda.graph(graph, pool=next((other.pool() for other, _ in self._recorded.values()), None)):
                drawn = self._compute(self, rows, limit)
                self._noted.note(self._table[:, :rows], drawn, self._seen, self.decode.visited)
            self._recorded[shape] = graph, drawn
        graph, drawn = self._recorded[shape]
        graph.replay()
        return drawn


def _asked(drawn: Drawn, rows: int, out: Collected) -> Tensor:
    """(1 or 2, B), everything that the host reads in one transfer: the tokens of some rows, and the sizes of their kept
    sets where these are on the device."""
    ids = drawn.ids[:rows]
    if not isinstance(drawn.kept, Tensor | RowSets) or not out.with_sets:
        return ids[None]
    kept = drawn.kept
    return torch.stack((ids, kept.counts_L[:rows] if isinstance(kept, RowSets) else listed(kept[:rows]).sum(-1)))


def _keep(drawn: Sequence[Drawn], asked: Tensor, out: Collected) -> None:
    """Add the kept sets of some steps to `out`, without another transfer from the device. asked: `_asked` of each."""
    sets, rows = [one.kept for one in drawn if out.with_sets], asked.shape[-1]
    ours = [kept.first(rows) for kept in sets if isinstance(kept, RowSets)]
    if ours:
        return out.keep(RowSets.joined(ours).kept(asked[:, 1].flatten()))
    for kept, of_one in zip(sets, asked, strict=False):
        if isinstance(kept, Tensor):
            out.keep(Kept.of_mask(kept[:rows], of_one[1]))
        elif isinstance(kept, Kept):
            out.keep(kept.first(rows))
