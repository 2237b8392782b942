"""Words and n-grams by hand."""

import pytest

from lifecycle.data.quality.ngrams import ngrams, shingles, word_hashes, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The patient's BP: 120/80 mm-Hg!", ["the", "patient", "s", "bp", "120", "80", "mm", "hg"]),
        ("snake_case naïve Ärzte", ["snake", "case", "naïve", "ärzte"]),
        ("患者abc发烧 テスト", ["患", "者", "abc", "发", "烧", "テ", "ス", "ト"]),
        ("... !!! --", []),
        ("", []),
    ],
)
def test_words_are_lower_cased_without_punctuation(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_there_is_one_hash_for_each_run_of_n_words() -> None:
    hashes = word_hashes("a b c a b c".split())
    grams = ngrams(hashes, 3)
    assert len(grams) == 4
    assert grams[0] == grams[3]  # a b c
    assert len(set(grams.tolist())) == 3  # and order matters: a b c, b c a, c a b
    assert len(ngrams(hashes, 7)) == 0


def test_case_and_punctuation_make_no_other_shingle_and_order_does() -> None:
    assert shingles("One, two. THREE", 2).tolist() == shingles("one two three", 2).tolist()
    assert shingles("two one", 2).tolist() != shingles("one two", 2).tolist()


def test_a_short_text_is_one_shingle_and_an_empty_one_none() -> None:
    assert len(shingles("one two", 5)) == 1
    assert len(shingles("?!", 5)) == 0
