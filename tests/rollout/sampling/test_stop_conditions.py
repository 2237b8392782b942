"""What ends a completion is what the user wrote: names of special tokens by id, texts with their escapes."""

import pytest

from lifecycle.errors import UserError
from lifecycle.rollout.sampling.stop_conditions import read_stops

SPECIALS = {3: "<|end|>", 7: "<|user|>", 9: "\\n"}


def test_names_of_special_tokens_are_ids_and_all_else_is_text() -> None:
    assert read_stops(["<|user|>", "END", "<|end|>"], SPECIALS) == ([3, 7], ["END"])
    assert read_stops([], SPECIALS) == ([], [])
    assert read_stops(["<|other|>"], SPECIALS) == ([], ["<|other|>"])
    assert read_stops(["\\n"], SPECIALS) == ([9], [])


def test_escapes_mean_what_they_do_in_python() -> None:
    written = [r"\n\n", r"a\tb", r"\\n", r"\d", "\n", "é"]
    assert read_stops(written, {}) == ([], ["\n\n", "a\tb", "\\n", r"\d", "\n", "é"])


def test_a_text_around_the_name_of_a_special_token_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"stage.stop has 'x<\|end\|>', but <\|end\|> is a special token.*give its name alone"
    ):
        read_stops(["x<|end|>"], SPECIALS)
