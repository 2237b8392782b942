"""A new answer as a reward model reads it: to the token that ends the answer, or to the end of the template's text."""

import pytest
from tests.data.conversation.test_conversation import TOKENIZER, TURNS, shipped

from lifecycle.batch import Record
from lifecycle.data.conversation.answered import answered_ids
from lifecycle.data.views import comparison, prompt

ASKED = TURNS[:2]
CHATML = shipped("chatml")


@pytest.mark.parametrize("said", ["An answer.", "", "a <|im_end|> b", " spaced \n"])
def test_it_is_read_as_it_was_trained_on(said: str) -> None:
    found = answered_ids(ASKED, said, False, tokenizer=TOKENIZER, template=CHATML)
    assert isinstance(found, list) and TOKENIZER.decode([found[-1]], specials=True) == "<|im_end|>"
    if said.strip():
        chosen = [{"role": "assistant", "content": said.strip()}]
        other = [{"role": "assistant", "content": "What?"}]
        record = Record(id="0", source="s", domain="d", messages=ASKED, chosen=chosen, rejected=other)
        assert found == comparison(record, TOKENIZER, CHATML).chosen.ids[:-1].tolist()
    assert found.count(found[-1]) == len(ASKED) + 1  # a name of a mark in the answer is text


def test_the_whole_text_is_that_of_transformers() -> None:
    found = answered_ids(ASKED, "An answer.", True, tokenizer=TOKENIZER, template=CHATML)
    turns = [*ASKED, {"role": "assistant", "content": "An answer."}]
    text = str(TOKENIZER.hf.apply_chat_template(turns, tokenize=False, chat_template=CHATML.source))
    assert found == TOKENIZER.hf(text, add_special_tokens=False).input_ids
    assert text.endswith("<|im_end|>\n")


def test_what_the_template_refuses_is_said() -> None:
    one_turn = CHATML.__class__(source="{{ messages[0]['content'] }}", name="it")
    assert isinstance(answered_ids(ASKED, "An answer.", False, tokenizer=TOKENIZER, template=one_turn), str)


def test_a_prompt_knows_its_turns_also_where_it_is_asked_as_plain_text() -> None:
    record = Record(id="0", source="s", domain="d", prompt="What is this?", answer="An answer.", meta={"level": 1})
    turns = [{"role": "user", "content": "What is this?"}]
    for template in (CHATML, None):
        assert prompt(record, TOKENIZER, template).meta == {"level": 1, "turns": turns}
