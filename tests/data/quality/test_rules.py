"""Each rule on texts worked out by hand: the first of its kind that breaks it, and the nearest that does not."""

from dataclasses import replace

import pytest

from lifecycle.data.quality.rules import C4Rules, FilterSpec, GopherRules, c4, drop_reason, gopher
from lifecycle.errors import UserError

LENIENT = GopherRules(
    min_words=1,
    max_symbols_per_word=1.0,
    min_alphabetic_words=0.0,
    min_stop_words=0,
    max_duplicate_lines=1.0,
    max_duplicate_paragraphs=1.0,
    max_duplicate_line_characters=1.0,
    max_duplicate_paragraph_characters=1.0,
    max_top_ngram={},
    max_duplicate_ngrams={},
)
"""Every rule off but the lengths; a test switches on the one it is about."""


def words(count: int, start: int = 0) -> str:
    """`count` different words of five letters."""
    return " ".join("".join("abcdefghij"[int(d)] for d in f"{n:05d}") for n in range(start, start + count))


GOOD = f"The {words(60)} of and to."


def test_the_default_keeps_everything() -> None:
    for text in ("", "a", "x" * 10_000, "lorem ipsum {", "..." * 100):
        assert drop_reason(text, FilterSpec()) is None


def test_lengths_are_in_characters_and_bounds_belong_to_what_is_kept() -> None:
    spec = FilterSpec(min_chars=3, max_chars=5)
    got = [drop_reason("é" * n, spec) for n in (2, 3, 5, 6)]
    assert got == ["too short", None, None, "too long"]


def test_quality_names_the_set_and_the_rule() -> None:
    assert drop_reason("one two", FilterSpec(quality="gopher")) == "gopher: word count"
    assert drop_reason("one two", FilterSpec(quality="c4")) == "c4: terminal punctuation"
    assert drop_reason("one two", FilterSpec(quality=True)) == "gopher: word count"
    assert drop_reason(GOOD, FilterSpec(quality=True)) == "c4: sentences"
    assert drop_reason(GOOD, FilterSpec(quality="gopher")) is None


@pytest.mark.parametrize(
    ("text", "rules", "reason"),
    [
        (words(49), replace(LENIENT, min_words=50), "word count"),
        (words(50), replace(LENIENT, min_words=50), None),
        (words(101), replace(LENIENT, max_words=100), "word count"),
        ("", LENIENT, "word count"),
        # mean length: (2 + 3) / 2 = 2.5; (3 + 3) / 2 = 3; (10 + 11) / 2 = 10.5
        ("ab abc", LENIENT, "mean word length"),
        ("abc abd", LENIENT, None),
        ("a" * 10 + " " + "b" * 11, LENIENT, "mean word length"),
        # symbols: 1 hash to 9 words = 0.11; to 10 words = 0.1
        (words(8) + " word#", replace(LENIENT, max_symbols_per_word=0.1), "symbol-to-word ratio"),
        (words(9) + " word#", replace(LENIENT, max_symbols_per_word=0.1), None),
        (words(8) + " word…", replace(LENIENT, max_symbols_per_word=0.1), "symbol-to-word ratio"),
        # bullets: 10 of 11 lines = 0.909; 9 of 10 = 0.9
        ("- items items\n" * 10 + "item", LENIENT, "bullet lines"),
        ("• items items\n" * 9 + "item", LENIENT, None),
        # ellipses: 1 of 3 lines = 0.33; 3 of 10 = 0.3
        ("word...\nword\nword", LENIENT, "ellipsis lines"),
        ("word…\n" * 3 + "word\n" * 7, LENIENT, None),
        # alphabetic: 3 of 4 = 0.75; 4 of 5 = 0.8
        ("one two six 1234", replace(LENIENT, min_alphabetic_words=0.8), "alphabetic words"),
        ("one two six ten 1234", replace(LENIENT, min_alphabetic_words=0.8), None),
        # stop words: two different ones are wanted
        ("the the cats", replace(LENIENT, min_stop_words=2), "stop words"),
        ("The cats AND dogs", replace(LENIENT, min_stop_words=2), None),
        # lines: "abc" comes 3 times, so 2 of 5 lines are repeats = 0.4; 1 of 4 = 0.25
        ("abc\nabc\nabc\nxyz\nuvw", replace(LENIENT, max_duplicate_lines=0.3), "duplicate lines"),
        ("abc\nabc\nxyz\nuvw", replace(LENIENT, max_duplicate_lines=0.3), None),
        # characters in repeated lines: 8 of 8 + 8 + 4 + 4 = 0.33; 4 of 4 + 4 + 8 + 8 = 0.17
        ("abcdefgh\nabcdefgh\nwxyz\nuvwx", replace(LENIENT, max_duplicate_line_characters=0.2),
         "duplicate lines by characters"),
        ("wxyz\nwxyz\nabcdefgh\nabcdefgi", replace(LENIENT, max_duplicate_line_characters=0.2), None),
        # paragraphs: the same, between blank lines
        ("abcd\nde\n\nabcd\ndf\n \nxyz", replace(LENIENT, max_duplicate_paragraphs=0.3), None),
        ("abcd\nde\n\nabcd\nde\n \nxyz", replace(LENIENT, max_duplicate_paragraphs=0.3), "duplicate paragraphs"),
        ("abcdefgh\n\nabcdefgh\n\nwxyz\n\nuvwx", replace(LENIENT, max_duplicate_paragraph_characters=0.2),
         "duplicate paragraphs by characters"),
    ],
)  # fmt: skip
def test_gopher_rules(text: str, rules: GopherRules, reason: str | None) -> None:
    assert gopher(text, rules) == reason


