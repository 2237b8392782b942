"""The options of a multiple-choice question in another order, once for each visit of the record.

    Bile?  A. lung  B. liver  C. None of the above  (B)   ->   Bile?  A. liver  B. lung  C. None of the above  (A)

Options that speak of all the others keep their place at the end; where one names another by its letter, or stands
elsewhere, the record keeps its order.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from dataclasses import replace

from lifecycle.batch import Record
from lifecycle.system.seeds import derive

LAST = re.compile(
    r"\W*(?:(?:all|any|none|neither|either|both)(?:\s+of)?(?:\s+the)?(?:\s+(?:above|these|those|them|options|choices|"
    r"others?|answers|statements))*(?:\s+(?:is|are)\s+(?:true|correct|right|false|wrong))?|no\s+(?:other|correct)\s+.*"
    r"|.*\b(?:of|in)\s+the\s+(?:above|others?)\b.*|.*\babove\s+(?:options|choices|answers|statements)\b.*)\W*",
    re.IGNORECASE,
)
"""An option that speaks of all the others: it has to stand behind them."""
LETTER = r"\(?[A-Z]\)?"
BY_LETTER = re.compile(
    rf"\W*(?:(?:both|either|neither|only|not|all\s+of|options?|answers?|choices?)\s+)*{LETTER}"
    rf"(?:(?:\s*,\s*|\s*[&/+]\s*|\s+(?:and|or|nor|but\s+not)\s+|\s*,\s*(?:and|or)\s+)+{LETTER})*"
    r"(?:\s+(?:only|(?:are|is)\s+(?:true|correct|right|wrong|false)))?\W*",
    re.IGNORECASE,
)
NAMED = re.compile(r"\b(?:options?|choices?|answers?)\s+\(?[A-H]\b\)?", re.IGNORECASE)
"""An option, or a question, that names an option by its letter."""


def listed(options: Sequence[str]) -> str:
    """The options as a prompt shows them, a line each."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def shuffled(record: Record, *, seed: int, visit: int) -> Record:
    """The record with its options in the order of this visit, and its answer's letter moved along; a record without
    options as it came. The order follows from seed, record and visit alone."""
    options = record.meta.get("options")
    if not options or record.prompt is None or record.answer is None:
        return record
    block = "\n" + listed(options)
    if not record.prompt.endswith(block):  # its texts were changed after it was read
        return record
    question = record.prompt.removesuffix(block)
    order = order_of(question, options, seed=derive(seed, "options", record.id, visit))
    moved = [options[i] for i in order]
    answer = string.ascii_uppercase[order.index(string.ascii_uppercase.index(record.answer))]
    return replace(record, prompt=f"{question}\n{listed(moved)}", answer=answer, meta={**record.meta, "options": moved})


def order_of(question: str, options: Sequence[str], *, seed: int) -> list[int]:
    """The options' indices in a new order; as they stand where one of them is held by its place among the others."""
    own = list(range(len(options)))
    free = next((i for i, option in enumerate(options) if LAST.fullmatch(option)), len(options))
    held = any(BY_LETTER.fullmatch(option) or NAMED.search(option) for option in options)
    if held or NAMED.search(question) or not all(LAST.fullmatch(option) for option in options[free:]):
        return own
    moved = own[:free]
    random.Random(seed).shuffle(moved)
    return moved + own[free:]
