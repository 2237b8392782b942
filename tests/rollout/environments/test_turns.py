"""Completions with an environment: those of a loop that computes the whole prefix again for every token."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from tests.rollout.naive import last_logits
from tests.rollout.sampled import CONFIG, prompts, settings

from lifecycle.batch import Rollout
from lifecycle.errors import UserError
from lifecycle.model import Decoder, build
from lifecycle.rewards.record import Answered
from lifecycle.rollout import Engine, Sampling, generate
from lifecycle.rollout.environments.environment import Environments, Observation
from lifecycle.rollout.sampling.draw import draw
from lifecycle.rollout.sampling.on_device import DeviceSampling
from lifecycle.rollout.sampling.parameters import sequence_seed, uniforms

VOCAB = 96
A = 0x4E00


class Letters:
    """A token is a letter; `ab` is one token too, where text is encoded, so that what is drawn as two is not."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("ab" if i == VOCAB - 1 else chr(A + i) for i in ids).replace("ab", chr(A + 1) + chr(A + 2))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        joined = [text.replace(chr(A + 1) + chr(A + 2), chr(A + VOCAB - 1)) for text in texts]
        return [[ord(letter) - A for letter in text] for text in joined]


STOPS = tuple(chr(A + i) for i in range(30, 60))
"""A third of the letters: a policy with random weights calls often."""


@dataclass
class Talker:
    """Answers by what it was told and how often; every so often it fails, says nothing, or is done."""

    stops: Sequence[str] = STOPS
    record: Answered = field(default_factory=Answered)
    heard: list[str] = field(default_factory=list)

    def reset(self, record: Answered) -> str | None:
        self.record = record
        return chr(A + 1) + chr(A + 2) if record.answer == "open" else None

    def step(self, text: str) -> Observation:
        self.heard.append(text)
        value = sum(map(ord, text)) + len(self.heard)
        said = "".join(chr(A + (value * k) % VOCAB) for k in range(1, 1 + value % 6))
        if len(self.heard) == 2 and value % 4 == 0:
            return Observation(text=said, done=True, reward=1.0)
        return Observation(text=said, failed=value % 3 == 0, reward=0.25 if value % 2 else None)


def given(count: int, *, turns: int = 3, cut: int = 4) -> Environments:
    records = [Answered(answer="open" if i % 2 else "") for i in range(count)]
    return Environments(make=Talker, records=records, tokenizer=Letters(), max_turns=turns, max_observation_tokens=cut)


@torch.no_grad()
def naive(
    model: Decoder, prompt: list[int], sampling: Sampling, record: Answered, own: int, *, turns: int, cut: int
) -> tuple[list[int], list[bool], str]:
    """(ids, whether each was drawn, why it ended)."""
    letters, talker = Letters(), Talker()
    most = min(sampling.max_new_tokens, model.config.max_positions - len(prompt))
    ids: list[int] = letters.encode_batch([talker.reset(record) or ""])[0][: min(cut, most - 1)]
    sampled, start, calls = [False] * len(ids), len(ids), 0
    setting = DeviceSampling(sampling, vocab=VOCAB, device=torch.device("cpu"))
    full = "length" if most == sampling.max_new_tokens else "capacity"
    while True:
        seen = torch.zeros(1, VOCAB, dtype=torch.bool)
        seen[0, prompt + ids] = True
        u = uniforms(torch.tensor([own]), torch.tensor([len(ids)]))
        ids.append(int(draw(last_logits(model, prompt + ids), u, setting, seen_RV=seen).ids))
        sampled.append(True)
        if ids[-1] in sampling.stop_ids:
            return ids, sampled, "stop_id"
        said = letters.decode(ids[start:])
        if any(stop in said for stop in STOPS):
            if calls == turns:
                return ids, sampled, "turns"
            calls, seen_now = calls + 1, talker.step(said)
            if seen_now.done:
                return ids, sampled, "done"
            told = letters.encode_batch([seen_now.text])[0]
            if told and most - len(ids) < 2:
                return ids, sampled, full
            told = told[: min(cut, most - len(ids) - 1)]
            ids, sampled, start = ids + told, sampled + [False] * len(told), len(ids) + len(told)
        elif any(text in said for text in sampling.stop_strings):
            return ids, sampled, "stop_string"
        if len(ids) >= most:
            return ids, sampled, full


def same(model: Decoder, rollout: Rollout, sampling: Sampling, where: Environments, *, seed: int, step: int) -> None:
    for n, prompt in enumerate(rollout.prompts):
        number, sample = int(rollout.prompt_id[n]), int(rollout.sample[n])
        own = sequence_seed(seed, step, number, sample)
        limits = {"turns": where.max_turns, "cut": where.max_observation_tokens}
        ids, sampled, reason = naive(model, prompt, sampling, where.records[number], own, **limits)
        assert rollout.completion(n) == ids
        assert rollout.sampled[n, : len(ids)].tolist() == sampled and not rollout.sampled[n, len(ids) :].any()
        assert rollout.stop_reason[n] == reason and sampled[-1]


