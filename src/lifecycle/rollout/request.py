"""One call of the engine: its checked prompts, and the objects that track its sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lifecycle.batch import StopReason
from lifecycle.errors import UserError
from lifecycle.rollout.cache_room import Room
from lifecycle.rollout.environments.environment import Environments
from lifecycle.rollout.environments.turns import Told, Turns
from lifecycle.rollout.output import Collected
from lifecycle.rollout.sampling.parameters import Sampling, sequence_seed
from lifecycle.rollout.sampling.stop_conditions import Decoding, Stops
from lifecycle.rollout.scheduler import NUMBER, PLACE, Ints, Scheduler


@dataclass(frozen=True, slots=True)
class NewToken:
    """One token of a stream, of completion `sample` of prompt number `prompt`. stop_reason: of the last one, else
    None."""

    prompt: int
    sample: int
    token: int
    stop_reason: StopReason | None


class OneAtATime:
    """A context held while a call uses the engine's one cache. Errors: `UserError` for a second call meanwhile."""

    def __init__(self) -> None:
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise UserError(
                "this engine is in the middle of another call, and a second one would write over its cache: read that "
                "stream to its end, or close() it, first; streams side by side need an Engine each"
            )
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call under way. numbers: stable numbers of the prompts. seeds: of the sequences. room: the size of its
    cache. turns: with environments; None: there are none. ahead: decode steps at most that are made before the host
    looks at what they drew; a sequence that has ended by then draws on, and nothing reads it."""

    schedule: Scheduler
    out: Collected
    stops: Stops
    numbers: list[int]
    seeds: list[int]
    room: Room
    turns: Turns | None
    ahead: int

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int,
        step: int,
        prompt_ids: Sequence[int] | None,
        tokenizer: Decoding | None,
        environments: Environments | None,
        positions: int,
        vocab: int,
        slots: int,
        prefill_tokens: int,
        together: bool,
        powers: bool,
        ahead: int,
        sets: bool,
        device: torch.device,
    ) -> Call:
        """For a model with room for `positions`. Errors: `UserError` for prompts that cannot be continued."""
        drawn = sampling.drawn
        numbers, seeds, limits = sequences(
            prompts, sampling, seed=seed, step=step, prompt_ids=prompt_ids, positions=positions, vocab=vocab
        )
        stops, turns = Stops(sampling, tokenizer, limits), None
        ahead = 1 if stops.reads_text or environments is not None else ahead
        longest = max((len(p) + limits[i * drawn] for i, p in enumerate(prompts)), default=1)
        room = Room.of(
            sequences=len(seeds),
            slots=slots,
            prompt=max(map(len, prompts), default=1),
            longest=longest + ahead - 1,
        )
        out = Collected(len(seeds), max(limits, default=1) + ahead - 1, device=device, sets=sets)
        if environments is not None:
            turns = Turns(environments, prompts, samples=drawn, stops=stops)
            for sequence, told in turns.openings.items():
                out.tell(sequence, 0, told)
        schedule = Scheduler(
            prompts,
            samples=drawn,
            seeds=seeds,
            slots=room.rows,
            prefill_tokens=prefill_tokens,
            together=together,
            powers=powers,
            openings=None if turns is None else turns.openings,
        )
        return cls(
            schedule=schedule,
            out=out,
            stops=stops,
            numbers=numbers,
            seeds=seeds,
            room=room,
            turns=turns,
            ahead=ahead,
        )

    def steps(self) -> int:
        """Decode steps that may be made now before the host looks."""
        table = self.schedule.table[:, self.schedule.active_rows()]
        return max(1, min(self.ahead, self.stops.left(table[PLACE], table[NUMBER])))

    def take(self, tokens_TR: Ints, *, watched: bool) -> tuple[list[NewToken], list[int]]:
        """Enter what the first rows drew in each of some steps. Returns the new tokens if `watched`, and the rows that
        are free now."""
        rows, news, free = self.schedule.active_rows(), list[NewToken](), list[int]()
        for tokens in tokens_TR:
            self.schedule.step(len(tokens), tokens)
            new, ended = self._take(rows, tokens, watched=watched)
            news, free, rows = news + new, free + ended, np.setdiff1d(rows, ended)
        return news, free

    def _take(self, rows: Ints, tokens: Ints, *, watched: bool) -> tuple[list[NewToken], list[int]]:
        """Of one step: tell the sequences of these rows what their environments say, and end those that are over."""
        schedule = self.schedule
        sequences, numbers, drawn = schedule.table[PLACE, rows], schedule.table[NUMBER, rows], tokens[rows]
        self._check(sequences, numbers, drawn)
        told, ended = dict[int, Told](), dict(self.stops.ended(sequences, drawn, numbers))
        if self.turns is not None:
            told, ended = self.turns.told(sequences, drawn, ended)
        news = list[NewToken]()
        for place, (sequence, token) in enumerate(zip(sequences.tolist(), drawn.tolist(), strict=True)):
            if watched:
                new = [token, *told[place].ids] if place in told else [token]
                prompt, sample = divmod(sequence, schedule.samples)
                news += [NewToken(prompt, sample, one, ended.get(place)) for one in new]
        for place, one in told.items():
            self.out.tell(int(sequences[place]), int(numbers[place]), one.ids)
            schedule.tell(int(rows[place]), one.whole)
        for place, reason in ended.items():
            self.out.end(int(sequences[place]), int(numbers[place]), reason)
        return news, [int(rows[place]) for place in ended]

    def _check(self, sequences: Ints, numbers: Ints, tokens: Ints) -> None:
        """Refuse tokens that were drawn from logits that are not finite. Errors: `UserError`."""
        wrong = np.flatnonzero(tokens < 0)
        if len(wrong):
            prompt = self.numbers[int(sequences[wrong[0]]) // self.schedule.samples]
            raise UserError(
                f"logits of prompt {prompt} are not finite at token {int(numbers[wrong[0]]) - 1} of its completion: "
                "the model's weights are damaged, or its training has diverged; an earlier checkpoint of the run may "
                "be whole (init_from=RUN@STEP)"
            )


def sequences(
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    seed: int,
    step: int,
    prompt_ids: Sequence[int] | None,
    positions: int,
    vocab: int,
) -> tuple[list[int], list[int], list[int]]:
    """The stable number of each prompt; seed and most new tokens of each sequence, those of a prompt together.

    Errors: `UserError` for prompts that cannot be continued.
    """
    numbers = list(range(len(prompts))) if prompt_ids is None else list(prompt_ids)
    check(prompts, numbers, positions=positions, vocab=vocab)
    drawn = range(sampling.drawn)
    seeds = [sequence_seed(seed, step, number, sample) for number in numbers for sample in drawn]
    limits = [min(sampling.max_new_tokens, positions - len(prompt)) for prompt in prompts for _ in drawn]
    return numbers, seeds, limits


def check(prompts: Sequence[Sequence[int]], numbers: Sequence[int], *, positions: int, vocab: int) -> None:
    """Refuse prompts that cannot be continued, the first twenty at once. Errors: `UserError`."""
    faults = []
    if len(set(numbers)) != len(prompts) or len(numbers) != len(prompts):
        faults.append(f"{len(prompts)} prompts came with {len(set(numbers))} different prompt_ids; give each its own")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            faults.append(f"prompt {number} is empty; begin it with the tokenizer's bos")
        elif len(prompt) >= positions:
            faults.append(
                f"prompt {number} has {len(prompt)} tokens; the model has room for {positions} positions "
                "(model.max_positions), completion included: shorten it"
            )
        elif min(prompt) < 0 or max(prompt) >= vocab:
            low, high = min(prompt), max(prompt)
            faults.append(f"prompt {number} holds ids from {low} to {high}; the model knows 0 to {vocab - 1}")
    if faults:
        raise UserError("these prompts cannot be continued:\n" + "\n".join(f"  - {fault}" for fault in faults[:20]))
