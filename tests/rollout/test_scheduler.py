"""The scheduler, played through with random lengths: every sequence gets a row that holds its prompt, once."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.rollout.sampled import CONFIG, settings

from lifecycle.model import Decoder, build
from lifecycle.rollout import Engine
from lifecycle.rollout.decode_step import DecodeStep
from lifecycle.rollout.scheduler import NUMBER, PLACE, POSITION, TOKEN, Chunk, Move, Scheduler


class Machine:
    """A cache of plain lists in place of tensors: what it holds is checked at every step."""

    def __init__(self, slots: int, prompts: list[list[int]], samples: int) -> None:
        self.rows: list[dict[int, int]] = [{} for _ in range(slots)]
        self.prompts, self.samples = prompts, samples
        self.prefilled: list[int] = []
        self.finished: dict[int, list[int]] = {}
        self.drawn: dict[int, list[int]] = {}

    def copy(self, moves: list[Move]) -> None:
        before = [dict(row) for row in self.rows]
        for move in moves:
            part = {p: t for p, t in before[move.source].items() if p < move.length}
            assert len(part) == move.length
            self.rows[move.target] = part


def play(
    prompts: list[list[int]],
    *,
    samples: int,
    slots: int,
    prefill_tokens: int,
    seed: int,
    together: bool = True,
    powers: bool = False,
) -> Machine:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(len(prompts) * samples)]
    schedule = Scheduler(
        prompts,
        samples=samples,
        seeds=list(range(len(lengths))),
        slots=slots,
        prefill_tokens=prefill_tokens,
        together=together,
        powers=powers,
    )
    machine = Machine(slots, prompts, samples)
    turn = False
    while schedule.busy:
        machine.copy(schedule.admit())
        turn = schedule.prefilling and not (turn and schedule.active)
        if turn:
            prefill(machine, schedule)
            continue
        decode(machine, schedule, lengths)
    return machine


def prefill(machine: Machine, schedule: Scheduler) -> None:
    chunk = schedule.chunk()
    assert len(chunk.rows) * chunk.width <= max(schedule._prefill_tokens, len(chunk.rows))
    for row, whole, start in zip(chunk.rows, chunk.ids, chunk.starts, strict=True):
        prompt, ids = machine.prompts.index(list(whole)), whole[:-1]
        if start == 0:
            machine.rows[row] = {}
        for position in range(start, min(start + chunk.width, len(ids))):
            machine.rows[row][position] = ids[position]
            machine.prefilled.append(prompt)
    schedule.prefilled(chunk)


def decode(machine: Machine, schedule: Scheduler, lengths: list[int]) -> None:
    active, table = schedule.active, schedule.table
    tokens = np.zeros(active, np.int64)
    done = []
    for row in schedule.active_rows().tolist():
        sequence, position, number = (int(table[line, row]) for line in (PLACE, POSITION, NUMBER))
        history = machine.prompts[sequence // machine.samples] + machine.drawn.setdefault(sequence, [])
        assert int(table[TOKEN, row]) == history[position] and position == len(history) - 1
        held = machine.rows[row]
        assert [held[p] for p in range(position)] == history[:-1]  # what attention will see
        held[position] = history[position]
        tokens[row] = 1000 + 10 * sequence + number
        machine.drawn[sequence].append(int(tokens[row]))
        if len(machine.drawn[sequence]) == lengths[sequence]:
            done.append(row)
            assert sequence not in machine.finished
            machine.finished[sequence] = machine.drawn[sequence]
    schedule.step(active, tokens)
    if done:
        machine.copy(schedule.finish(done))


@pytest.mark.parametrize("seed", range(40))
def test_every_sequence_runs_once_over_its_own_prompt(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.choice([1, rng.randint(1, 12), 60]) for _ in range(rng.randint(1, 9))]
    prompts = [[100 * p + i for i in range(length)] for p, length in enumerate(lengths)]
    samples, slots = rng.randint(1, 6), rng.randint(1, 9)
    machine = play(
        prompts,
        samples=samples,
        slots=slots,
        prefill_tokens=rng.randint(1, 30),
        seed=seed,
        together=rng.random() < 0.7,
        powers=rng.random() < 0.5,
    )
    assert sorted(machine.finished) == list(range(len(prompts) * samples))
    # once for all samples of it
    assert sorted(machine.prefilled) == sorted(p for p, ids in enumerate(prompts) for _ in ids[:-1])


def test_active_rows_stay_together_when_nothing_waits() -> None:
    schedule = Scheduler([[1], [2], [3], [4]], samples=1, seeds=range(4), slots=4, prefill_tokens=8)
    assert schedule.admit() == []
    assert schedule.active == 4
    schedule.step(4, np.array([5, 6, 7, 8]))
    assert schedule.finish([0, 2]) == [Move(3, 0, 1)]
    assert schedule.active == 2
    assert schedule.table[TOKEN, :2].tolist() == [8, 6]


def test_nothing_to_do_is_done() -> None:
    schedule = Scheduler([], samples=3, seeds=[], slots=2, prefill_tokens=8)
    assert not schedule.busy and schedule.active == 0


def test_short_prompts_work_while_a_long_one_is_prefilled() -> None:
    prompts = [[0] * 1000, [1] * 5, [2] * 7, [3] * 6]
    schedule = Scheduler(prompts, samples=1, seeds=range(4), slots=2, prefill_tokens=64)
    assert schedule.admit() == []
    done: list[int] = []
    for _ in range(8):  # a chunk, a step, each of which ends the active rows
        schedule.prefilled(schedule.chunk())
        assert schedule.admit() == []
        done += schedule.table[PLACE, schedule.active_rows()].tolist()
        schedule.finish(schedule.active_rows().tolist())
        schedule.admit()
    assert done == [1, 2, 3] and schedule.prefilling


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_long_prompt_holds_back_no_short_one(deterministic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(replace(CONFIG, max_positions=2048), seed=1)
    widths: list[int] = []
    real = DecodeStep.prefill

    def prefill(self: DecodeStep, model: Decoder, chunk: Chunk, *rest: Any, width: int) -> None:
        widths.append(width * len(chunk.rows))
        real(self, model, chunk, *rest, width=width)

    monkeypatch.setattr(DecodeStep, "prefill", prefill)
    engine = Engine(model, slots=2, prefill_chunk=64, deterministic=deterministic)
    asked, sampling = [[1] * 1500, [2] * 8, [3] * 9], settings(max_new_tokens=4)
    seen: dict[int, int] = {}
    for new in engine.stream(asked, sampling, seed=0):
        seen.setdefault(new.prompt, sum(widths))
    assert seen[1] <= 64 and seen[2] <= 8 * 64 and seen[0] >= 1499
    if deterministic:
        together = engine.generate(asked, sampling, seed=0)
        for number, prompt in enumerate(asked):
            alone = engine.generate([prompt], sampling, seed=0, prompt_ids=[number])
            assert torch.equal(alone.token_ids[0], together.token_ids[number])
            assert torch.equal(alone.logprobs[0], together.logprobs[number])


def test_rows_are_moved_only_when_fewer_would_be_enough_where_steps_have_powers_of_two() -> None:
    schedule = Scheduler([[1]] * 8, samples=1, seeds=range(8), slots=8, prefill_tokens=8, powers=True)
    schedule.admit()
    schedule.step(8, np.arange(8))
    assert schedule.finish([0, 2, 5]) == [] and schedule.active == 8
    schedule.step(8, np.arange(8))
    assert schedule.finish([6]) == [Move(7, 0, 2), Move(4, 2, 2)] and schedule.active == 4
    assert schedule.sequence[:4] == [7, 1, 4, 3]
    schedule.step(4, np.arange(4))
    assert schedule.finish([0, 1, 2, 3]) == [] and not schedule.busy


def chunks(schedule: Scheduler) -> list[Chunk]:
    """All of the prefill of what was admitted at once."""
    schedule.admit()
    made = []
    while schedule.prefilling:
        made.append(schedule.chunk())
        schedule.prefilled(made[-1])
    return made


def test_many_prompts_are_prefilled_whole_and_not_a_token_of_each() -> None:
    count = 1024
    schedule = Scheduler([[1] * 64] * count, samples=1, seeds=range(count), slots=count, prefill_tokens=8192)
    made = chunks(schedule)
    assert len(made) == 8 and {chunk.width for chunk in made} == {63}
    assert [row for chunk in made for row in chunk.rows] == list(range(count))
    assert not any(start for chunk in made for start in chunk.starts)


def test_rows_that_begin_are_prefilled_apart_from_rows_that_go_on() -> None:
    schedule = Scheduler(
        [[1] * length for length in (5, 30, 6, 31)], samples=1, seeds=range(4), slots=4, prefill_tokens=16
    )
    made = [(chunk.rows, chunk.starts, chunk.width) for chunk in chunks(schedule)]
    assert made == [([0, 2], [0, 0], 5), ([1], [0], 16), ([1], [16], 13), ([3], [0], 16), ([3], [16], 14)]
