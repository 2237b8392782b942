"""Laws of views: each makes of a record what its stage trains on, and says why where it cannot."""

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from lifecycle.batch import Example, Prompt, Record
from lifecycle.data.read.formats import to_record
from lifecycle.data.read.in_words import as_text
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.views import VIEWS, chat, comparison, preference, prompt, text, unpaired
from lifecycle.errors import UserError
from lifecycle.tokenizer.chat import ChatTemplate
from lifecycle.tokenizer.tokenizer import Tokenizer, train_bpe

TOKENIZER = train_bpe(["Question: what? Answer: this. \n\n" * 9] * 20, vocab_size=320, digits=1)
TEMPLATE = ChatTemplate.of("auto", TOKENIZER.hf)


def record(row: dict[str, Any], form: Any, **more: Any) -> Record:
    return to_record(row, spec=SourceSpec(path="x", format=form, **more), name="mine", row_id="mine:3")


CHOICE = record({"question": "Bile?", "options": ["lung", "liver"], "answer": "B"}, "multiple_choice")
PROBLEM = record({"question": "2+2?", "answer": "It is 2+2.\n#### 4"}, "word_problem")
TALK = record(
    {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "Two."},
            {"role": "user", "content": "Three?"},
            {"role": "assistant", "content": "Four."},
        ]
    },
    "messages",
)


PAIR = record({"prompt": "2+2?", "chosen": "It is 4.", "rejected": "It is 5, sir."}, "preference")
CALLED_GOOD = record({"prompt": "2+2?", "completion": "It is 4.", "label": True}, "unpaired")
CALLED_BAD = record({"prompt": "2+2?", "completion": "It is 5.", "label": False}, "unpaired")


def shown(ids: Any) -> str:
    return TOKENIZER.decode(ids, specials=True)


def trained(example: Example) -> str:
    assert example.trained is not None
    return shown(example.ids[example.trained])


def test_of_a_prompt_and_a_completion_of_turns_the_completion_alone_is_trained() -> None:
    turns = TALK.messages or []
    split = record({"prompt": turns[:3], "completion": turns[3:]}, "prompt_completion")
    whole = chat(split, TOKENIZER, TEMPLATE)
    assert np.array_equal(whole.ids, chat(TALK, TOKENIZER, TEMPLATE).ids)
    assert trained(whole).startswith("Four.") and "Two." not in trained(whole)


def test_text_is_the_document_with_every_token_trained() -> None:
    for one in (CHOICE, PROBLEM, TALK):
        made = text(one, TOKENIZER)
        assert made.trained is None and shown(made.ids) == f"<|bos|>{as_text(one)}<|eos|>"


def test_chat_trains_what_the_assistant_says() -> None:
    assert trained(chat(TALK, TOKENIZER, TEMPLATE)) == "Two.<|end|>Four.<|end|>"
    assert trained(chat(CHOICE, TOKENIZER, TEMPLATE)) == "B. liver<|end|>"
    assert trained(chat(PROBLEM, TOKENIZER, TEMPLATE)) == "It is 2+2.\nThe answer is 4.<|end|>"
    assert shown(chat(CHOICE, TOKENIZER, TEMPLATE).ids).startswith("<|bos|><|user|>\nBile?\nA. lung\nB. liver<|end|>")


def test_a_prompt_is_what_a_model_is_asked_with_and_keeps_the_answer() -> None:
    made = prompt(CHOICE, TOKENIZER, TEMPLATE)
    assert shown(made.ids) == "<|bos|><|user|>\nBile?\nA. lung\nB. liver<|end|>\n<|assistant|>\n"
    assert made.id == "mine:3" and made.answer == "B" and made.meta["options"] == ["lung", "liver"]
    talk = prompt(TALK, TOKENIZER, TEMPLATE)
    assert shown(talk.ids).endswith("<|user|>\nThree?<|end|>\n<|assistant|>\n") and talk.answer == "Four."
    whole = chat(TALK, TOKENIZER, TEMPLATE)
    assert np.array_equal(whole.ids[: len(talk.ids)], talk.ids)


@pytest.mark.parametrize("one", [CHOICE, PROBLEM, TALK])
def test_a_plain_prompt_is_how_the_document_begins(one: Record) -> None:
    made, document = prompt(one, TOKENIZER, None), text(one, TOKENIZER)
    assert as_text(one).startswith(shown(made.ids).removeprefix("<|bos|>"))
    assert np.array_equal(document.ids[: len(made.ids)], made.ids)


