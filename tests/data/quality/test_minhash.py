"""Laws of MinHash and banding: estimates around the true similarity, pairs found as all-against-all finds them."""

import math
import tracemalloc

import numpy as np
import pytest

from lifecycle.data.quality import minhash
from lifecycle.data.quality.minhash import RECALL, Signatures, bands, repeated, signatures, similar_pairs


def sets(overlap: int, size: int, seed: int) -> list[np.ndarray]:
    """Two sets of `size` elements that share `overlap`."""
    drawn = np.random.default_rng(seed).integers(0, 2**63, 2 * size - overlap, dtype=np.uint64)
    return [drawn[:size], drawn[size - overlap :]]


@pytest.mark.parametrize(("overlap", "size"), [(0, 100), (100, 200), (160, 200), (190, 200), (200, 200)])
def test_the_share_of_equal_components_estimates_the_jaccard_similarity(overlap: int, size: int) -> None:
    true, permutations = overlap / (2 * size - overlap), 512
    found = [np.equal(*signatures(sets(overlap, size, seed), permutations)).mean() for seed in range(20)]
    error = math.sqrt(true * (1 - true) / permutations / 20)
    assert abs(np.mean(found) - true) <= 4 * error + 1e-9


def test_a_signature_is_a_function_of_the_set_alone() -> None:
    one = np.array([5, 9, 12], np.uint64)
    again = signatures([np.array([12, 5, 9, 9], np.uint64), one], 32)
    assert (again == signatures([one], 32)).all()
    assert signatures([], 32).shape == (0, 32)


def test_bands_are_the_widest_that_meet_the_recall() -> None:
    # 21 bands of 6: 1 - (1 - 0.8^6)^21 = 1 - 0.737856^21 = 0.99831; 18 of 7: 1 - 0.790285^18 = 0.98553.
    assert bands(128, 0.8) == (21, 6)
    assert bands(128, 1.0) == (1, 128)
    for threshold in (0.3, 0.5, 0.9):
        count, width = bands(128, threshold)
        assert 1 - (1 - threshold**width) ** count >= RECALL
        assert 1 - (1 - threshold ** (width + 1)) ** (128 // (width + 1)) < RECALL


def test_banding_finds_the_clusters_that_comparing_all_with_all_finds() -> None:
    rng = np.random.default_rng(4)
    many = []
    for _ in range(120):  # families of one to four documents: the first, and copies with some elements replaced
        first = rng.integers(0, 2**63, 300, dtype=np.uint64)
        many.append(first)
        for _ in range(int(rng.integers(0, 4))):
            copy = first.copy()
            copy[: int(rng.choice([0, 3, 8, 60, 150]))] += np.uint64(rng.integers(1, 1000))
            many.append(copy)
    order = rng.permutation(len(many))
    signed = signatures([many[i] for i in order], 128)
    similar = [
        (i, j) for j in range(len(signed)) for i in range(j) if (signed[i] == signed[j]).mean() >= 0.8
    ]  # in the order of j, then i
    pairs = similar_pairs(Signatures([signed[:100], signed[100:]]), 0.8)
    assert set(map(tuple, pairs.tolist())) <= set(similar)
    assert repeated(pairs).tolist() == repeated(np.array(similar)).tolist()
    assert len(repeated(pairs)) > 50


def test_a_row_goes_only_where_one_that_stays_resembles_it() -> None:
    # A~B, B~C, but not A~C: B goes for A; C stays, because B is not there any more.
    assert repeated(np.array([[0, 1], [1, 2]])).tolist() == [1]
    assert repeated(np.array([[0, 1], [0, 2], [1, 2], [2, 3]])).tolist() == [1, 2]
    assert repeated(np.zeros((0, 2), np.int64)).tolist() == []


def test_two_copies_do_not_both_stay_because_what_stood_before_them_went() -> None:
    # 21 bands of 6 of 128 components; similar: at least 103 equal. `copy` differs from `first` once in every band and
    # six times in the third; either go-between is that copy but for one band, which it has of `first`.
    first = np.zeros(128, np.uint32)
    copy = first.copy()
    copy[[*range(0, 126, 6), *range(13, 18)]] = 1
    between = [copy.copy(), copy.copy()]
    between[0][0:6] = between[1][6:12] = 0
    signed = np.stack([first, *between, copy, copy])
    agree = [int((signed[i] == signed[j]).sum()) for i, j in ((0, 1), (0, 2), (1, 3), (2, 3), (0, 3))]
    assert agree == [103, 103, 127, 127, 102] and bands(128, 0.8) == (21, 6)
    # in every band the copies meet a go-between first, and both go-betweens go for `first`
    assert repeated(similar_pairs(Signatures([signed]), 0.8)).tolist() == [1, 2, 4]


def test_ten_thousand_copies_of_one_text_are_compared_with_the_first_alone() -> None:
    one = np.random.default_rng(0).integers(0, 2**32, (1, 128), dtype=np.uint32)
    pairs = similar_pairs(Signatures([np.repeat(one, 10_000, axis=0)]), 0.8)
    assert pairs[:, 0].max() == 0 and pairs[:, 1].tolist() == list(range(1, 10_000))


def test_no_pairs_among_none_or_one() -> None:
    for count in (0, 1):
        assert len(similar_pairs(Signatures([np.zeros((count, 16), np.uint32)]), 0.8)) == 0


def test_memory_is_as_documented_where_half_of_the_documents_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "AT_ONCE", 1 << 9)
    rng = np.random.default_rng(0)
    signed = rng.integers(0, 2**32, (30_000, 16), dtype=np.uint32)
    signed[15_000:] = signed[rng.integers(0, 15_000, 15_000)]
    tracemalloc.start()
    assert len(repeated(similar_pairs(Signatures([signed]), 0.8))) == 15_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (60 + 65 / 2) * 30_000 * 1.1
