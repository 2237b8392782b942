"""What stands on the terminal is the completions in order, whatever order their tokens came in."""

import io
import random

import pytest

from lifecycle.rollout.display import CompletionDisplay
from lifecycle.tokenizer.tokenizer import Tokenizer, train_bpe

TEXTS = ["one café 雪 two", "", "three\n", "four 🙂"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["one two three four"] * 20, vocab_size=280, digits=1)


@pytest.mark.parametrize("seed", range(5))
def test_the_screen_does_not_depend_on_the_order_of_tokens(tokenizer: Tokenizer, seed: int) -> None:
    out, rng = io.StringIO(), random.Random(seed)
    shown = CompletionDisplay(out, tokenizer, ["A: ", "B: "], samples=2, continues=True)
    waiting = [ids.tolist() for ids in tokenizer.encode_batch(TEXTS)]
    while any(waiting):
        number = rng.choice([n for n, ids in enumerate(waiting) if ids])
        shown.token(number // 2, number % 2, waiting[number].pop(0))
        assert "\ufffd" not in out.getvalue()
    shown.rest(TEXTS)
    assert out.getvalue() == f"A: {TEXTS[0]}\n\nA: {TEXTS[1]}\n\nB: {TEXTS[2]}\n\nB: {TEXTS[3]}\n"


def test_a_completion_is_shown_while_it_grows(tokenizer: Tokenizer) -> None:
    out = io.StringIO()
    shown = CompletionDisplay(out, tokenizer, ["question"], samples=1, continues=False)
    for token in tokenizer.encode_batch(["one two"])[0].tolist():
        before = out.getvalue()
        shown.token(0, 0, token)
        assert out.getvalue() > before
    assert out.getvalue() == "question\none two"


def test_what_a_terminal_cannot_show_is_replaced(tokenizer: Tokenizer) -> None:
    held = io.BytesIO()
    shown = CompletionDisplay(io.TextIOWrapper(held, encoding="cp1252"), tokenizer, ["é雪 "], samples=1, continues=True)
    shown.rest(["a 🙂 ü"])
    assert held.getvalue().decode("cp1252") == "é? a ? ü\n"
