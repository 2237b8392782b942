r"""choice: 1 where the letter that a completion states as its answer is the known one, else 0.

Stated is what stands behind `\boxed{`, `####`, "answer is", "Answer:" or "option is"; or the whole completion is a
letter, alone or before the text of the option ("B. Aspirin"). "A 45-year-old man" and "Not A" state no letter, "A or B"
no single one.
"""

from __future__ import annotations

import re

from lifecycle.rewards.stated import OPTION_MARK, behind_thoughts, stated

LEAD = re.compile(r"(?:[\s:=\"']|\\text\b|\b(?:the|is|option|choice|letter|answer|definitely|most likely)\b)*", re.I)
"""What may stand between the mark of an answer and its letter."""
LETTER = re.compile(
    r"[(\[{]\s*([A-Za-z])\s*[)\]}]|([A-Z])(?=\s*$|[).:,;\]}\"'/]|\s+(?:because|since|as|for|and|or)\b|\s*&)",
    re.MULTILINE,
)
ANOTHER = re.compile(r"[)\s.]*(?:,|/|&|\bor\b|\band\b|\bto\b)\s*(?:option\s*)?[(\[]?[A-Z]\b(?!')")
"""A second letter: the first one is no decision."""
LISTED = re.compile(r"^\s*(?:\([A-Z]\)|[A-Z][).:])(?=\s|$)", re.MULTILINE)


def choice(completion: str, answer: str) -> float:
    """The mark of a completion; `answer` is a letter."""
    said = final_choice(completion)
    return float(said is not None and said == answer.strip(" ().").upper())


def final_choice(completion: str) -> str | None:
    """The letter of the option that a completion decides for; None where it states none, or several."""
    statement = stated(completion, OPTION_MARK)
    if statement is not None:
        return _letter(statement)
    whole = behind_thoughts(completion).replace("*", "")
    return None if len(LISTED.findall(whole)) > 1 else _letter(whole)


def _letter(text: str) -> str | None:
    lead = LEAD.match(text)
    rest = text[lead.end() if lead else 0 :]
    found = LETTER.match(rest)
    if found is None or ANOTHER.match(rest[found.end() :]):
        return None
    return (found[1] or found[2]).upper()
