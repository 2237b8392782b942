r"""How a judge's reply is read: strictly, so that what cannot be read is missing and never a mark.

    {"score": 7}        Clear and short.\nScore: 7        Score: 7/10        **Score: 7**        ->  7
    {"better": "A"}     The second is wrong.\nBetter: A                                           ->  A

Either the whole reply is a JSON object (a fence of three backticks around it is nothing), or its last line states the
verdict. A number elsewhere states nothing, as where the judge quotes what it grades. Thoughts before `</think>` are not
read; a reply whose thoughts have no end says nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from lifecycle.rewards.stated import THOUGHTS_BEGIN, THOUGHTS_END

Better = Literal["A", "B", "tie"]

NUMBER = r"[-+]?[0-9]{1,9}(?:\.[0-9]{1,9})?"
SCORE = re.compile(rf"score\s*:\s*({NUMBER})(?:\s*/\s*({NUMBER}))?\.?", re.IGNORECASE)
BETTER = re.compile(r"better\s*:\s*\"?(A|B|tie)\"?\.?", re.IGNORECASE)
FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
LONGEST_JSON = 20_000
"""Characters of a reply that is read as JSON."""


def score_of(reply: str, *, low: float, high: float) -> float | None:
    """The score that a reply states, from `low` to `high`; None where it states none, several, or one outside."""
    said = _said(reply)
    found = _of_json(said, "score")
    if found is None:
        line = SCORE.fullmatch(_last_line(said))
        if line is None or (line[2] is not None and float(line[2]) != high):
            return None
        found = float(line[1])
    if isinstance(found, bool) or not isinstance(found, int | float):
        return None
    return float(found) if math.isfinite(found) and low <= found <= high else None


def better_of(reply: str) -> Better | None:
    """Which of two a reply prefers; None where it does not say."""
    said = _said(reply)
    found = _of_json(said, "better")
    if found is None:
        line = BETTER.fullmatch(_last_line(said))
        found = line[1] if line else None
    if not isinstance(found, str):
        return None
    names: dict[str, Better] = {"a": "A", "b": "B", "tie": "tie"}
    return names.get(found.strip().lower())


def _said(reply: str) -> str:
    """What stands behind its thoughts; nothing of a reply that begins with such and does not end them. A mark of
    thoughts further on is quoted."""
    _, end, behind = reply.rpartition(THOUGHTS_END)
    if end:
        return behind.strip()
    return "" if reply.lstrip().startswith(THOUGHTS_BEGIN) else reply.strip()


def _last_line(text: str) -> str:
    """Without signs of emphasis around it."""
    lines = text.strip().splitlines()
    return lines[-1].strip().strip("*_`").strip().replace("**", "") if lines else ""


def _of_json(text: str, key: str) -> Any:
    """The value of `key` where all of the text is one JSON object that has it once; else None."""
    fenced = FENCE.match(text)
    inside = (fenced[1] if fenced else text).strip()
    if not inside.startswith("{") or len(inside) > LONGEST_JSON:
        return None
    try:
        found = json.loads(inside, object_pairs_hook=_once)
    except (ValueError, RecursionError):  # what a model wrote: no JSON, a key that stands there twice, a tower of lists
        return None
    return found.get(key) if isinstance(found, dict) else None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)
