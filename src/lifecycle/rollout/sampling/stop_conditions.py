"""When a completion ends, and why: a stop id, a stop string in its text, or no room for another token.

Completions are whole tokens: what follows a stop string inside the token that completes it stays in ids and text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from lifecycle.batch import StopReason
from lifecycle.errors import UserError
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.rollout.scheduler import Ints

MARGIN = 8
"""Tokens looked at beyond the bytes of the longest stop string: some stand for no byte."""


ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class Decoding(Protocol):
    """What the engine asks of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        ...


def read_stops(stop: Sequence[str], specials: Mapping[int, str]) -> tuple[list[int], list[str]]:
    r"""Stop ids and stop strings as users write them: names of special tokens become ids, since no text has them; in
    the others \n, \t, \r and \\ are escapes as in Python, which a command line could not express otherwise.

    specials: names of special tokens by id. Errors: `UserError` for a text with such a name inside it.
    """
    ids = [number for number, name in specials.items() if name in stop]
    texts = [re.sub(r"\\([ntr\\])", lambda found: ESCAPES[found[1]], text) for text in stop]
    texts = [text for text, written in zip(texts, stop, strict=True) if written not in specials.values()]
    faults = [(text, name) for text in texts for name in specials.values() if name and name in text]
    if faults:
        text, name = faults[0]
        raise UserError(
            f"stage.stop has {text!r}, but {name} is a special token, which no text holds: give its name alone, and "
            "what stands around it as texts of their own"
        )
    return ids, texts


def check_stops(sampling: Sampling, tokenizer: Decoding | None) -> None:
    """Refuse stop strings without a tokenizer to read them. Errors: `UserError`."""
    if sampling.stop_strings and tokenizer is None:
        raise UserError("sampling.stop_strings is set, but no tokenizer was given to look for them; give one")


class Stops:
    """Checks every drawn token of every sequence; limits: most tokens of each sequence.

    Errors: `UserError` for stop strings without a tokenizer to read them.
    """

    def __init__(self, sampling: Sampling, tokenizer: Decoding | None, limits: Sequence[int]) -> None:
        check_stops(sampling, tokenizer)
        self._ids, self._strings = np.array(sorted(set(sampling.stop_ids)), np.int64), sampling.stop_strings
        self._tokenizer, self._most = tokenizer, sampling.max_new_tokens
        self._limits = np.array(limits, np.int64)
        # a token stands for at least one byte, so an occurrence that ends now began within so many tokens
        self._tokens = MARGIN + max((len(text.encode()) for text in self._strings), default=0)
        self._tails: dict[int, list[int]] = {}

    def ended(self, sequences: Ints, tokens: Ints, numbers: Ints) -> list[tuple[int, StopReason]]:
        """Which of the sequences end with these tokens, their `numbers`-th (from 1), and why: (place in the list, why).

        A stop id comes before a stop string, and both before the length.
        """
        by_id = np.isin(tokens, self._ids)
        by_length = numbers >= self._limits[sequences]
        places = range(len(tokens)) if self._strings else np.flatnonzero(by_id | by_length).tolist()
        found: list[tuple[int, StopReason]] = []
        for place in places:
            if by_id[place]:
                found.append((place, "stop_id"))
            elif self._strings and self._completes(int(sequences[place]), int(tokens[place])):
                found.append((place, "stop_string"))
            elif by_length[place]:
                found.append((place, "length" if numbers[place] >= self._most else "capacity"))
        for place, _ in found:
            self._tails.pop(int(sequences[place]), None)
        return found

    @property
    def reads_text(self) -> bool:
        """Whether every token has to be looked at before the next."""
        return bool(self._strings)

    def left(self, sequences: Ints, numbers: Ints) -> int:
        """Tokens that may still be drawn of one of the sequences, the most; they have `numbers` each."""
        return int((self._limits[sequences] - numbers).max(initial=0))

    def room(self, sequence: int, number: int) -> int:
        """Tokens that sequence `sequence` of `number` tokens may be told, so that one can be drawn behind them."""
        return int(self._limits[sequence]) - number - 1

    def full(self, sequence: int) -> StopReason:
        """Why a sequence ends that has no room."""
        return "length" if int(self._limits[sequence]) >= self._most else "capacity"

    def restart(self, sequence: int) -> None:
        """A sequence goes on behind tokens that it has not drawn: no stop string reaches over them."""
        self._tails.pop(sequence, None)

    def _completes(self, sequence: int, token: int) -> bool:
        assert self._tokenizer is not None
        tail = self._tails.setdefault(sequence, [])
        tail.append(token)
        del tail[: -self._tokens]
        text = self._tokenizer.decode(tail)
        return any(string in text for string in self._strings)
