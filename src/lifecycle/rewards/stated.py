r"""Where a completion states its final answer, for the graders that look for one.

    ... <think> 3 * 6 = 18 </think> So it is 18.\n#### 18        ->   " 18"
    The answer is \boxed{18}.                                    ->   "18"
    The answer is 17. Wait: Answer: **18**                       ->   " 18"

The last statement counts. What is thought aloud between <think> tags states nothing; where there are <answer> tags,
only what is between the last of them does.
"""

from __future__ import annotations

import re

THOUGHTS_END = "</think>"
THOUGHTS_BEGIN = "<think>"
ANSWER_BEGIN = "<answer>"
ANSWER_END = "</answer>"
CALCULATOR = re.compile(r"<<[^<>\n]*>>")
"""Marks of GSM8K beside its sums."""
SAYS = r"\s*(?:(?:is|was|would be|must be|should be)\b(?!n.t)\s*:?|:|=|(?=\s(?:isn.t|cannot|can.t)\b))"
MARK = re.compile(rf"####|\\boxed\s*\{{|\banswer{SAYS}|^[^\S\n]*a[^\S\n]*:(?=\s)", re.IGNORECASE | re.MULTILINE)
OPTION_MARK = re.compile(rf"####|\\boxed\s*\{{|\b(?:answer|option|choice){SAYS}", re.IGNORECASE)


def behind_thoughts(completion: str) -> str:
    """The completion without its thoughts; nothing of one whose thoughts have no end."""
    _, end, answer = completion.rpartition(THOUGHTS_END)
    rest = answer if end else completion
    return "" if THOUGHTS_BEGIN in rest else rest.strip()


def said(completion: str) -> str:
    """The completion without its thoughts and without what is outside its answer tags, where it has such."""
    _, begin, inside = behind_thoughts(completion).rpartition(ANSWER_BEGIN)
    return inside.partition(ANSWER_END)[0].strip() if begin else inside


def stated(completion: str, mark: re.Pattern[str] = MARK) -> str | None:
    """What stands behind the last mark of an answer, up to the end of its line or of its braces, without signs of
    emphasis; None where there is no mark."""
    text = CALCULATOR.sub("", said(completion))
    marks = list(mark.finditer(text))
    if not marks:
        return None
    last = marks[-1]
    rest = text[last.end() :]
    if last[0].startswith("\\"):
        return _in_braces(rest)
    line = rest.strip().partition("\n")[0]
    return re.sub(r"\*\*|`|\\[()\[\]]", "", line)


def _in_braces(text: str) -> str:
    r"""The text up to the brace that closes, of `\frac{3}{4}} and more`: `\frac{3}{4}`; all of it where none does."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:place]
    return text
