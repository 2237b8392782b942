"""The text of each token of a sample, by the tokenizer that the run has left in its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PLACES = ("tokenizer/tokenizer.json", "model/tokenizer.json")
BROKEN = "\ufffd"
"""The end of a text whose last token ends inside a character."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class TokenText:
    """Text that stands for one token, or for several that are one character together. first: number of the first."""

    text: str
    first: int


def decoder_of(run: Path) -> Decode | None:
    """What makes text of ids, marks of turns included; None where the run has no tokenizer."""
    found = next((run / place for place in PLACES if (run / place).is_file()), None)
    if found is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(found))
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def pieces(ids: Sequence[int], decode: Decode) -> list[TokenText]:
    """The text of the ids in pieces; all of them together are the whole text."""
    out, begun, before = list[TokenText](), 0, list[int]()
    for n in range(len(ids)):
        group = list(ids[begun : n + 1])
        text = decode([*before, *group])[len(decode(before)) :]  # behind a token, for some write a space between
        if text.endswith(BROKEN) and n + 1 < len(ids) and len(group) < 4:
            continue
        out.append(TokenText(text, begun))
        begun, before = n + 1, group
    return out
