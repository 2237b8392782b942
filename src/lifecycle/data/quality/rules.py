"""Which documents are left out, and why: length, Gopher's quality and repetition rules, C4's rules, language, a score.

A document is kept whole or dropped whole with a stable reason; its text is never edited here (`pii.py` does that).
Rules and thresholds: Gopher, arXiv 2112.11446, appendix A.1.1 and table A1; C4, arXiv 1910.10683, section 2.2, where
rules that cut single lines there are shares of lines here.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from lifecycle.bounds import Bounds, Count, FromZero, NotNegative, PartOrAll
from lifecycle.data.quality.classifier import Classifier
from lifecycle.data.quality.language import LanguageRule, language
from lifecycle.data.quality.ngrams import ngrams, word_hashes
from lifecycle.errors import UserError

BULLETS = ("•", "●", "○", "■", "▪", "‣", "-", "*")
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
TERMINAL = (".", "!", "?", '"', "”", "'", "’")
SENTENCE_END = re.compile(r"[.!?][\"”'’)\]]*(?=\s|$)")
PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


@dataclass(frozen=True, kw_only=True)
class GopherRules:
    """Thresholds of the Gopher rules: counts in words, lengths in characters, the rest are shares."""

    min_words: FromZero = 50
    max_words: FromZero = 100_000
    min_mean_word_length: NotNegative = 3.0
    max_mean_word_length: NotNegative = 10.0
    max_symbols_per_word: NotNegative = 0.1
    max_bullet_lines: NotNegative = 0.9
    max_ellipsis_lines: NotNegative = 0.3
    min_alphabetic_words: NotNegative = 0.8
    min_stop_words: FromZero = 2
    max_duplicate_lines: NotNegative = 0.30
    max_duplicate_paragraphs: NotNegative = 0.30
    max_duplicate_line_characters: NotNegative = 0.20
    max_duplicate_paragraph_characters: NotNegative = 0.20
    max_top_ngram: dict[Count, NotNegative] = field(default_factory=lambda: {2: 0.20, 3: 0.18, 4: 0.16})
    max_duplicate_ngrams: dict[Count, NotNegative] = field(
        default_factory=lambda: {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    )


@dataclass(frozen=True, kw_only=True)
class C4Rules:
    """Thresholds of the C4 rules. C4 removes the lines in question; a document whose share of them is high is dropped.

    min_terminal_lines: share of lines that end in punctuation; 0.12 is the threshold of FineWeb (arXiv 2406.17557).
    """

    min_sentences: FromZero = 3
    min_terminal_lines: NotNegative = 0.12
    max_javascript_lines: NotNegative = 0.1


@dataclass(frozen=True, kw_only=True)
class NearRules:
    """What a near duplicate is: two documents whose sets of word n-grams have at least this Jaccard similarity.

    It is estimated by MinHash (Broder 1997) with `permutations` hash functions: standard error
    sqrt(s (1 - s) / permutations), 0.035 at 0.8 with 128 of them.
    """

    threshold: PartOrAll = 0.8
    ngram: Count = 5
    permutations: Annotated[int, Bounds(least=16, most=4096)] = 128


@dataclass(frozen=True, kw_only=True)
class FilterSpec:
    """Filters of one source; the default keeps everything.

    min_chars, max_chars: length of a document in characters; None: no limit.
    quality: true (both), "gopher" or "c4": the rules to apply, with the thresholds below.
    language: languages to keep; None: all.
    classifier: a function of yours that scores documents; None: none.
    mask_pii: replace mail addresses, telephone, card and US social security numbers and IP addresses by marks: the only
        filter that edits a document.
    exact_duplicates: drop documents whose exact text came before in the source.
    near_duplicates: drop documents that are near duplicates of an earlier one, in this source or in one named before it
        that has the filter too; `near`: what counts as a near duplicate.
    """

    min_chars: FromZero | None = None
    max_chars: Count | None = None
    quality: bool | Literal["gopher", "c4"] = False
    language: LanguageRule | None = None
    classifier: Classifier | None = None
    mask_pii: bool = False
    exact_duplicates: bool = False
    near_duplicates: bool = False
    near: NearRules = field(default_factory=NearRules)
    gopher: GopherRules = field(default_factory=GopherRules)
    c4: C4Rules = field(default_factory=C4Rules)

    def check(self, where: str) -> None:
        """Raise UserError for values that are not valid; `where` is the dotted key of this block."""
        if self.quality not in (True, False, "gopher", "c4"):
            raise UserError(f"{where}.quality is {self.quality!r}; wanted true, false, gopher or c4")
        low, high = self.min_chars or 0, self.max_chars
        if low < 0 or (high is not None and high < max(low, 1)):
            raise UserError(f"{where}: min_chars {self.min_chars} and max_chars {high} leave no document")
        if self.language is not None:
            self.language.check(f"{where}.language")
        if self.classifier is not None:
            self.classifier.check(f"{where}.classifier")


def drop_reason(text: str, spec: FilterSpec) -> str | None:
    """Why `spec` leaves out the document `text`, or None when it is kept. Reasons are stable: they are counted."""
    if spec.min_chars is not None and len(text) < spec.min_chars:
        return "too short"
    if spec.max_chars is not None and len(text) > spec.max_chars:
        return "too long"
    if spec.quality in (True, "gopher") and (reason := gopher(text, spec.gopher)):
        return f"gopher: {reason}"
    if spec.quality in (True, "c4") and (reason := c4(text, spec.c4)):
        return f"c4: {reason}"
    if spec.language is not None:
        code, probability = language(text)
        if code not in spec.language.keep or probability < spec.language.min_probability:
            return "language"
    if spec.classifier is not None and spec.classifier.score(text) < spec.classifier.threshold:
        return "classifier"
    return None


def gopher(text: str, rules: GopherRules) -> str | None:
    """The first rule of Gopher that `text` breaks, in the order of the paper (cheap ones first), or None."""
    words = text.split()
    if not words or not rules.min_words <= len(words) <= rules.max_words:
        return "word count"
    lengths = [len(word) for word in words]
    if not rules.min_mean_word_length <= sum(lengths) / len(words) <= rules.max_mean_word_length:
        return "mean word length"
    ellipses = text.count("...") + text.count("…")
    if max(text.count("#"), ellipses) / len(words) > rules.max_symbols_per_word:
        return "symbol-to-word ratio"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(BULLETS) for line in lines) / len(lines) > rules.max_bullet_lines:
        return "bullet lines"
    if sum(line.endswith(("...", "…")) for line in lines) / len(lines) > rules.max_ellipsis_lines:
        return "ellipsis lines"
    if sum(any(map(str.isalpha, word)) for word in words) / len(words) < rules.min_alphabetic_words:
        return "alphabetic words"
    if len(STOP_WORDS.intersection(text.lower().split())) < rules.min_stop_words:
        return "stop words"
    return _repeats(text, lines, rules) or _repeated_ngrams(words, lengths, rules)


def _repeats(text: str, lines: list[str], rules: GopherRules) -> str | None:
    paragraphs = [part.strip() for part in PARAGRAPH_BREAK.split(text) if part.strip()]
    for kind, parts, most, most_chars in (
        ("lines", lines, rules.max_duplicate_lines, rules.max_duplicate_line_characters),
        ("paragraphs", paragraphs, rules.max_duplicate_paragraphs, rules.max_duplicate_paragraph_characters),
    ):
        again = [(count - 1, len(part)) for part, count in Counter(parts).items() if count > 1]
        if sum(count for count, _ in again) / len(parts) > most:
            return f"duplicate {kind}"
        if sum(count * length for count, length in again) / sum(map(len, parts)) > most_chars:
            return f"duplicate {kind} by characters"
    return None


def _repeated_ngrams(words: list[str], lengths: list[int], rules: GopherRules) -> str | None:
    """Shares are of the characters of words, blanks not counted."""
    hashes = word_hashes(words)
    chars = np.array(lengths)
    for n, most in sorted(rules.max_top_ngram.items()):
        if _top_ngram(ngrams(hashes, n), chars, n) > most:
            return f"top {n}-gram"
    for n, most in sorted(rules.max_duplicate_ngrams.items()):
        if _duplicate_ngrams(ngrams(hashes, n), chars, n) > most:
            return f"duplicate {n}-grams"
    return None


def _top_ngram(grams: NDArray[np.uint64], chars: NDArray[np.int64], n: int) -> float:
    """Share of the characters that lie in the most frequent n-gram; one that occurs once is no repetition."""
    if len(grams) == 0:
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    if counts.max() == 1:
        return 0.0
    sums = np.concatenate(([0], np.cumsum(chars)))
    top = first[counts == counts.max()]
    return float((sums[top + n] - sums[top]).max() * counts.max() / chars.sum())


def _duplicate_ngrams(grams: NDArray[np.uint64], chars: NDArray[np.int64], n: int) -> float:
    """Share of the characters covered by n-grams that occurred before; a word is counted once however many cover it."""
    again = np.ones(len(grams), bool)
    again[np.unique(grams, return_index=True)[1]] = False
    covered = np.zeros(len(chars), bool)
    for shift in range(n):
        covered[shift : shift + len(again)] |= again
    return float(chars[covered].sum() / chars.sum())


def c4(text: str, rules: C4Rules) -> str | None:
    """The first rule of C4 that `text` breaks, or None."""
    if "{" in text:
        return "curly bracket"
    lower = text.lower()
    if "lorem ipsum" in lower:
        return "lorem ipsum"
    lines = [line.strip() for line in lower.splitlines() if line.strip()]
    if not lines or sum("javascript" in line for line in lines) / len(lines) > rules.max_javascript_lines:
        return "javascript" if lines else "sentences"
    if sum(line.endswith(TERMINAL) for line in lines) / len(lines) < rules.min_terminal_lines:
        return "terminal punctuation"
    if len(SENTENCE_END.findall(text)) < rules.min_sentences:
        return "sentences"
    return None
