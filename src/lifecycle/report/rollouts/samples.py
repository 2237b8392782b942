"""Samples as HTML: the prompt, the completion token by token, what it is worth.

Colours stand in classes: l1 to l4 for a token by its probability, u1 to u3 and d1 to d3 for a sample by its advantage.
"""

from __future__ import annotations

import math
import unicodedata
from html import escape
from pathlib import Path

from lifecycle.report.page.format import number
from lifecycle.report.rollouts.kept import Mark, Row, number_of, whole
from lifecycle.report.rollouts.picked import ChangedAnswer, ChangedSamples
from lifecycle.report.rollouts.pieces import TokenText, decoder_of, pieces

BOUNDS = (0.9, 0.5, 0.2, 0.05)
"""Probabilities below which a token has the next colour."""
PROBABLE = ("below 0.9", "below 0.5", "below 0.2", "below 0.05")
STRENGTHS = (0.05, 0.5, 1.5)
"""Sizes of an advantage from which on a sample has the next colour."""
ADVANTAGES = {"d3": "-1.5 or less", "d2": "-0.5", "d1": "below 0", "u1": "above 0", "u2": "0.5", "u3": "1.5 or more"}
ENDED = {
    "stop_id": "by itself",
    "stop_string": "at a text that ends it",
    "capacity": "at the model's last position",
    "done": "by its environment",
    "turns": "by one call more than it may make",
}
"""Why a completion ended, in words."""
MOST_CHARACTERS = 20_000
"""Of a text; more is counted and left out."""


def text(words: str) -> str:
    """Escaped, with characters written out that cannot be seen, or that would turn the direction of what follows."""
    return escape("".join(_seen(letter) for letter in words))


def _seen(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return letter
    return f"\\u{ord(letter):04x}"


class SamplesShown:
    """The samples of one run. folder: of the run, whose tokenizer gives the text of each token."""

    def __init__(self, folder: Path) -> None:
        self._decode = decoder_of(folder)

    def sample(self, mark: Mark) -> str:
        """One of them, with its prompt."""
        row = whole(mark)
        head = f"{row['source']} · {row['id']} · step {row['step']:,}, sample {row['sample']}"
        return _figure(row["source"], head, _asked(row["prompt"], row["answer"]), self.completion(row))

    def change(self, one: ChangedSamples, theirs: SamplesShown, names: tuple[str, str]) -> str:
        """Two samples of one prompt, side by side. theirs: of the run that the first one is of; names: of both runs."""
        before, after = whole(one.before), whole(one.after)
        sides = ""
        for row, by, name, reward in (
            (before, theirs, names[0], one.reward_before),
            (after, self, names[1], one.reward_after),
        ):
            when = f"{name}, step {row['step']:,}" if name else f"step {row['step']:,}"
            words = text(f"{when}: mean reward of its group {number(reward, 3)}")
            sides += f"<div><b>{words}</b>{by.completion(row)}</div>"
        head = f"{after['source']} · {after['id']}"
        return _figure(
            after["source"], head, _asked(after["prompt"], after["answer"]), f'<div class="sides">{sides}</div>'
        )

    def completion(self, row: Row) -> str:
        """Its tokens and its worth."""
        made = [TokenText(row["completion"], 0)] if self._decode is None else pieces(row["token_ids"], self._decode)
        advantage = number_of(row["advantage"]) or 0.0
        ends = [*(piece.first for piece in made[1:]), len(row["token_ids"])]
        spans = "".join(_span(piece, row, end) for piece, end in zip(made, ends, strict=False))
        said = spans or '<span class="off">nothing</span>'
        return f'<pre class="{strength(advantage)}">{said}</pre>{_badges(row, advantage)}'


def pair(one: ChangedAnswer, names: tuple[str, str]) -> str:
    """Two greedy answers to a held-out question, side by side."""
    sides = ""
    for line, name in zip((one.before, one.after), names, strict=True):
        kind = "up" if line["right"] else "down"
        cut = "" if line["stopped"] else '<span class="badge cut">cut off</span>'
        right = f'<span class="badge {kind}">{"right" if line["right"] else "not right"}</span>{cut}'
        sides += f"<div><b>{text(name)}</b><pre>{text(_short(line['completion']))}</pre>{right}</div>"
    asked = _asked(one.after["prompt"], one.after["reference"])
    return _figure(one.after["domain"], f"{one.after['domain']}, held out", asked, f'<div class="sides">{sides}</div>')


def strength(advantage: float) -> str:
    """The class of a sample by its advantage; empty near 0."""
    size = sum(abs(advantage) >= bound for bound in STRENGTHS)
    return f"{'u' if advantage > 0 else 'd'}{size}" if size else ""


def _figure(source: str, head: str, asked: str, content: str) -> str:
    return f'<article class="sample" data-source="{text(source)}"><h3>{text(head)}</h3>{asked}{content}</article>\n'


def _asked(prompt: str, answer: str | None) -> str:
    known = "" if answer is None else f'<span class="badge">known answer: {text(_short(answer))}</span>'
    return f'<pre class="asked">{text(_short(prompt))}</pre>{known}'


def _span(piece: TokenText, row: Row, end: int) -> str:
    """A token; of several that are one character, the least probable counts."""
    logprob = min(row["logprobs"][piece.first : end], default=0.0)
    chance = math.exp(min(logprob, 0.0))
    level = sum(chance < bound for bound in BOUNDS)
    classes = [f"l{level}"] if level else []
    classes += [] if all(row["trained"][piece.first : end]) else ["off"]
    kind = f' class="{" ".join(classes)}"' if classes else ""
    shown = text(piece.text.replace("\n", "↵\n"))
    return f'<span{kind} title="probability {chance:.3g}, logprob {logprob:.3f}">{shown}</span>'


def _badges(row: Row, advantage: float) -> str:
    reward = number_of(row["reward"])
    parts = [("", "no reward" if reward is None else f"reward {reward:.4g}")]
    named = row["rewards"] or {}
    if len(named) > 1:
        parts += [("", f"{name} {_value(number_of(value))}") for name, value in named.items()]
    elif named:
        parts[0] = ("", f"{parts[0][1]} ({next(iter(named))})")
    sign = "up" if advantage > 0 else "down" if advantage < 0 else ""
    parts.append((sign, f"advantage {advantage:+.3f}"))
    size = len(row["token_ids"])
    if row["stop_reason"] == "length":
        parts.append(("cut", f"unfinished: cut off at {size:,} tokens"))
    else:
        parts.append(("", f"{size:,} tokens, ended {ENDED.get(row['stop_reason'], row['stop_reason'])}"))
    return "".join(f'<span class="badge {kind}">{text(words)}</span>' for kind, words in parts)


def _value(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4g}"


def _short(words: str) -> str:
    more = len(words) - MOST_CHARACTERS
    return words if more <= 0 else f"{words[:MOST_CHARACTERS]} [... {more:,} more characters]"