def test_the_most_frequent_ngram_counts_by_its_characters() -> None:
    # 10 words of 5 letters; "aa.. bb.." comes twice: 2 x 10 of 50 characters = 0.4
    text = "aaaaa bbbbb ccccc ddddd aaaaa bbbbb eeeee fffff ggggg hhhhh"
    assert gopher(text, replace(LENIENT, max_top_ngram={2: 0.39})) == "top 2-gram"
    assert gopher(text, replace(LENIENT, max_top_ngram={2: 0.41})) is None
    # of two that come equally often, the longer one counts: 2 x (6 + 6) of 44
    text = "aaa bbb aaa bbb cccccc dddddd cccccc dddddd eeeeeeee"
    assert gopher(text, replace(LENIENT, max_top_ngram={2: 24 / 44 - 0.01})) == "top 2-gram"
    assert gopher(text, replace(LENIENT, max_top_ngram={2: 24 / 44 + 0.01})) is None
    assert gopher("abc def ghi", replace(LENIENT, max_top_ngram={2: 0.0, 4: 0.0})) is None


def test_repeated_ngrams_cover_each_word_once() -> None:
    # the second "a b c d e f" is covered by two repeated 5-grams: 6 words of 13, each of 5 letters
    six = "aaaaa bbbbb ccccc ddddd eeeee fffff"
    text = f"{six} ggggg {six}"
    share = 6 / 13
    assert gopher(text, replace(LENIENT, max_duplicate_ngrams={5: share - 0.01})) == "duplicate 5-grams"
    assert gopher(text, replace(LENIENT, max_duplicate_ngrams={5: share + 0.01})) is None
    assert gopher(text, replace(LENIENT, max_duplicate_ngrams={7: 0.0})) is None


def test_gopher_keeps_prose_and_drops_a_menu() -> None:
    assert gopher(GOOD, GopherRules()) is None
    menu = "the home and about of contact\n" * 20
    assert gopher(menu, GopherRules()) == "duplicate lines"


SENTENCES = "One is here. Two is here! Is three here?"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SENTENCES, None),
        (SENTENCES + " \"Four,\" he said. 'Five.'", None),
        (SENTENCES + " if (x) { y }", "curly bracket"),
        (SENTENCES + " Lorem Ipsum dolor.", "lorem ipsum"),
        (SENTENCES + "\nPlease enable JavaScript.", "javascript"),
        ((SENTENCES + "\n") * 10 + "Please enable JavaScript.", None),
        # 1 of 9 lines ends in punctuation = 0.111; 1 of 8 = 0.125
        (SENTENCES + "\nmenu" * 8, "terminal punctuation"),
        (SENTENCES + "\nmenu" * 7, None),
        ("One is here. Two is here.", "sentences"),
        ("Pi is 3.14159. It is 2.71828 for e.", "sentences"),
        ("", "sentences"),
        (" \n ", "sentences"),
    ],
)
def test_c4_rules(text: str, reason: str | None) -> None:
    assert c4(text, C4Rules()) == reason


def test_filters_that_cannot_be_meant_are_refused_by_their_key() -> None:
    with pytest.raises(UserError, match="mine.filters.quality is 'good'; wanted true, false, gopher or c4"):
        FilterSpec(quality="good").check("mine.filters")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mine.filters: min_chars 10 and max_chars 5 leave no document"):
        FilterSpec(min_chars=10, max_chars=5).check("mine.filters")
    FilterSpec(min_chars=5, max_chars=5, quality=True).check("mine.filters")
