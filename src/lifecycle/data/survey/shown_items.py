"""Items as they are shown: the text of every token, and whether it is trained. Plain containers, for analysis.json.

{"parts": [{"name": "chosen", "tokens": [["It", true], [" is", true], ...], "more": 0}, ...], "facts": {...}}
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.batch import TURNS, Example, Ids, Item, Pair, Prompt
from lifecycle.tokenizer.tokenizer import Tokenizer

MOST_TOKENS = 600  # of a part that is shown whole
END_TOKENS = 200  # of a longer one, from its beginning and from its end
MOST_CHARACTERS = 300  # of a fact
UNFINISHED = "\ufffd"  # the text of a token that ends inside a character

Shown = dict[str, Any]


def shown_item(item: Item, tokenizer: Tokenizer) -> Shown:
    """The parts of an item, and what else it holds."""
    if isinstance(item, Pair):
        size = len(item.prompt)
        parts = [
            _part("prompt", item.prompt, np.zeros(size, np.bool_), tokenizer),
            _behind("chosen", item.chosen, size, tokenizer),
            _behind("rejected", item.rejected, size, tokenizer),
        ]
        return {"parts": parts, "facts": {} if item.margin is None else {"margin": f"{item.margin:g}"}}
    if isinstance(item, Prompt):
        facts = {"answer": item.answer, **{key: value for key, value in item.meta.items() if key != TURNS}}
        shown = {key: _fact(value) for key, value in facts.items() if value not in (None, "", [], {})}
        return {"parts": [_part("prompt", item.ids, np.zeros(len(item.ids), np.bool_), tokenizer)], "facts": shown}
    name = "" if item.wanted is None else "a good answer" if item.wanted else "a bad answer"
    return {"parts": [_part(name, item.ids, trained_of(item), tokenizer)], "facts": {}}


def trained_of(example: Example) -> NDArray[np.bool_]:
    """(n,) whether each token is trained: of a document all but the first, which is no label."""
    if example.trained is not None:
        return example.trained
    return np.arange(len(example.ids)) > 0


def _behind(name: str, example: Example, start: int, tokenizer: Tokenizer) -> Shown:
    return _part(name, example.ids[start:], trained_of(example)[start:], tokenizer)


def _part(name: str, ids: Ids, trained: NDArray[np.bool_], tokenizer: Tokenizer) -> Shown:
    """The tokens of one stretch; those in the middle of a long one are counted and left out."""
    more = len(ids) - 2 * END_TOKENS if len(ids) > MOST_TOKENS else 0
    ends = [(0, len(ids))] if not more else [(0, END_TOKENS), (len(ids) - END_TOKENS, len(ids))]
    texts = [_texts(ids[a:b], trained[a:b], tokenizer) for a, b in ends]
    left_out = [[f" [... {more} tokens ...] ", False]] if more else []
    return {"name": name, "tokens": [*texts[0], *left_out, *(texts[1] if more else [])], "more": more}


def _texts(ids: Ids, trained: NDArray[np.bool_], tokenizer: Tokenizer) -> list[list[Any]]:
    """The text of each token; tokens that are parts of one character are joined."""
    out: list[list[Any]] = []
    before, begun = "", 0
    for n in range(len(ids)):
        text = tokenizer.decode(ids[: n + 1], specials=True)
        if text.endswith(UNFINISHED) and n + 1 < len(ids) and trained[n] == trained[n + 1]:
            continue
        out.append([text[len(before) :], bool(trained[begun])])
        before, begun = text, n + 1
    return out


def _fact(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
