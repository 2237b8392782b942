"""Contamination: training documents that hold items of evaluation sets, found by n-grams of words.

An item's question (of plain text: all of it) is cut into its distinct n-grams of words (13 by default, as in GPT-3,
arXiv 2005.14165, appendix C); an item of fewer words is one n-gram, whole. A document is contaminated by an item when
at least `share` of the item's n-grams stand in it. One n-gram in common (share 0) is GPT-3's rule; sets written in
formulas ("which of the following is the most appropriate next step in ...") need a share, as in Tulu 3
(arXiv 2411.15124, section 7.1); else documents that share only such a formula with an item are dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lifecycle.bounds import Count, Share
from lifecycle.data.quality.ngrams import ngrams, word_hashes, words
from lifecycle.data.read.files.listing import File, fingerprint, hashed, listing
from lifecycle.data.read.in_words import item_text
from lifecycle.data.read.recognise import recognised
from lifecycle.data.read.rows.readers import BadRow, Position, parse, rows
from lifecycle.data.read.spec import SampleBy, SourceSpec
from lifecycle.errors import UserError

RULE = ("ngram", "share", "min_words")
SIEVE_BITS = 22  # a table of 4 MB that rules out nearly every n-gram which no item has


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Where the items of an evaluation set lie and how their rows are read: keys as of a source.

    ngram, share, min_words: the rule of this set; None: the value for all sets.
    """

    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    path: str | list[str] | dict[str, str | list[str]] | None = None
    split: str = "test"
    format: str = "text"
    fields: dict[str, str | list[str]] = field(default_factory=dict)
    sample_by: SampleBy = "line"
    encoding: str = "utf-8"
    ngram: Count | None = None
    share: Share | None = None
    min_words: Count | None = None

    def spec(self) -> SourceSpec:
        """The spec of a source that is read once and never trained on."""
        return SourceSpec(
            hub=self.hub,
            config=self.config,
            revision=self.revision,
            path=self.path,
            split=self.split,
            format=self.format,
            fields=self.fields,
            sample_by=self.sample_by,
            encoding=self.encoding,
            validation=None,
        )


@dataclass(frozen=True, kw_only=True)
class Decontaminate:
    """Evaluation sets whose items no training document may hold, and the share of an item that counts as holding it.

    sets: evaluation sets by name. ngram: words of an n-gram. share: of an item's n-grams that must stand in a document;
    0: one is enough. min_words: items of fewer words are not looked for (ordinary prose holds them by chance).
    """

    sets: dict[str, EvaluationSet]
    ngram: Count = 13
    share: Share = 0.5
    min_words: Count = 8

    def check(self) -> None:
        """Raise UserError for the first value that is not valid."""
        if not self.sets:
            raise UserError("data.decontaminate.sets is empty: name an evaluation set, or set data.decontaminate=null")
        for name, one in self.sets.items():
            one.spec().check(name, where=f"data.decontaminate.sets.{name}")

    def of(self, one: EvaluationSet) -> Decontaminate:
        """The rule for one set: its own values, else those for all sets."""
        own = {key: value for key in RULE if (value := getattr(one, key)) is not None}
        return replace(self, sets={}, **own)


class Found(NamedTuple):
    """An item that stands in a document: its set, its row's number there, the share of it, and one n-gram of both."""

    set: str
    item: int
    share: float
    ngram: str