def test_a_pair_has_one_prompt_and_is_trained_behind_it() -> None:
    made = preference(PAIR, TOKENIZER, TEMPLATE)
    assert np.array_equal(made.prompt, prompt(PAIR, TOKENIZER, TEMPLATE).ids) and made.margin is None
    for side, said in ((made.chosen, "It is 4.<|end|>"), (made.rejected, "It is 5, sir.<|end|>")):
        assert side.trained is not None and trained(side) == said
        assert np.array_equal(side.ids[: len(made.prompt)], made.prompt) and not side.trained[: len(made.prompt)].any()
    assert np.array_equal(chat(PAIR, TOKENIZER, TEMPLATE).ids, made.chosen.ids)
    assert prompt(PAIR, TOKENIZER, TEMPLATE).answer == "It is 4."
    scored = record({"prompt": "q", "response_1": "a", "response_2": "b", "score_1": 1, "score_2": 3}, "scored_pairs")
    assert preference(scored, TOKENIZER, TEMPLATE).margin == 2.0


def test_what_is_compared_is_the_pair_and_one_more_position_behind_each_answer() -> None:
    pair, made = preference(PAIR, TOKENIZER, TEMPLATE), comparison(PAIR, TOKENIZER, TEMPLATE)
    assert np.array_equal(made.prompt, pair.prompt)
    for whole, side in ((made.chosen, pair.chosen), (made.rejected, pair.rejected)):
        assert np.array_equal(whole.ids[:-1], side.ids)  # the inputs: all of the answer, with the token that ends it
        assert whole.trained is not None and side.trained is not None
        assert np.array_equal(whole.trained[:-1], side.trained) and not whole.trained[-1]


def test_answers_that_the_tokenizer_makes_one_of_are_no_pair() -> None:
    backend = Backend.from_str(TOKENIZER.hf.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Lowercase()
    small = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eos|>", bos_token="<|bos|>"))
    one = record({"prompt": "2+2?", "chosen": "Yes.", "rejected": "YES."}, "preference")
    assert VIEWS["preference"]([one], small, TEMPLATE) == ["both answers are the same"]


def test_earlier_answers_are_part_of_a_prompt_and_not_trained() -> None:
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
    asked = [*turns, {"role": "user", "content": "Three?"}]
    made = preference(
        record({"prompt": asked, "chosen": "Four.", "rejected": "Five."}, "preference"), TOKENIZER, TEMPLATE
    )
    assert trained(made.chosen) == "Four.<|end|>" and "Two." in shown(made.prompt)
    labelled = [*asked, {"role": "assistant", "content": "Four."}]
    one = unpaired(record({"messages": labelled, "label": 0}, "unpaired"), TOKENIZER, TEMPLATE)
    assert trained(one) == "Four.<|end|>" and one.wanted is False


def test_an_unpaired_answer_keeps_its_judgement() -> None:
    good, bad = (unpaired(one, TOKENIZER, TEMPLATE) for one in (CALLED_GOOD, CALLED_BAD))
    assert (good.wanted, bad.wanted) == (True, False)
    assert trained(good) == "It is 4.<|end|>" and trained(bad) == "It is 5.<|end|>"
    assert prompt(CALLED_BAD, TOKENIZER, TEMPLATE).answer is None  # nobody knows a good one


def test_a_program_is_the_answer_and_its_tests_are_for_rewards() -> None:
    task = record({"prompt": "Add.", "code": "def add(): ...", "tests": ["assert add"]}, "code_problem")
    assert trained(chat(task, TOKENIZER, TEMPLATE)) == "def add(): ...<|end|>"
    made = prompt(task, TOKENIZER, TEMPLATE)
    assert made.answer == "def add(): ..." and made.meta["tests"] == ["assert add"]
    unsolved = record({"prompt": "Add.", "tests": ["assert add"]}, "code_problem")
    assert prompt(unsolved, TOKENIZER, TEMPLATE).answer is None
    assert VIEWS["chat"]([unsolved], TOKENIZER, TEMPLATE) == ["no answer"]


def test_other_views_need_a_template() -> None:
    for view in (chat, preference, unpaired):
        with pytest.raises(UserError, match="data.chat_template=none"):
            view(PAIR if view is preference else CALLED_GOOD, TOKENIZER, None)


def test_many_records_at_once_are_each_alone_and_what_cannot_be_made_says_why() -> None:
    mute = record({"messages": [{"role": "user", "content": "One?"}]}, "messages")
    made = VIEWS["chat"]([TALK, mute, CHOICE], TOKENIZER, TEMPLATE)
    assert made[1] == "no turn of the assistant"
    for found, one in ((made[0], TALK), (made[2], CHOICE)):
        assert isinstance(found, Example) and np.array_equal(found.ids, chat(one, TOKENIZER, TEMPLATE).ids)
    documents = VIEWS["text"]([TALK, CHOICE], TOKENIZER, None)
    assert [shown(one.ids) for one in documents if isinstance(one, Example)] == [
        shown(text(one, TOKENIZER).ids) for one in (TALK, CHOICE)
    ]
    assert all(isinstance(one, Prompt) for one in VIEWS["prompt"]([TALK, CHOICE], TOKENIZER, TEMPLATE))
