"""Shows completions on a terminal while they are sampled, in their order, whichever is finished first.

The first unfinished one is shown as it grows; those after it are shown when it is complete. Characters that the
terminal's encoding lacks are shown as "?".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from lifecycle.rollout.user_prompts import ChatTokenizer

BOLD, PLAIN = "\033[1m", "\033[0m"
UNFINISHED = "\ufffd"
"""What a decoder gives for the first bytes of a character whose last ones are still to come."""


class CompletionDisplay:
    """Shows `len(openings)` x `samples` completions; `openings` are the prompts as the user wrote them."""

    def __init__(
        self, out: TextIO, tokenizer: ChatTokenizer, openings: Sequence[str], *, samples: int, continues: bool
    ) -> None:
        self._out, self._tokenizer, self._openings, self._samples = out, tokenizer, openings, samples
        self._joint = "" if continues else "\n"  # an answer stands below its question, a continuation behind its text
        self._ids: dict[int, list[int]] = {}
        self._at, self._shown, self._opened = 0, 0, False

    def token(self, prompt: int, sample: int, token: int) -> None:
        """One more token of a completion."""
        number = prompt * self._samples + sample
        self._ids.setdefault(number, []).append(token)
        if number == self._at:
            self._show(self._tokenizer.decode(self._ids[number]))

    def rest(self, texts: Sequence[str]) -> None:
        """All completions are complete: show the rest of them."""
        for text in texts:
            self._end(text)

    def _end(self, text: str) -> None:
        self._show(text, whole=True)
        self._write("\n" if self._at + 1 == len(self._openings) * self._samples else "\n\n")
        self._out.flush()
        self._at, self._shown, self._opened = self._at + 1, 0, False
        if self._at in self._ids:
            self._show(self._tokenizer.decode(self._ids[self._at]))

    def _show(self, text: str, *, whole: bool = False) -> None:
        if not self._opened:
            mark, end = (BOLD, PLAIN) if self._out.isatty() else ("", "")
            self._write(f"{mark}{self._openings[self._at // self._samples]}{end}{self._joint}")
            self._opened = True
        ready = len(text) if whole else len(text.rstrip(UNFINISHED))
        if ready > self._shown:
            self._write(text[self._shown : ready])
            self._shown = ready
        self._out.flush()

    def _write(self, text: str) -> None:
        encoding = self._out.encoding or "utf-8"  # none: a buffer of text
        self._out.write(text.encode(encoding, "replace").decode(encoding))
