r"""number: 1 where the last number that a completion states as its answer equals the known one exactly, else 0.

Stated is what stands behind `####`, `\boxed{`, `<answer>`, "answer is", "Answer:" or "A:"; without such a mark it
is the last number of the text. 1,000 and 1000.0 are one number, and so are 3/4, \frac{3}{4} and 0.75; units and signs
of currency are nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction

from lifecycle.rewards.record import Answered
from lifecycle.rewards.stated import CALCULATOR, said, stated

DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,10}(?![0-9])|[0-9]{1,30})(?:\.[0-9]{1,30})?|\.[0-9]{1,30}"
SIGN = r"(?<![0-9.)])[-+]?"
NUMBER = re.compile(rf"(?<![0-9.])(?<![0-9][,:])({SIGN})({DIGITS})(?:\s?/\s?([0-9]{{1,30}}))?(?![0-9]|[.,:/^][0-9])")
FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]{1,30})\s*\}\s*\{\s*([0-9]{1,30})\s*\}")
AMBIGUOUS = re.compile(r"\s*(?:or|to|and|-|\u2013|,)\s*[-+$]?[0-9]", re.IGNORECASE)
"""What makes of one number a choice of several."""
OPERATOR = re.compile(r"\s*[a-zA-Z]*\s*[-+*/x\u00d7\u00f7=]\s*\(?[-+$]?[0-9]")
"""What makes of one number the beginning of a sum."""


def number(completion: str, record: Answered) -> float:
    """The mark of a completion."""
    wanted, found = _only(record.answer), final_number(completion)
    return float(found is not None and found == wanted)


def final_number(completion: str) -> Fraction | None:
    """The number that a completion ends with as its answer; None where it states none, or several."""
    statement = stated(completion)
    if statement is None:
        found = list(NUMBER.finditer(_plain(CALCULATOR.sub("", said(completion)))))
        return _value(found[-1]) if found else None
    text = _plain(statement)
    first = NUMBER.search(text)
    if first is not None and "=" in text and OPERATOR.match(text[first.end() :]):
        text = text.rpartition("=")[2]
        first = NUMBER.search(text)
    if first is None or not _may_stand_before(text[: first.start()]):
        return None
    behind = text[first.end() :]
    return None if AMBIGUOUS.match(behind) or OPERATOR.match(behind) else _value(first)


def _may_stand_before(text: str) -> bool:
    """Whether what is said before the number leaves it the answer."""
    return not re.search(r"\b(?:not|isn't|never)\b|\\neq?\b|\u2260|!=|[0-9]", text, re.IGNORECASE)


def _only(answer: str) -> Fraction | None:
    """The number that a known answer is; None where it is another text."""
    found = NUMBER.fullmatch(_plain(answer).strip(" .%"))
    return _value(found) if found else None


def _plain(text: str) -> str:
    """Other ways to write a sign or a fraction in that of `NUMBER`; signs of currency go."""
    text = FRACTION.sub(r"\1/\2", text.replace("\u2212", "-").replace("{,}", ",").replace("\\!", ""))
    return re.sub(r"\\?\$|[\u20ac\u00a3]", "", text)


def _value(found: re.Match[str]) -> Fraction | None:
    below = int(found[3]) if found[3] else 1
    return None if below == 0 else Fraction(f"{found[1]}{found[2].replace(',', '')}") / below
