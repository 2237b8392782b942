"""Answers to held-out prompts: what is asked, and what counts as a well-formed answer."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tests.stages.reinforcement.made import GRADED, grpo
from tests.toy import toy

from lifecycle.batch import Example, Pair, Prompt
from lifecycle.data.validation import HeldOutQuestion
from lifecycle.model import build
from lifecycle.rewards.record import Answered
from lifecycle.rollout.environments.calculator import Calculator
from lifecycle.rollout.environments.named import EnvironmentKeys
from lifecycle.runs.answers.asking import HeldOutAnswers
from lifecycle.runs.answers.given import (
    NAME,
    answers,
    is_well_formed,
    read_answers,
    right_by_rewards,
    shares,
)
from lifecycle.stages.reinforcement.acting.scoring import Scoring
from lifecycle.tokenizer.tokenizer import train_bpe

TOKENIZER = train_bpe(["an answer <think> </think>\n"] * 9, vocab_size=300, digits=1)


def ids(text: str) -> list[int]:
    return [int(i) for i in TOKENIZER.encode_marked(text)]


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("an answer", True),
        ("<think>so</think> an answer", True),
        ("", False),
        (" \n", False),
        ("an <|user|> answer", False),
        ("<think>so", False),
        ("so</think> an answer", False),
        ("<think><think>so</think></think> an", False),
    ],
)
def test_an_answer_is_well_formed(text: str, fine: bool) -> None:
    assert is_well_formed(ids(text), TOKENIZER) == fine


def example(trained: list[int]) -> Example:
    return Example(ids=np.arange(1, len(trained) + 1, dtype=np.int32), trained=np.array(trained, bool))


def test_the_first_answer_of_a_conversation_is_asked_for() -> None:
    asked = HeldOutQuestion.of(example([0, 0, 1, 1, 0, 1]))
    assert asked is not None and asked.prompt.tolist() == [1, 2] and list(asked.answer) == [3, 4]
    to_the_end = HeldOutQuestion.of(example([0, 1, 1]))
    assert to_the_end is not None and list(to_the_end.answer) == [2, 3]
    pair = Pair(prompt=np.array([1, 2], np.int32), chosen=example([0, 0, 1]), rejected=example([0, 0, 1, 1]))
    judged = HeldOutQuestion.of(pair)
    assert judged is not None and judged.prompt.tolist() == [1, 2] and list(judged.answer) == [3]
    assert HeldOutQuestion.of(Example(ids=np.arange(3, dtype=np.int32))) is None
    assert HeldOutQuestion.of(Prompt(id="a", ids=np.arange(3, dtype=np.int32))) is None


def test_a_prompt_is_asked_for_its_known_answer() -> None:
    asked = HeldOutQuestion.of(Prompt(id="a", ids=np.array(ids("an"), np.int32), answer="answer"))
    assert asked is not None
    model = build(toy(vocab_size=TOKENIZER.vocab_size), seed=1)
    (said,) = answers(model, [("a", asked)], TOKENIZER, most_tokens=5, step=0)
    assert (said["prompt"], said["reference"], said["right"]) == ("an", "answer", False)


def test_graders_say_what_is_right_where_there_are_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known answers are letters, and what is said is a sentence; of a source without a grader, letter by letter."""
    sources = [{"choice": 1.0, "length": 0.1}, {"length": 1.0}]
    made = grpo(setup={"source_rewards": sources, "source_names": ["asked", "other"]})
    made.actor.scoring = Scoring(GRADED, made.setup_facts, longest=9)
    right = right_by_rewards(made)
    assert right is not None and right_by_rewards(cast(Any, SimpleNamespace())) is None
    texts, records = ["The answer is (B).", "B", "The answer is (C)."], [Answered(answer="B")] * 3
    assert right(texts, records, [0, 0, 0]) == [True, True, False]
    assert right(texts, records, [1, 1, 1]) == [None] * 3
    made.actor.scoring.close()
    prompt = Prompt(id="a", ids=np.array(ids("an"), np.int32), answer="B", meta={"options": ["x", "y"]})
    question = HeldOutQuestion.of(prompt, source=1)
    assert question is not None and (question.meta, question.source) == ({"options": ["x", "y"]}, 1)
    asked_for = list[Any]()

    def marks(said: Any, records: Any, sources: Any) -> list[bool | None]:
        asked_for.append((records[0].meta, sources))
        return [True]

    monkeypatch.setattr("lifecycle.runs.answers.given.is_well_formed", lambda ids, tokenizer: True)
    model = build(toy(vocab_size=TOKENIZER.vocab_size), seed=1)
    (said,) = answers(model, [("a", question)], TOKENIZER, most_tokens=50, step=0, right=marks)
    assert asked_for == [({"options": ["x", "y"]}, [1])] and said["right"] == said["stopped"]