@dataclass(frozen=True)
class _Table:
    """The n-grams of one length n: sorted hashes, each with the number of the item that has it."""

    n: int
    grams: NDArray[np.uint64]
    items: NDArray[np.int64]
    sieve: NDArray[np.bool_]

    @classmethod
    def of(cls, n: int, grams: Sequence[NDArray[np.uint64]], items: Sequence[int]) -> _Table:
        flat = np.concatenate(grams)
        order = np.argsort(flat, kind="stable")
        sieve = np.zeros(1 << SIEVE_BITS, np.bool_)
        sieve[flat >> np.uint64(64 - SIEVE_BITS)] = True
        return cls(n, flat[order], np.repeat(np.array(items, np.int64), [len(one) for one in grams])[order], sieve)

    def hits(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(items, places): of each n-gram that the document shares with an item, the item and its first place in the
        document; each n-gram once."""
        grams = ngrams(hashes, self.n)
        places = np.flatnonzero(self.sieve[grams >> np.uint64(64 - SIEVE_BITS)])
        distinct, first = np.unique(grams[places], return_index=True)
        left, right = (np.searchsorted(self.grams, distinct, side=side) for side in ("left", "right"))
        runs = [np.arange(a, b) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
        index = np.concatenate([np.zeros(0, np.int64), *runs])
        return self.items[index], np.repeat(places[first], right - left)


@dataclass(frozen=True)
class Index:
    """The items of all evaluation sets, indexed by their n-grams. Picklable; the same in every process.

    sets: by name, items looked for (`items`), those of too few words (`short`), unusable rows (`bad`).
    key: a hash of the sets' files and the rule. By item: its set and row (`names`), the number of its n-grams
    (`sizes`), and the share of them that makes a document hold it (`shares`).
    """

    rule: Decontaminate
    sets: Mapping[str, Mapping[str, int]]
    key: str
    names: Sequence[tuple[str, int]]
    sizes: NDArray[np.int64]
    shares: NDArray[np.float64]
    tables: Sequence[_Table]

    def find(self, text: str) -> tuple[Found, ...]:
        """The items that `text` holds, in the order of the sets."""
        parts = words(text)
        hashes = word_hashes(parts)
        found = []
        for table in self.tables:
            items, places = table.hits(hashes)
            for item, count in zip(*np.unique(items, return_counts=True), strict=True):
                share = count / self.sizes[item]
                if share >= self.shares[item]:
                    place = int(places[items == item].min())
                    name, row = self.names[item]
                    gram = " ".join(parts[place : place + table.n])
                    found.append((int(item), Found(name, row, round(float(share), 4), gram)))
        return tuple(one for _, one in sorted(found))


def evaluation_index(rule: Decontaminate, *, root: str | None, cache: Path) -> Index:
    """Read the sets and index their items. Raises UserError for a set that cannot be read or has no item."""
    rule.check()
    names, sizes, shares, sets = list[tuple[str, int]](), list[int](), list[float](), dict[str, dict[str, int]]()
    grams: dict[int, list[NDArray[np.uint64]]] = {}
    owners: dict[int, list[int]] = {}
    key = hashlib.sha256(repr((rule.ngram, rule.share, rule.min_words)).encode())
    for name, one in rule.sets.items():
        where = f"data.decontaminate.sets.{name}"
        found = listing(one.spec(), name=name, root=root, cache=cache, where=where)
        spec, found = recognised(one.spec(), found, where=where, view="text")
        files = hashed(found, cache).files
        own = rule.of(one)
        differs = "" if own == replace(rule, sets={}) else f" {own!r}"
        form = (spec.format, sorted(spec.fields.items()), one.sample_by)
        key.update(f"{name} {form!r} {fingerprint(files)}{differs}".encode())
        counts = {"items": 0, "short": 0, "bad": 0}
        for row, hashes in _items(files, spec, counts):
            if len(hashes) < own.min_words:
                counts["short"] += 1
                continue
            counts["items"] += 1
            n = min(own.ngram, len(hashes))
            distinct = np.unique(ngrams(hashes, n))
            grams.setdefault(n, []).append(distinct)
            owners.setdefault(n, []).append(len(names))
            names.append((name, row))
            sizes.append(len(distinct))
            shares.append(own.share)
        if not counts["items"]:
            raise UserError(
                f"data.decontaminate.sets.{name} has no item to look for ({counts['short']} of fewer than "
                f"{own.min_words} words, {counts['bad']} unusable rows): check its path, format and fields"
            )
        sets[name] = counts
    tables = [_Table.of(n, grams[n], owners[n]) for n in sorted(grams)]
    return Index(rule, sets, key.hexdigest()[:32], names, np.array(sizes, np.int64), np.array(shares), tables)


def _items(files: tuple[File, ...], spec: SourceSpec, counts: dict[str, int]) -> Any:
    """Row number and word hashes of every item; unusable rows are counted."""
    for raw in rows(files, Position(0, 0, 0), wanted=lambda ordinal: True, on_damage=None):
        try:
            yield raw.ordinal, word_hashes(words(item_text(parse(raw), spec)))
        except BadRow:
            counts["bad"] += 1
