import pytest

from lifecycle.rewards.exact_match import exact_match
from lifecycle.rewards.record import Answered


@pytest.mark.parametrize(
    ("completion", "mark"),
    [
        ("[1, 2]", 1),
        (" [1, 2]\n", 1),
        ("[1,2]", 0),
        ("[1, 2] [1, 2]", 0),
        ("", 0),
        ("[1, 2", 0),
        ("<think>[1]</think>[1, 2]", 1),
        ("<think>[1, 2]", 0),
        ("<think>so</think><answer> [1, 2] </answer>", 1),
    ],
)
def test_only_the_answer_itself_is_right(completion: str, mark: float) -> None:
    assert exact_match(completion, Answered(answer="[1, 2]")) == mark