def test_an_environment_answers_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = build(toy(vocab_size=TOKENIZER.vocab_size), seed=1), np.array(ids("an"))
    keys = EnvironmentKeys(name="calculator", max_turns=2, max_observation_tokens=8)
    question = [("a", HeldOutQuestion(prompt=asked, answer=np.array(ids("answer"))))]
    (alone,) = answers(model, question, TOKENIZER, most_tokens=20, step=0)
    first = alone["completion"][0]
    monkeypatch.setattr(Calculator, "stops", (first,))
    (said,) = answers(model, question, TOKENIZER, most_tokens=20, step=0, environment=keys)
    assert said["completion"].startswith(f"{first} = error") and said["tokens"] <= 20


def test_the_same_weights_give_the_same_answers_and_none_of_what_no_token_is() -> None:
    model = build(toy(vocab_size=TOKENIZER.vocab_size + 20), seed=1)
    asked = [("a", HeldOutQuestion(prompt=np.array(ids("an")), answer=np.array(ids("answer")))) for _ in range(2)]
    made = answers(model, asked, TOKENIZER, most_tokens=5, step=7)
    assert made == answers(model, asked, TOKENIZER, most_tokens=5, step=7) and len(made) == 2
    assert {key: made[0][key] for key in ("step", "domain", "prompt", "reference")} == {
        "step": 7,
        "domain": "a",
        "prompt": "an",
        "reference": "answer",
    }
    assert 1 <= made[0]["tokens"] <= 5 and shares(made)["rollout/length"] == made[0]["tokens"]
    assert answers(model, [], TOKENIZER, most_tokens=5, step=7) == []


def test_rows_of_the_head_that_are_no_token_are_never_drawn() -> None:
    asked = [("a", HeldOutQuestion(prompt=np.array(ids("an")), answer=np.array(ids("answer"))))]
    model = build(toy(vocab_size=TOKENIZER.vocab_size + 20), seed=1)
    before = answers(model, asked, TOKENIZER, most_tokens=5, step=7)
    with torch.no_grad():
        model.embedding.weight[TOKENIZER.vocab_size :] *= 1000  # the likeliest by far, at one sign or the other
    assert answers(model, asked, TOKENIZER, most_tokens=5, step=7) == before


def test_answers_of_steps_that_are_taken_again_go_and_a_new_run_is_asked_before_its_first_step(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("".join(json.dumps({"step": step}) + "\n" for step in (0, 10, 20)))
    asks, stage = HeldOutAnswers([], TOKENIZER, folder=tmp_path, most_tokens=5), SimpleNamespace(validation_due=False)
    for step, left in ((10, [0, 10]), (0, [0])):
        trainer = SimpleNamespace(is_global_zero=True, global_step=step)
        asks.on_train_start(cast(Any, trainer), cast(Any, stage))
        assert [one["step"] for one in read_answers(tmp_path / NAME)] == left
        assert stage.validation_due == (step == 0)


@pytest.mark.parametrize(("view", "begin"), [("chat", "rollout"), ("prompt", "answers")])
def test_they_are_logged_apart_from_the_samples_of_a_run_that_samples(tmp_path: Path, view: str, begin: str) -> None:
    question = HeldOutQuestion(prompt=np.array(ids("an")), answer=np.array(ids("answer")))
    asks, logged = HeldOutAnswers([("a", question)], TOKENIZER, folder=tmp_path, most_tokens=2), dict[str, float]()
    meter = SimpleNamespace(pause=lambda: None, log=lambda step, told: logged.update(told))
    model = build(toy(vocab_size=TOKENIZER.vocab_size), seed=1)
    stage = SimpleNamespace(measured_at=0, network=model, views=frozenset({view}), meter=meter)
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    trainer = SimpleNamespace(is_global_zero=True, precision_plugin=plugin)
    asks.on_train_batch_end(cast(Any, trainer), cast(Any, stage))
    assert {name for name in logged if name.endswith("/stopped")} == {f"{begin}/stopped"}
    assert len(logged) == 4 and ("rollout/length" in logged) == (view == "chat")
