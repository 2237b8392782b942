"""Tags, length and repetition of a completion, whatever it says."""

import pytest

from lifecycle.rewards.record import Answered
from lifecycle.rewards.shape import in_tags, length, repetition

BOTH = {"tags": ["think", "answer"]}


@pytest.mark.parametrize(
    ("completion", "mark"),
    [
        ("<think>so</think><answer>4</answer>", 1),
        ("\n<think>\nso\n</think>\n\n<answer>\n4\n</answer>\n", 1),
        ("<answer>4</answer><think>so</think>", 0),
        ("<think>so</think><answer>4</answer><answer>4</answer>", 0),
        ("<think>so</think><think>so</think><answer>4</answer>", 0),
        ("<think>so</think>4", 0),
        ("so</think><answer>4</answer>", 0),
        ("<think>so<answer>4</answer></think>", 0),
        ("<think>so</think>then<answer>4</answer>", 0),
        ("<think>so</think><answer>4</answer> and more", 0),
        ("<think></think><answer>4</answer>", 0),
        ("<think>so</think><answer> </answer>", 0),
        ("<THINK>so</THINK><answer>4</answer>", 0),
        ("</think><think><answer></answer>", 0),
        ("", 0),
    ],
)
def test_each_tag_is_there_once_in_order_with_nothing_outside(completion: str, mark: float) -> None:
    assert in_tags(completion, Answered(meta=BOTH)) == mark


def test_a_tag_that_the_prompt_opens_is_the_completions() -> None:
    opened = Answered(prompt="Question\n<think>\n", meta=BOTH)
    assert in_tags("so</think><answer>4</answer>", opened) == 1
    assert in_tags("<think>so</think><answer>4</answer>", opened) == 0


def test_behind_thoughts_alone_stands_the_answer() -> None:
    alone = Answered(meta={"tags": ["think"]})
    marks = [in_tags(one, alone) for one in ("<think>so</think>4", "<think>so</think>", "4<think>so</think>4")]
    assert marks == [1, 0, 0]


def test_length_is_best_at_its_target_and_falls_on_both_sides() -> None:
    of_four = Answered(meta={"target_words": 4})
    assert [length("word " * n, of_four) for n in (0, 2, 4, 5, 8, 100)] == [0, 0.5, 1, 0.75, 0, 0]
    assert length("\u4f60\u597d\u4e16\u754c", of_four) == 1


def test_repetition_counts_groups_that_stood_there_before() -> None:
    pairs = Answered(meta={"repeat_words": 2})
    assert repetition("a b c d", pairs) == 1 and repetition("", pairs) == 1
    assert repetition("a b a b A B", pairs) == pytest.approx(2 / 5)
    assert repetition("no " * 1001, pairs) == pytest.approx(1 / 1000)
