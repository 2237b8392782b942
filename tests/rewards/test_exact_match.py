import pytest

from lifecycle.rewards.exact_match import exact_match


@pytest.mark.parametrize(
    ("completion", "mark"), [("[1, 2]", 1), (" [1, 2]\n", 1), ("[1,2]", 0), ("[1, 2] [1, 2]", 0), ("", 0), ("[1, 2", 0)]
)
def test_only_the_answer_itself_is_right(completion: str, mark: float) -> None:
    assert exact_match(completion, "[1, 2]") == mark
