"""A sample without a reward is neither a sample of reward 0 nor a change to 0."""

from collections.abc import Sequence
from pathlib import Path

from lifecycle.report.rollouts.kept import Mark
from lifecycle.report.rollouts.picked import ChangedSamples, _moved, typical


def marks(rewards: Sequence[float | None]) -> list[Mark]:
    return [
        Mark(Path("kept"), n, 1, 0, ("a", "1"), n, reward, 0.0, unfinished=False) for n, reward in enumerate(rewards)
    ]


def test_the_typical_sample_is_one_with_a_reward() -> None:
    assert typical(marks([None, -0.1, 0.5, -0.4])).reward == -0.1  # the mean is 0, and None would be nearest
    assert typical(marks([None, 3.0, None])).sample == 1
    assert typical(marks([None, None])).sample == 0


def test_a_reward_that_is_missing_is_no_change() -> None:
    one, other = marks([5.0, None])
    assert _moved(ChangedSamples(one, other, 5.0, None)) == 0
    assert _moved(ChangedSamples(one, other, 5.0, 3.0)) == 2
