"""Packed rows of which each sequence is judged as a whole: pairs for DPO and reward models, single ones for KTO.

One packed forward serves all sequences. A stage takes the hidden states at `places`, which are those of the trained
tokens, and adds up what it makes of each token by sequence:

    hidden_ND = model(tokens.input_ids, tokens.position_ids, documents).flatten(0, 1)[batch.places]
    logp_N, _ = token_logprobs(hidden_ND, model.head_weight, tokens.labels.flatten()[batch.places])
    chosen_P, rejected_P = batch.sums(logp_N)

A reward model reads the hidden states at `ends` instead, of the view `comparison`. Both are made on the CPU with the
batch, so that a device is not waited for. Shapes: B rows, T positions, N trained tokens, Q sequences, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.batch.steps import TokenBatch


class Places(NamedTuple):
    """Where the sequences of packed rows stand, in flattened rows (B T).

    places: (N,) int64, positions whose label is trained. sequence: (N,) int64, the number of the sequence of each.
    ends: (Q,) int64, the last position of each sequence.
    """

    places: Tensor
    sequence: Tensor
    ends: Tensor

    @classmethod
    def of(cls, tokens: TokenBatch) -> Places:
        """Of rows on the CPU."""
        documents_BT = tokens.document_ids
        number_BT = (_before(tokens)[:, None] + documents_BT - 1).flatten()
        following_BT = F.pad(documents_BT[:, 1:], (0, 1))
        places = tokens.trained.flatten().nonzero()[:, 0]
        ends = ((documents_BT != following_BT) & (documents_BT > 0)).flatten().nonzero()[:, 0]
        return cls(places, number_BT[places], ends)

    def to(self, device: torch.device, non_blocking: bool = False) -> Places:
        """The same for who computes on `device`."""
        return Places(*(tensor.to(device, non_blocking=non_blocking) for tensor in self))

    def sums(self, values_N: Tensor) -> Tensor:
        """(Q,): what each trained token has, added up by sequence; differentiable."""
        return values_N.new_zeros(len(self.ends)).index_add(0, self.sequence, values_N)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sequences:
    """Packed rows, and where their Q sequences stand. known: (N,) log-probabilities of the trained tokens, where they
    are looked up and not computed."""

    tokens: TokenBatch
    at: Places
    known: Tensor | None = None

    @property
    def packed(self) -> TokenBatch:
        """The rows."""
        return self.tokens

    @property
    def places(self) -> Tensor:
        """(N,) int64: positions of the trained tokens in flattened rows."""
        return self.at.places

    def tokens_by_source(self, sources: int) -> Tensor:
        """(S,) float64: trained tokens."""
        return self.tokens.tokens_by_source(sources)

    def _known_on(self, device: torch.device, non_blocking: bool) -> Tensor | None:
        return None if self.known is None else self.known.to(device, non_blocking=non_blocking)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBatch(_Sequences):
    """Packed pairs, of the views `preference` and `comparison`: both sides of a pair stand in one row, the chosen one
    first, as documents 2 k + 1 and 2 k + 2 of the row.

    margin: (P,) float32, by how much the chosen one was judged better; NaN where that is not given. The sequences are
    the sides in turn, Q = 2 P.
    """

    margin: Tensor

    @classmethod
    def of(cls, tokens: TokenBatch, facts_BT: Tensor) -> PairBatch:
        """From packed rows on the CPU. facts_BT: float32, the margin at every position of a pair."""
        at = Places.of(tokens)
        return cls(tokens=tokens, margin=facts_BT.flatten()[at.ends[0::2]], at=at)

    def __len__(self) -> int:
        return len(self.margin)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """(P,) int64 each: the last position of the chosen and of the rejected side. A sequence's last token is a label
        only, so this position has seen all tokens but that one; of the view `comparison`, all tokens of the answer."""
        return self.at.ends[0::2], self.at.ends[1::2]

    def sums(self, values_N: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) each: what every trained token has, added up over the chosen and over the rejected side."""
        sums_Q = self.at.sums(values_N)
        return sums_Q[0::2], sums_Q[1::2]

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64: pairs."""
        return _count(self.tokens, self.at.ends[0::2], sources)

    def to(self, device: torch.device, non_blocking: bool = False) -> PairBatch:
        """The same batch on `device`."""
        tokens, at = self.tokens.to(device, non_blocking), self.at.to(device, non_blocking)
        known, margin = self._known_on(device, non_blocking), self.margin.to(device, non_blocking=non_blocking)
        return PairBatch(tokens=tokens, margin=margin, at=at, known=known)

    def rows(self, start: int, stop: int) -> PairBatch:
        """Rows [start, stop) with their pairs."""
        tokens = self.tokens.rows(start, stop)
        first, last = (n // 2 for n in _bounds(self.tokens, start, stop))
        return PairBatch(tokens=tokens, margin=self.margin[first:last], at=Places.of(tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpairedBatch(_Sequences):
    """Packed single completions that are good or bad ones, of the view `unpaired`.

    wanted: (Q,) bool, whether each is a good one.
    """

    wanted: Tensor

    @classmethod
    def of(cls, tokens: TokenBatch, facts_BT: Tensor) -> UnpairedBatch:
        """From packed rows on the CPU. facts_BT: float32, 1 at every position of a good one, 0 of a bad one."""
        at = Places.of(tokens)
        return cls(tokens=tokens, wanted=facts_BT.flatten()[at.ends] > 0, at=at)

    def __len__(self) -> int:
        return len(self.wanted)

    def sums(self, values_N: Tensor) -> Tensor:
        """(Q,): what every trained token has, added up by sequence."""
        return self.at.sums(values_N)

    def weight_by_source(self, sources: int) -> Tensor:
        """(S,) float64: sequences."""
        return _count(self.tokens, self.at.ends, sources)

    def to(self, device: torch.device, non_blocking: bool = False) -> UnpairedBatch:
        """The same batch on `device`."""
        tokens, at = self.tokens.to(device, non_blocking), self.at.to(device, non_blocking)
        known, wanted = self._known_on(device, non_blocking), self.wanted.to(device, non_blocking=non_blocking)
        return UnpairedBatch(tokens=tokens, wanted=wanted, at=at, known=known)

    def rows(self, start: int, stop: int) -> UnpairedBatch:
        """Rows [start, stop) with their sequences."""
        tokens = self.tokens.rows(start, stop)
        first, last = _bounds(self.tokens, start, stop)
        return UnpairedBatch(tokens=tokens, wanted=self.wanted[first:last], at=Places.of(tokens))


def _before(tokens: TokenBatch) -> Tensor:
    """(B,) int64: sequences in the rows before each row."""
    counts_B = tokens.document_ids.amax(1)
    return counts_B.cumsum(0) - counts_B


def _bounds(tokens: TokenBatch, start: int, stop: int) -> tuple[int, int]:
    """Sequences before row `start`, and before row `stop`."""
    counts_B = tokens.document_ids.amax(1)
    return int(counts_B[:start].sum()), int(counts_B[:stop].sum())


def _count(tokens: TokenBatch, ends: Tensor, sources: int) -> Tensor:
    """(S,) float64: how many of the sequences that end there are of each source."""
    return torch.bincount(tokens.source_ids.flatten()[ends], minlength=sources).double()
