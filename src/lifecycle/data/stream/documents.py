"""Documents of one source read from its files as they are: dealt to streams, shuffled, judged, tokenised.

    rows of the stream in a block (`dealer.py`) -> shuffled -> texts of the usable ones -> ids

Its state is where the block began and how many of its documents were given out, so a resume reads one block again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.data.clean import contamination_report
from lifecycle.data.clean.bad_rows import BAD, refuse_broken
from lifecycle.data.clean.filter_row import HELD_OUT, judge
from lifecycle.data.clean.source import Source
from lifecycle.data.read.quarantine import quarantine
from lifecycle.data.read.rows.readers import Position, RawRow
from lifecycle.data.stream.dealer import START, Dealer, Place, Share
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.errors import UserError

Encode = Callable[[list[str]], Sequence[NDArray[np.int32]]]
ENCODE_AT_ONCE = 64  # texts tokenised together: enough to amortise the call, few enough to start soon


def place_in(state: dict[str, Any] | None) -> Place:
    """Where the stream of a state reads on; the beginning without one."""
    return Place(state["epoch"], state["block"], Position(*state["position"]), state["passed"]) if state else START


class RawDocuments:
    """Documents of `source` that stream `stream` reads; see the module's text.

    `held` chooses the side of the held-out split: False gives training documents, True validation documents.
    """

    def __init__(
        self,
        dealer: Dealer,
        encode: Encode,
        *,
        stream: int,
        held: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.source, self.name = dealer.source, dealer.source.name
        self._dealer, self._encode, self._stream, self._held = dealer, encode, stream, held
        known = self.source.left_out_counts if stream == 0 else {}
        self._counts = Counter(state["counts"] if state else known)
        self._at = place_in(state)  # where it reads on
        self._anchor, self._begun_at = self._mark(), self._at.epochs  # where the current block began
        self.max_epochs = self.source.spec.max_epochs
        self._empty_passes = 0
        self._texts: list[str] = []
        self._ready: deque[NDArray[np.int32]] = deque()
        self._index = 0
        if state and state["index"]:
            self._read_share()
            self._index = state["index"]

    @classmethod
    def alone(
        cls, source: Source, encode: Encode, *, seed: int, buffer: int, shuffle: bool = True, held: bool = False
    ) -> RawDocuments:
        """All documents of one side of a source, as a single stream reads them."""
        dealer = Dealer(source, at={0: START}, streams=1, seed=seed, buffer=buffer, shuffle=shuffle)
        return cls(dealer, encode, stream=0, held=held)

    def next(self) -> NDArray[np.int32]:
        """Ids of the next document with its marks; raises `Exhausted` past the source's `max_epochs`."""
        if self._is_used_up():
            raise Exhausted(self.name)
        while not self._ready:
            if self._index >= len(self._texts):
                self._read_block()
            chunk = self._texts[self._index : self._index + ENCODE_AT_ONCE]
            self._ready.extend(self._encode(chunk))
        self._index += 1
        return self._ready.popleft()

    def texts(self) -> Iterator[str]:
        """The texts themselves, untokenised, until the source is exhausted."""
        while True:
            try:
                self._read_block()
            except Exhausted:
                return
            for text in self._texts:
                self._index += 1
                yield text

    def state(self) -> dict[str, Any]:
        """Plain state: where the current block began, and how many of its documents were given out."""
        if self._index >= len(self._texts):  # the block is used up: the next one begins where the reader stands
            return self._mark() | {"index": 0}
        return self._anchor | {"index": self._index}

    def totals(self) -> dict[str, Any]:
        """Rows read in the first pass, dropped and bad ones among them by reason, and passes given out."""
        return {"epochs": self._epochs(), "counts": dict(self._counts)}

    def _epochs(self) -> float:
        given = self._index / len(self._texts) if self._texts else 1.0
        return self._begun_at + given * (self._at.epochs - self._begun_at)

    def _is_used_up(self) -> bool:
        """Whether so much of the last pass is given out as `max_epochs` has beside whole ones: of 1.5, half of it."""
        cap = self.max_epochs
        return cap is not None and self._anchor["epoch"] >= int(cap) and self._epochs() >= cap

    def _mark(self) -> dict[str, Any]:
        return {
            "epoch": self._at.epoch,
            "block": self._at.block,
            "position": list(self._at.position),
            "passed": self._at.passed,
            "counts": dict(self._counts),
        }

    def _read_block(self) -> None:
        """Read the next block in which the stream has a document; raises `Exhausted` behind the last pass."""
        while True:
            if self.max_epochs is not None and self._at.epoch >= self.max_epochs:
                raise Exhausted(self.name)
            share = self._read_share()
            if self._texts:
                self._empty_passes = 0
                return
            # A stream of few rows may have none that is usable; the source must have one.
            self._empty_passes += share.after.epoch - share.begin.epoch
            if self._empty_passes > 1 and not self._dealer.has_usable(held=self._held):
                raise UserError(self._nothing_usable())

    def _read_share(self) -> Share:
        self._anchor, self._begun_at = self._mark(), self._at.epochs
        share = self._dealer.share(self._stream)
        self._texts, self._index = self._usable_texts(share), 0
        self._ready.clear()
        self._at = share.after
        return share

    def _usable_texts(self, share: Share) -> list[str]:
        begin = share.begin
        order = self._dealer.deal.order(begin.epoch, begin.block, self._stream, len(share.rows))
        texts = [self._usable(share.rows[i], share) for i in order]
        if share.after.epoch > begin.epoch:
            refuse_broken(self.source, self._counts, before=share.places, at_end=True)
        return [text for text in texts if text is not None]

    def _usable(self, raw: RawRow, share: Share) -> str | None:
        """The row's text, or None if it is bad, filtered out, or on the other side of the held-out split."""
        if self._dealer.reading is not None:
            self._dealer.reading(raw.ordinal, raw.line)
        text, verdict, contaminated, _ = judge(raw, self.source)
        if share.begin.epoch == 0:  # later passes meet the same rows again
            self._counts[verdict] += 1
            if contaminated and self.source.contaminated is not None:
                contamination_report.record(self.source.contaminated, raw, contaminated)
        if verdict.startswith(BAD):
            if share.begin.epoch == 0 and self.source.quarantine is not None:
                quarantine(self.source.quarantine, raw, verdict.removeprefix(BAD))
            refuse_broken(self.source, self._counts, before=share.places, at_end=False)
        return text if (verdict == HELD_OUT) == self._held else None

    def _nothing_usable(self) -> str:
        counts = ", ".join(f"{k.rstrip(':')} {n}" for k, n in sorted(self._counts.items())) or "no rows at all"
        side = "validation" if self._held else "training"
        return (
            f"data.sources.{self.name} has no usable {side} row in {len(self.source.files)} file(s) ({counts}): "
            "check path, format, fields and filters"
        )
