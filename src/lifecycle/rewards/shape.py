"""Rewards for the shape of a completion: tags, length, repetition. None of them needs a known answer.

    format        1 where every tag of `tags` is opened and closed once, in order, with text inside and none outside
    length        1 at `target_words` words, falling in a straight line to 0 at none and at twice as many
    repetition    share of the groups of `repeat_words` words that did not stand in the completion before; 1: none did

The settings stand in the record's meta, where `GradingKeys` puts them. A word is what is between spaces, or a sign of a
script that writes without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lifecycle.rewards.record import Answered

WORD = re.compile(
    "[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\\s\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)


def in_tags(completion: str, record: Answered) -> float:
    """The mark of the tags. A first tag that the prompt has opened counts as the completion's."""
    tags: Sequence[str] = record.meta["tags"]
    opened = f"<{tags[0]}>"
    text = opened + completion if record.prompt.rstrip().endswith(opened) else completion
    marks = [f"<{slash}{tag}>" for tag in tags for slash in ("", "/")]
    if any(text.count(mark) != 1 for mark in marks):
        return 0.0
    parts, rest = list[str](), text
    for mark in marks:
        part, found, rest = rest.partition(mark)
        if not found:
            return 0.0
        parts.append(part)
    outside, inside = [*parts[0::2], rest], parts[1::2]
    if len(tags) == 1:  # thoughts alone: the answer stands behind them
        outside, inside = parts[:1], [parts[1], rest]
    return float(not any(map(str.strip, outside)) and all(map(str.strip, inside)))


def length(completion: str, record: Answered) -> float:
    """The mark of the length."""
    target: int = record.meta["target_words"]
    return max(0.0, 1 - abs(len(WORD.findall(completion)) - target) / target)


def repetition(completion: str, record: Answered) -> float:
    """The mark of the repetition; a completion too short for two groups repeats nothing."""
    size: int = record.meta["repeat_words"]
    words = WORD.findall(completion.lower())
    groups = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return len(set(groups)) / len(groups) if groups else 1.0
