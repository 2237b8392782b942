"""Laws of items as they are shown: every token with its text, and the trained ones as the item says."""

import numpy as np

from lifecycle.batch import Example, Pair, Prompt
from lifecycle.data.survey.shown_items import END_TOKENS, MOST_TOKENS, shown_item
from lifecycle.tokenizer.tokenizer import train_bpe

TOKENIZER = train_bpe(["a question"] * 9, vocab_size=280, digits=1)


def test_tokens_of_a_document_are_shown_with_what_half_a_letter_belongs_to() -> None:
    ids = TOKENIZER.documents(["a ?é"])[0]
    (part,) = shown_item(Example(ids=ids), TOKENIZER)["parts"]
    assert part["tokens"][0] == ["<|bos|>", False] and part["tokens"][-1] == ["<|eos|>", True]
    assert "".join(text for text, _ in part["tokens"]) == "<|bos|>a ?é<|eos|>"
    assert all(trained for _, trained in part["tokens"][1:]) and len(part["tokens"]) == len(ids) - 1  # é is two bytes


def test_a_pair_is_shown_from_where_its_sides_part() -> None:
    asked, good, bad = (TOKENIZER.encode_batch([text])[0] for text in ("why?", "so", "no"))
    sides = [
        Example(ids=np.concatenate([asked, one]), trained=np.arange(len(asked) + len(one)) >= len(asked))
        for one in (good, bad)
    ]
    made = shown_item(Pair(prompt=asked, chosen=sides[0], rejected=sides[1], margin=0.5), TOKENIZER)
    texts = ["".join(text for text, _ in part["tokens"]) for part in made["parts"]]
    assert texts == ["why?", "so", "no"] and made["facts"] == {"margin": "0.5"}
    assert [{trained for _, trained in part["tokens"]} for part in made["parts"]] == [{False}, {True}, {True}]


def test_a_prompt_is_shown_with_what_rewards_know() -> None:
    ids = TOKENIZER.encode_batch(["why?"])[0]
    made = shown_item(Prompt(id="1", ids=ids, answer="so", meta={"tests": ["a"], "setup": "", "x": None}), TOKENIZER)
    assert made["facts"] == {"answer": "so", "tests": '["a"]'}


def test_the_middle_of_a_long_one_is_counted_and_left_out() -> None:
    one = TOKENIZER.encode_batch(["?"])[0][0]
    (whole,) = shown_item(Example(ids=np.full(MOST_TOKENS, one)), TOKENIZER)["parts"]
    assert whole["more"] == 0 and len(whole["tokens"]) == MOST_TOKENS
    (part,) = shown_item(Example(ids=np.full(MOST_TOKENS + 1, one)), TOKENIZER)["parts"]
    assert part["more"] == MOST_TOKENS + 1 - 2 * END_TOKENS > 100  # so few are not worth a gap
    assert len(part["tokens"]) == 2 * END_TOKENS + 1 and [f" [... {part['more']} tokens ...] ", False] in part["tokens"]
