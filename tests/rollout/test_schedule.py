"""The scheduler, played through with random lengths: every sequence gets a row that holds its prompt, once."""

import random

import numpy as np
import pytest

from lifecycle.rollout.schedule import NUMBER, PLACE, POSITION, TOKEN, Move, Schedule


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
    prompts: list[list[int]], *, samples: int, slots: int, prefill_tokens: int, seed: int, together: bool = True
) -> Machine:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 9) for _ in range(len(prompts) * samples)]
    schedule = Schedule(
        prompts,
        samples=samples,
        seeds=list(range(len(lengths))),
        slots=slots,
        prefill_tokens=prefill_tokens,
        together=together,
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


def prefill(machine: Machine, schedule: Schedule) -> None:
    chunk = schedule.chunk()
    for row, prompt in zip(chunk.rows, chunk.prompts, strict=True):
        ids = machine.prompts[prompt][:-1]
        if chunk.start == 0:
            machine.rows[row] = {}
        for position in range(chunk.start, min(chunk.start + chunk.width, len(ids))):
            machine.rows[row][position] = ids[position]
            machine.prefilled.append(prompt)
    schedule.prefilled(chunk)


def decode(machine: Machine, schedule: Schedule, lengths: list[int]) -> None:
    active, table = schedule.active, schedule.table
    tokens = np.zeros(active, np.int64)
    done = []
    for row in schedule.at_work().tolist():
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
    prompts = [[100 * p + i for i in range(rng.randint(1, 12))] for p in range(rng.randint(1, 9))]
    samples, slots = rng.randint(1, 6), rng.randint(1, 9)
    machine = play(
        prompts,
        samples=samples,
        slots=slots,
        prefill_tokens=rng.randint(1, 30),
        seed=seed,
        together=rng.random() < 0.7,
    )
    assert sorted(machine.finished) == list(range(len(prompts) * samples))
    # once for all samples of it
    assert sorted(machine.prefilled) == sorted(p for p, ids in enumerate(prompts) for _ in ids[:-1])


def test_rows_at_work_stay_together_when_nothing_waits() -> None:
    schedule = Schedule([[1], [2], [3], [4]], samples=1, seeds=range(4), slots=4, prefill_tokens=8)
    assert schedule.admit() == []
    assert schedule.active == 4
    schedule.step(4, np.array([5, 6, 7, 8]))
    assert schedule.finish([0, 2]) == [Move(3, 0, 1)]
    assert schedule.active == 2
    assert schedule.table[TOKEN, :2].tolist() == [8, 6]


def test_nothing_to_do_is_done() -> None:
    schedule = Schedule([], samples=3, seeds=[], slots=2, prefill_tokens=8)
    assert not schedule.busy and schedule.active == 0