LAYOUTS: list[dict[str, Any]] = [
    {"slots": 1},
    {"slots": 2, "prefill_chunk": 1},
    {"slots": 3, "prefill_chunk": 5},
    {"slots": 7},
    {"slots": 64},
    {"slots": 4, "deterministic": True},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_completions_are_those_of_a_plain_loop(layout: dict[str, Any]) -> None:
    model, asked, where = build(CONFIG, seed=1), prompts(3, seed=2), given(3)
    changes = ({"stop_ids": (5, 6)}, {"top_k": 9}, {"repetition_penalty": 1.3})[LAYOUTS.index(layout) % 3]
    sampling = settings(samples=2, **{"max_new_tokens": 17, **changes})
    rollout = generate(model, asked, sampling, seed=7, step=3, tokenizer=Letters(), environments=where, **layout)
    same(model, rollout, sampling, where, seed=7, step=3)
    assert rollout.dialogues is not None and sum(one.calls for one in rollout.dialogues) > 6
    assert (~rollout.sampled & rollout.exists).any() and len(set(rollout.stop_reason)) > 1


def test_numbers_are_of_what_was_drawn_alone() -> None:
    model = build(CONFIG, seed=1)
    sampling, where = settings(samples=3, max_new_tokens=24, top_k=11), given(4)
    rollout = generate(model, prompts(4, seed=2), sampling, seed=7, tokenizer=Letters(), environments=where)
    told = ~rollout.sampled
    for numbers in (rollout.logprobs, rollout.full_logprobs, rollout.entropy):
        assert not numbers[told].any() and (numbers[rollout.sampled] != 0).all()
    counts = rollout.kept.counts.view(rollout.sampled.shape)
    assert not counts[told].any() and (counts[rollout.sampled] == 11).all()
    only = replace(rollout, logprobs=rollout.logprobs, entropy=rollout.entropy)
    assert mismatch_of_drawn(model, only, sampling) < 1e-4


def mismatch_of_drawn(model: Decoder, rollout: Rollout, sampling: Sampling) -> float:
    """As `sampled.mismatch`, where a token was drawn."""
    from tests.rollout.naive import score

    worst = 0.0
    for row, prompt in enumerate(rollout.prompts):
        ids = rollout.completion(row)
        fresh = score(model, prompt, ids, rollout.rows([row]).kept.first(len(ids)), sampling)
        mask = rollout.sampled[row, : len(ids)]
        for a, b in zip(fresh, (rollout.logprobs, rollout.full_logprobs, rollout.entropy), strict=True):
            worst = max(worst, float((a - b[row, : len(ids)])[mask].abs().max()))
    return worst


def test_dialogues_are_the_completion() -> None:
    model = build(CONFIG, seed=1)
    rollout = generate(
        model,
        prompts(4, seed=2),
        settings(samples=3, max_new_tokens=24),
        seed=7,
        tokenizer=Letters(),
        environments=given(4),
    )
    assert rollout.dialogues is not None
    letters = Letters()
    for n, dialogue in enumerate(rollout.dialogues):
        assert "".join(text for _, text in dialogue.turns) == rollout.text[n]
        ids, sampled = rollout.completion(n), rollout.sampled[n]
        assert dialogue.said == letters.decode([i for i, own in zip(ids, sampled.tolist(), strict=False) if own])
        last = max((i for i in range(len(ids)) if not sampled[i]), default=-1) + 1
        if dialogue.turns[-1][0] and "" not in [text for _, text in dialogue.turns]:
            assert dialogue.last_said == letters.decode(ids[last:])
    again = Rollout.of_state(rollout.state())
    assert again.dialogues == rollout.dialogues
    assert rollout.rows([3, 1]).dialogues == [rollout.dialogues[3], rollout.dialogues[1]]
    assert Rollout.joined([rollout.rows([3]), rollout.rows([1])]).dialogues == rollout.rows([3, 1]).dialogues


def test_what_was_drawn_is_not_encoded_again() -> None:
    """Two letters that a policy drew apart have one token in text; they stay two, and an answer's become one."""
    model, few = build(CONFIG, seed=1), (1, 2, 30)
    sampling = settings(max_new_tokens=60, banned_ids=tuple(i for i in range(VOCAB) if i not in few))
    rollout = generate(model, [[1]], sampling, seed=3, environments=given(2, turns=50), tokenizer=Letters())
    ids = rollout.completion(0)
    assert (1, 2) in zip(ids, ids[1:], strict=False)
    assert Letters().encode_batch(rollout.text)[0] != ids and VOCAB - 1 not in ids


def test_an_answer_is_encoded_alone() -> None:
    rollout = generate(build(CONFIG, seed=1), [[1], [2]], settings(), seed=3, environments=given(2))
    assert rollout.completion(1)[0] == VOCAB - 1 and not rollout.sampled[1, 0]
    assert rollout.completion(0)[0] != VOCAB - 1 and rollout.sampled[0, 0]


def test_neither_slots_nor_order_nor_neighbours_matter() -> None:
    model = build(CONFIG, seed=1)
    asked, sampling, where = prompts(5, seed=4), settings(samples=2, max_new_tokens=24), given(5)

    def drawn(order: Sequence[int], slots: int) -> dict[tuple[int, int], Any]:
        part = replace(where, records=[where.records[i] for i in order])
        rollout = generate(
            model,
            [asked[i] for i in order],
            sampling,
            seed=5,
            prompt_ids=list(order),
            slots=slots,
            environments=part,
            deterministic=True,
            tokenizer=Letters(),
        )
        names = zip(rollout.prompt_id.tolist(), rollout.sample.tolist(), strict=True)
        return {
            name: (rollout.completion(n), rollout.logprobs[n, : int(rollout.length[n])].tolist())
            for n, name in enumerate(names)
        }

    whole = drawn(range(5), 10)
    assert drawn([3, 0, 4, 1, 2], 3) == whole and drawn(range(5), 1) == whole
    assert drawn([2], 1).items() <= whole.items()


def test_a_silent_environment_changes_nothing() -> None:
    model = build(CONFIG, seed=1)

    class Silent(Talker):
        def step(self, text: str) -> Observation:
            return Observation()

    asked, sampling = prompts(4, seed=2), settings(samples=3)
    where = replace(given(4, turns=100), make=Silent, records=[Answered()] * 4)
    alone = generate(model, asked, sampling, seed=7)
    beside = generate(model, asked, sampling, seed=7, environments=where)
    assert torch.equal(alone.token_ids, beside.token_ids) and torch.equal(alone.logprobs, beside.logprobs)
    assert torch.equal(alone.sampled, beside.sampled) and alone.stop_reason == beside.stop_reason


def test_every_token_is_shown_once() -> None:
    model, seen = build(CONFIG, seed=1), dict[tuple[int, int], list[int]]()
    where = replace(given(4), records=[Answered()] * 4)
    rollout = generate(
        model,
        prompts(4, seed=2),
        settings(samples=3),
        seed=7,
        environments=where,
        on_token=lambda prompt, sample, token: seen.setdefault((prompt, sample), []).append(token),
    )
    assert seen == {(n // 3, n % 3): rollout.completion(n) for n in range(len(rollout))}


def test_an_engine_goes_on_after_a_dialogue() -> None:
    model = build(CONFIG, seed=1)
    engine, asked, sampling = Engine(model, slots=3), prompts(4, seed=2), settings(samples=2)
    first = engine.generate(asked, sampling, seed=7)
    engine.generate(asked, sampling, seed=7, environments=given(4))
    again = engine.generate(asked, sampling, seed=7)
    assert torch.equal(first.token_ids, again.token_ids) and again.dialogues is None


def test_an_answer_must_be_an_observation() -> None:
    class Wrong(Talker):
        def step(self, text: str) -> Any:
            return "84"

    with pytest.raises(UserError, match="Wrong.step gave '84'; wanted an Observation"):
        generate(
            build(CONFIG, seed=1),
            prompts(4, seed=2),
            settings(max_new_tokens=24),
            seed=7,
            environments=replace(given(4), make=Wrong),
        )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_layouts_are_plain_loops(seed: int) -> None:
    rng = random.Random(seed)
    model = build(replace(CONFIG, max_positions=rng.choice([40, 64, 256])), seed=seed)
    count, samples = rng.randint(1, 6), rng.randint(1, 4)
    where = given(count, turns=rng.choice([1, 2, 3, 9]), cut=rng.choice([1, 2, 8]))
    changes: dict[str, Any] = {}
    if rng.random() < 0.5:
        changes["top_p"] = 0.9
    if rng.random() < 0.5:
        changes["stop_strings"] = (chr(A + 31), chr(A + 70))
    sampling = settings(samples=samples, max_new_tokens=rng.choice([1, 2, 5, 30]), stop_ids=(3,), **changes)
    layout: dict[str, Any] = {
        "slots": rng.randint(1, 12),
        "prefill_chunk": rng.choice([1, 3, 64]),
        "deterministic": rng.random() < 0.3,
    }
    asked = prompts(count, longest=rng.choice([1, 20, 39]), seed=seed)
    rollout = generate(model, asked, sampling, seed=seed, step=seed, tokenizer=Letters(), environments=where, **layout)
    same(model, rollout, sampling, where, seed=seed, step=seed)


class Lengthy(Talker):
    """More than a chunk of prefill, and than the cache has room for at first."""

    def reset(self, record: Answered) -> str | None:
        return "".join(chr(A + k * 7 % 90) for k in range(150)) if record.answer else None

    def step(self, text: str) -> Observation:
        return Observation(text="".join(chr(A + (k * 11 + len(text)) % 90) for k in range(130)))


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"slots": 3, "deterministic": True}, {"slots": 4, "prefill_chunk": 50}])
def test_long_answers_are_prefilled_in_chunks(layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "Talker", Lengthy)
    model = build(replace(CONFIG, max_positions=1024), seed=1)
    where, sampling = given(4, turns=4, cut=140), settings(samples=2, max_new_tokens=700)
    asked = prompts(4, seed=2)
    rollout = generate(model, asked, sampling, seed=7, tokenizer=Letters(), environments=where, **layout)
    same(model, rollout, sampling, where, seed=7, step=0)
    assert int(rollout.length.max()) > 600
