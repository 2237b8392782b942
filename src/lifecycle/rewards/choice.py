r"""choice: 1 where the letter that a completion states as its answer is the known one, else 0.

Stated is what stands behind `\boxed{`, `####`, "answer is", "Answer:", "option is" or in `<answer>` tags; or the whole
completion is a letter, alone or before the text of the option ("B. Aspirin"). "A 45-year-old man" and "Not A" state no
letter, "A or B" no single one.

Where the record has its `options`, the text of one of them counts for its letter, unless it stands for several or is
denied; a letter that no option has, and a letter before the text of another option, are no answer.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import OPTION_MARK, said, stated

LEAD = re.compile(r"(?:[\s:=\"']|\\text\b|\b(?:the|is|option|choice|letter|answer|definitely|most likely)\b)*", re.I)
"""What may stand between the mark of an answer and its letter."""
LETTER = re.compile(
    r"[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z])(?=\s*$|[).:,;\]}\"'/]|\s+(?:because|since|as|for|and|or)\b|\s*&)",
    re.MULTILINE,
)
ANOTHER = re.compile(r"[)\s.]*(?:,|/|&|\bor\b|\band\b|\bto\b)\s*(?:option\s*)?[(\[]?[A-Z]\b(?!')")
"""A second letter: the first one is no decision."""
LISTED = re.compile(r"^[^\S\n]*(?:\([A-Z]\)|[A-Z][).:])(?=\s|$)", re.MULTILINE)
DENIED = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|without|except|excluding|unlike|incorrect|wrong|false|than)\b|n['\u2019]t\b"
)
LETTERS = string.ascii_uppercase


def choice(completion: str, record: Answered) -> float:
    """The mark of a completion; the answer of the record is a letter."""
    decided = final_choice(completion, record.meta.get("options") or ())
    return float(decided is not None and decided == record.answer.strip(" ().").upper())


def final_choice(completion: str, options: Sequence[str] = ()) -> str | None:
    """The letter of the option that a completion decides for; None where it states none, or several. options: texts of
    A, B, ..., as far as they are known."""
    statement = stated(completion, OPTION_MARK)
    if statement is None:
        whole = said(completion).replace("*", "")
        if len(LISTED.findall(whole)) > 1:
            return None
        letter, behind = _letter(whole)
        first_line = whole.partition("\n")[0]
        return _known(letter, behind, options) if letter else _by_text(first_line, options, alone=True)
    letter, behind = _letter(statement)
    return _known(letter, behind, options) if letter else _by_text(statement, options, alone=False)


def _letter(text: str) -> tuple[str | None, str]:
    """The letter that a statement begins with, and what stands behind it."""
    lead = LEAD.match(text)
    rest = text[lead.end() if lead else 0 :]
    found = LETTER.match(rest)
    if found is None or ANOTHER.match(rest[found.end() :]):
        return None, rest
    return (found[1] or found[2]).upper(), rest[found.end() :]


def _known(letter: str, behind: str, options: Sequence[str]) -> str | None:
    """The letter, unless no option has it or the text of another option stands behind it."""
    if not options:
        return letter
    named = [LETTERS[n] for n, option in enumerate(options) if _plain(option) == _plain(behind.partition("\n")[0])]
    return letter if letter in LETTERS[: len(options)] and (not named or letter in named) else None


def _by_text(statement: str, options: Sequence[str], *, alone: bool) -> str | None:
    """The letter of the only option whose text stands in a statement. alone: the text must be all of it, but for words
    before it such as "the answer is"."""
    lead = LEAD.match(statement)
    text = _plain(statement[lead.end() if lead else 0 :])
    plain = [_plain(option) for option in options]
    equal = [n for n, option in enumerate(plain) if option and option in (text, _plain(statement))]
    if equal or alone:
        return LETTERS[equal[0]] if len(equal) == 1 else None
    # The longest first, so that "B cells" within "memory B cells" is no option named besides.
    named, rest = [], f" {text} "
    for n in sorted(range(len(plain)), key=lambda n: -len(plain[n])):
        if plain[n] and f" {plain[n]} " in rest:
            named.append(n)
            rest = rest.replace(f" {plain[n]} ", "  ")
    return (
        LETTERS[named[0]] if len(named) == 1 and plain.count(plain[named[0]]) == 1 and not DENIED.search(rest) else None
    )


def _plain(text: str) -> str:
    """In small letters, words apart by one space, without marks around and between them that mean nothing."""
    return " ".join(re.sub(r"[^\w%+\-./'\u2019<>=]|\.(?!\d)", " ", text.lower()).split())
