"""Pairs of similar sets among very many: MinHash signatures, banded so that similar ones meet (LSH).

A signature holds, for each of K random hash functions, the least hash of the set's elements; two sets agree in a
component with probability J, their Jaccard similarity (Broder 1997). Cut into b bands of r components, two signatures
share a band with probability 1 - (1 - J^r)^b (Rajaraman & Ullman, Mining of Massive Datasets, section 3.4). Pairs that
share one are then compared by whole signatures.

Letters: N sets, K permutations, P pairs. Signatures may lie on disk: a band is one pass over them, and about 60 bytes
a set and another 65 a similar pair are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

SEED = 1
ALGORITHM = int(RMinHash.ALGORITHM_VERSION)  # signatures of another version cannot be compared with these
PAIRING = 2  # of `similar_pairs`: pairs that were kept by another version are formed again
RECALL = 0.99  # a pair at the threshold shares a band with at least this probability
ROUNDS = 8  # comparisons of a set within one band at most: keeps the cost linear where a band holds very many
AT_ONCE = 1 << 14  # pairs, and sets, worked on together


def signatures(sets: Sequence[NDArray[np.uint64]], permutations: int) -> NDArray[np.uint32]:
    """(N, K) signatures of N sets of element hashes; the hash functions are the same in every call."""
    if not sets:
        return np.zeros((0, permutations), np.uint32)
    offsets = np.cumsum([0, *(len(elements) for elements in sets)]).astype(np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(sets), offsets, permutations, SEED)
    return np.array(matrix.to_rows(), np.uint32)


def bands(permutations: int, threshold: float) -> tuple[int, int]:
    """Number b of bands and their width r: the widest with which a pair at the threshold shares one (see RECALL)."""
    for width in range(permutations, 1, -1):
        count = permutations // width
        if 1 - (1 - threshold**width) ** count >= RECALL:
            return count, width
    return permutations, 1


@dataclass(frozen=True)
class Signatures:
    """N signatures in several arrays one after another, such as one memory-mapped file a source."""

    parts: Sequence[NDArray[np.uint32]]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, index_P: NDArray[np.int64]) -> NDArray[np.uint32]:
        """(P, K): the signatures with these numbers."""
        out = np.empty((len(index_P), self.parts[0].shape[1]), np.uint32)
        first = 0
        for part in self.parts:
            here = (index_P >= first) & (index_P < first + len(part))
            out[here] = part[index_P[here] - first]
            first += len(part)
        return out

    def band(self, first: int, last: int) -> NDArray[np.uint64]:
        """(N,) one hash of the components first..last-1 of every signature."""
        keys, at = np.zeros(len(self), np.uint64), 0
        for part in self.parts:
            for start in range(0, len(part), AT_ONCE):
                block = part[start : start + AT_ONCE, first:last].astype(np.uint64)
                key = np.zeros(len(block), np.uint64)
                for column in block.T:
                    key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
                    key ^= key >> np.uint64(29)
                keys[at : at + len(block)] = key
                at += len(block)
        return keys


def similar_pairs(signatures: Signatures, threshold: float) -> NDArray[np.int64]:
    """(P, 2) numbers i < j of sets whose estimated similarity reaches `threshold`, by j and then i.

    Not every pair of a cluster is formed: within a band, sets that are similar to the first one are paired with it
    alone. These pairs are enough for `repeated`: where that first set is dropped itself, the sets that were paired with
    it are compared again.
    """
    size = len(signatures)
    if size < 2:
        return np.zeros((0, 2), np.int64)
    stay = doubtful = np.arange(size)
    found = np.zeros(0, np.int64)  # j * N + i
    while len(doubtful):
        known = len(found)
        found = _through_bands(signatures, threshold, found, stay, doubtful)
        if len(found) == known:
            break
        stay, doubtful = _standing(found, size)
    return np.stack([found % size, found // size], axis=1)


def repeated(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The later numbers of `pairs` (i < j, by j) whose earlier one stays, decided in order; ascending."""
    gone = bytearray(int(pairs.max(initial=-1)) + 1)
    for at in range(0, len(pairs), AT_ONCE):  # as Python's own numbers all of them would take 150 bytes a pair
        for earlier, later in pairs[at : at + AT_ONCE].tolist():
            if not gone[earlier]:
                gone[later] = 1
    return np.flatnonzero(np.frombuffer(gone, np.uint8))


def _standing(found: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of `size` sets, the numbers of those that stay; and among these, of those similar to a dropped set: since the set
    that they were paired with is gone, another similar one may not have been found yet."""
    gone = np.zeros(size, bool)
    gone[repeated(np.stack([found % size, found // size], axis=1))] = True
    paired = np.unique(found // size)
    return np.flatnonzero(~gone), paired[~gone[paired]]


def _through_bands(
    signatures: Signatures,
    threshold: float,
    found: NDArray[np.int64],
    among: NDArray[np.int64],
    about: NDArray[np.int64],
) -> NDArray[np.int64]:
    """`found` and the codes of more similar pairs: of the sets `among` that share a band with one of `about`."""
    count, width = bands(signatures.parts[0].shape[1], threshold)
    for band in range(count):
        keys = signatures.band(band * width, (band + 1) * width)
        near = among if len(about) == len(among) else among[np.isin(keys[among], keys[about])]
        found = np.union1d(found, _meet(signatures, keys, near, threshold, found))
    return found


def _meet(
    signatures: Signatures,
    keys: NDArray[np.uint64],
    among: NDArray[np.int64],
    threshold: float,
    known: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Codes j * N + i of the similar pairs among the sets `among` (ascending) with equal keys."""
    size, out = len(keys), [np.zeros(0, np.int64)]
    member = among[np.argsort(keys[among], kind="stable")]
    group = keys[member]
    for _ in range(ROUNDS):
        starts = np.append(True, group[1:] != group[:-1])
        rest = ~starts
        first = np.repeat(member[starts], np.diff(np.append(np.flatnonzero(starts), len(group))))
        earlier, later = first[rest], member[rest]
        code = later * size + earlier
        similar = _contained(code, known)
        similar[~similar] = _similarity(signatures, earlier[~similar], later[~similar]) >= threshold
        out.append(code[similar])
        member, group = later[~similar], group[rest][~similar]  # those unlike the first are compared with each other
        if len(member) < 2:
            break
    return np.concatenate(out)


def _contained(codes: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `codes` are among the ascending `known`; np.isin would sort both, at five times the memory."""
    if not len(known):
        return np.zeros(len(codes), bool)
    return known[np.minimum(np.searchsorted(known, codes), len(known) - 1)] == codes


def _similarity(signatures: Signatures, left_P: NDArray[np.int64], right_P: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) estimated Jaccard similarity: the share of equal components."""
    out = np.zeros(len(left_P))
    for at in range(0, len(left_P), AT_ONCE):
        part = slice(at, at + AT_ONCE)
        out[part] = (signatures.take(left_P[part]) == signatures.take(right_P[part])).mean(axis=1)
    return out
