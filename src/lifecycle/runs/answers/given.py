"""What a model answers to held-out prompts: before the first step, at every measurement, and when the run is over.

    answers.jsonl          a line a prompt and measurement, with what stands in the data as the answer (reference)
    rollout/stopped        share of the answers that end with a stop token
    rollout/well_formed    share of those that are well-formed besides: neither empty nor with a mark of a turn inside,
                           and every <think> closed
    reward/exact_match     share of those that are the answer of the data besides, letter by letter
    rollout/length         tokens of an answer, in the mean

In a run that learns from samples, whose metrics have these names, they are answers/stopped, and so on; its last is
answers/right, the share of those that the graders among its rewards give 1 to.

Greedy, so that an answer changes with the weights alone; the same prompts each time. Every rank answers all of them,
for a sharded model needs every rank, and rank 0 writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lifecycle.batch import Ids, Rollout
from lifecycle.data.validation import HeldOutQuestion
from lifecycle.model import Decoder
from lifecycle.rewards.record import Answered
from lifecycle.rollout.engine import generate
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.rollout.sampling.parameters import Sampling
from lifecycle.stages.base import Stage
from lifecycle.stages.reinforcement.acting.actor import Actor
from lifecycle.tokenizer.tokenizer import Tokenizer

NAME = "answers.jsonl"
THOUGHTS = re.compile(r"<(/?)think>")

Right = Callable[[Sequence[str], Sequence[Answered], Sequence[int]], list[bool | None]]
"""Of answers as texts, each with what is known of its question and the index of its source, whether they are right;
None of one that no grader knows: it has to be the answer of the data."""


def right_by_rewards(stage: Stage) -> Right | None:
    """By the graders among the rewards of a stage that learns from them; None of any other stage."""
    actor = getattr(stage, "actor", None)
    if not isinstance(actor, Actor):
        return None
    names = stage.setup_facts.source_names

    def right(said: Sequence[str], records: Sequence[Answered], sources: Sequence[int]) -> list[bool | None]:
        marks = actor.scoring.right(said, records, [names[index] for index in sources]).tolist()
        return [None if mark != mark else mark == 1 for mark in marks]

    return right


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of answers.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def answers(
    model: Decoder,
    asked: Sequence[tuple[str, HeldOutQuestion]],
    tokenizer: Tokenizer,
    *,
    most_tokens: int,
    step: int,
    environment: EnvironmentKeys | None = None,
    right: Right | None = None,
) -> list[dict[str, Any]]:
    """The greedy answer to each question: the schema of answers.jsonl. Where an environment answers in between, what
    the model said last is its answer. right: see `Right`."""
    if not asked:
        return []
    vocab, room = model.config.vocab, model.config.max_positions - 1
    sampling = Sampling(
        max_new_tokens=most_tokens,
        temperature=0,
        stop_ids=tokenizer.end_ids,
        banned_ids=tuple(range(tokenizer.vocab_size, vocab)),  # rows that only fill the matrix up
    )
    prompts = [one.prompt[-room:].tolist() for _, one in asked]
    records = [
        Answered(answer=_text(one.answer, tokenizer), prompt=tokenizer.decode(ids, specials=True), meta=one.meta)
        for ids, (_, one) in zip(prompts, asked, strict=True)
    ]
    environments = None if environment is None else environment.of(records, tokenizer)
    rollout = generate(model, prompts, sampling, seed=0, tokenizer=tokenizer, environments=environments)
    said = [
        tokenizer.decode(rollout.completion(n)) if rollout.dialogues is None else rollout.dialogues[n].last_said
        for n in range(len(asked))
    ]
    graded = [None] * len(asked) if right is None else right(said, records, [one.source for _, one in asked])
    return [
        {"step": step, "domain": domain, "prompt": records[n].prompt}
        | _answer(rollout, n, one, tokenizer, is_right=_is_same(said[n], one, tokenizer) if mark is None else mark)
        for n, ((domain, one), mark) in enumerate(zip(asked, graded, strict=True))
    ]


def _is_same(said: str, asked: HeldOutQuestion, tokenizer: Tokenizer) -> bool:
    return said.strip() == _text(asked.answer, tokenizer).strip()


def _answer(
    rollout: Rollout, n: int, asked: HeldOutQuestion, tokenizer: Tokenizer, *, is_right: bool
) -> dict[str, Any]:
    """What is known of completion `n`, which answers a question."""
    ids, stopped = rollout.completion(n), rollout.stop_reason[n] == "stop_id"
    well_formed = stopped and is_well_formed(ids[:-1], tokenizer)
    return {
        "completion": tokenizer.decode(ids, specials=True),
        "reference": _text(asked.answer, tokenizer, specials=True),
        "tokens": len(ids),
        "stopped": stopped,
        "well_formed": well_formed,
        "right": well_formed and is_right,
    }


def _text(answer: Ids | str, tokenizer: Tokenizer, *, specials: bool = False) -> str:
    return answer if isinstance(answer, str) else tokenizer.decode(answer, specials=specials)


def is_well_formed(ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether an answer, without its stop token, is one: not empty, without marks of documents and turns, its thoughts
    begun and ended in turn."""
    marks = {i for i, name in tokenizer.special_names.items() if not THOUGHTS.fullmatch(name)}
    tags = [end == "" for end in THOUGHTS.findall(tokenizer.decode(ids, specials=True))]
    paired = len(tags) % 2 == 0 and tags == [True, False] * (len(tags) // 2)
    return bool(tokenizer.decode(ids).strip()) and not marks.intersection(ids) and paired


def shares(made: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The metrics of some answers."""
    return {
        "rollout/stopped": sum(one["stopped"] for one in made) / len(made),
        "rollout/well_formed": sum(one["well_formed"] for one in made) / len(made),
        "reward/exact_match": sum(one["right"] for one in made) / len(made),
        "rollout/length": sum(one["tokens"] for one in made) / len(made),
    }
