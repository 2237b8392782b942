"""Answers to held-out prompts: what is asked, and what counts as a well-formed answer."""

import numpy as np
import pytest
from tests.toy import toy

from lifecycle.batch import Example, Pair, Prompt
from lifecycle.data.validation import HeldOutQuestion
from lifecycle.model import build
from lifecycle.runs.answers import answers, is_well_formed, shares
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
    assert asked is not None and asked.prompt.tolist() == [1, 2] and asked.answer.tolist() == [3, 4]
    to_the_end = HeldOutQuestion.of(example([0, 1, 1]))
    assert to_the_end is not None and to_the_end.answer.tolist() == [2, 3]
    pair = Pair(prompt=np.array([1, 2], np.int32), chosen=example([0, 0, 1]), rejected=example([0, 0, 1, 1]))
    judged = HeldOutQuestion.of(pair)
    assert judged is not None and judged.prompt.tolist() == [1, 2] and judged.answer.tolist() == [3]
    assert HeldOutQuestion.of(Example(ids=np.arange(3, dtype=np.int32))) is None
    assert HeldOutQuestion.of(Prompt(id="a", ids=np.arange(3, dtype=np.int32))) is None


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
