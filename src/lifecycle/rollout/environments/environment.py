"""What an environment is: it answers what a policy writes, in the middle of a completion.

    "What is 12 * (3 + 4)? " + "<calc>12 * (3 + 4)</calc>" + " = 84" + "\\n84"
     prompt                     the policy's first turn       answer    its second turn

A turn of the policy ends with one of `stops`. What the environment answers stands in the completion as tokens that the
policy has not drawn: it reads them, and is not trained on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lifecycle.rewards.record import Answered
from lifecycle.rollout.sampling.stop_conditions import Decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What an environment answers.

    text: goes into the completion; names of special tokens in it are text. done: the completion ends here, and text is
    left out. reward: of this turn; None: 0. failed: it could not do what it was asked, which is counted.
    """

    text: str = ""
    done: bool = False
    reward: float | None = None
    failed: bool = False


class Environment(Protocol):
    """A plain class without arguments, of which every completion has an instance of its own.

    What it answers must follow from the record and from what was written: a step that is taken again after an
    interruption asks it again.
    """

    @property
    def stops(self) -> Sequence[str]:
        """Texts that end a turn of the policy."""
        ...

    def reset(self, record: Answered) -> str | None:
        """What the policy reads before it begins, behind the prompt; None: nothing."""
        ...

    def step(self, text: str) -> Observation:
        """The answer to a turn of the policy: all that it wrote since it was last answered, the stop at its end."""
        ...


class Coding(Decoding, Protocol):
    """What is asked of a tokenizer."""

    def encode_batch(self, texts: Sequence[str]) -> Sequence[Any]:
        """Ids of each text, without marks; names of special tokens in it are text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Environments:
    """Those of one generation. make: a new one. records: of each prompt. max_turns: calls of a completion, of which one
    more ends it. max_observation_tokens: of one answer, which is cut there."""

    make: Callable[[], Environment]
    records: Sequence[Answered]
    tokenizer: Coding
    max_turns: int
    max_observation_tokens: int
