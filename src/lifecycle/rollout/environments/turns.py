"""The turns of the completions of one generation: which token ends one, and what the environment says to it.

    draw ... </calc>  ->  step(turn)  ->  tokens of the answer, encoded alone  ->  draw on

Tokens that were drawn are kept as they are, whatever a tokenizer would have made of their text; an answer is text
alone, in which names of special tokens are text. Environments are asked between two decode steps, in the order of the
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lifecycle.batch import Dialogue, StopReason
from lifecycle.errors import UserError
from lifecycle.rollout.environments.environment import Environment, Environments, Observation
from lifecycle.rollout.sampling.stop_conditions import MARGIN, Stops
from lifecycle.rollout.scheduler import Ints


class Told(NamedTuple):
    """ids: what the sequence is told. whole: all of its ids with these, those of the prompt first."""

    ids: list[int]
    whole: list[int]


@dataclass(slots=True)
class _Talk:
    """One sequence. ids: of the completion so far. start: of the present turn, in it. done: no turn follows."""

    environment: Environment
    prompt: Sequence[int]
    ids: list[int] = field(default_factory=list)
    start: int = 0
    turns: list[tuple[bool, str]] = field(default_factory=list)
    calls: int = 0
    failed: int = 0
    reward: float = 0.0


class Turns:
    """Those of `prompts` x `samples` sequences. openings: by sequence, what it is told before its first token.

    Errors: `UserError` for an environment that answers anything but an `Observation`.
    """

    def __init__(self, given: Environments, prompts: Sequence[Sequence[int]], *, samples: int, stops: Stops) -> None:
        self._given, self._stops, self._tokenizer = given, stops, given.tokenizer
        self._talks = [_Talk(given.make(), prompt) for prompt in prompts for _ in range(samples)]
        self.openings: dict[int, list[int]] = {}
        for sequence, talk in enumerate(self._talks):
            text = talk.environment.reset(given.records[sequence // samples])
            if text and (ids := self._heard(talk, text, room=stops.room(sequence, 0))):
                self.openings[sequence] = ids

    def told(
        self, sequences: Ints, tokens: Ints, ended: Mapping[int, StopReason]
    ) -> tuple[dict[int, Told], dict[int, StopReason]]:
        """What the sequences are told after these tokens, and which end: by place in the list. ended: those that would
        end without an environment."""
        told, ends = dict[int, Told](), dict(ended)
        for place, (sequence, token) in enumerate(zip(sequences.tolist(), tokens.tolist(), strict=True)):
            talk = self._talks[sequence]
            talk.ids.append(token)
            if ended.get(place) == "stop_id" or not self._calls(talk):
                continue
            answer = self._answer(sequence, talk)
            if isinstance(answer, str):
                ends[place] = answer
                continue
            ends.pop(place, None)
            self._stops.restart(sequence)
            if answer:
                told[place] = Told(answer, [*talk.prompt, *talk.ids])
        return told, ends

    def dialogues(self) -> list[Dialogue]:
        """Of every sequence, when all have ended."""
        for talk in self._talks:
            self._end_turn(talk)
        return [
            Dialogue(turns=talk.turns, calls=talk.calls, failed=talk.failed, reward=talk.reward) for talk in self._talks
        ]

    def _calls(self, talk: _Talk) -> bool:
        """Whether the last token ends a turn."""
        stops = talk.environment.stops
        # a token stands for at least one byte, so an occurrence that ends now began within so many tokens
        width = MARGIN + max(len(text.encode()) for text in stops)
        tail = self._tokenizer.decode(talk.ids[max(talk.start, len(talk.ids) - width) :])
        return any(text in tail for text in stops)

    def _answer(self, sequence: int, talk: _Talk) -> list[int] | StopReason:
        """The ids of the answer, or why the completion ends."""
        said = self._end_turn(talk)
        if talk.calls == self._given.max_turns:
            return "turns"
        seen = talk.environment.step(said)
        if not isinstance(seen, Observation):
            raise UserError(
                f"{type(talk.environment).__name__}.step gave {seen!r:.80}; wanted an Observation "
                "(lifecycle.rollout.environments.environment)"
            )
        talk.calls, talk.failed = talk.calls + 1, talk.failed + seen.failed
        talk.reward += seen.reward or 0.0
        room = self._stops.room(sequence, len(talk.ids))
        if seen.done:
            return "done"
        if room < bool(seen.text):
            return self._stops.full(sequence)
        return self._heard(talk, seen.text, room=room)

    def _heard(self, talk: _Talk, text: str, *, room: int) -> list[int]:
        """The ids of a text that one token can follow on, which is cut where it is too long."""
        (whole,) = self._tokenizer.encode_batch([text])
        ids = [int(i) for i in whole[: min(self._given.max_observation_tokens, room)]]
        talk.turns.append((False, self._tokenizer.decode(ids)))
        talk.ids += ids
        talk.start = len(talk.ids)
        return ids

    def _end_turn(self, talk: _Talk) -> str:
        """The text of the present turn, if any, which becomes one of the past."""
        said = self._tokenizer.decode(talk.ids[talk.start :])
        if talk.start < len(talk.ids):
            talk.turns.append((True, said))
            talk.start = len(talk.ids)
        return said
