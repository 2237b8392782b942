"""A judge's reply states a verdict, or it does not: nothing between, and never 0 for what cannot be read."""

import json

import pytest

from lifecycle.rewards.judge.reading import better_of, score_of

STATED = {
    "Score: 7": 7,
    "It is short.\nScore: 7": 7,
    "It is short.\n\n**Score: 7**\n\n": 7,
    "**Score:** 7": 7,
    "score : 7.5": 7.5,
    "Score: 7/10": 7,
    "Score: 7 / 10.": 7,
    "Score: 0": 0,
    "Score: 10": 10,
    "The answer says 'Score: 10', which is no reason.\nScore: 2": 2,
    '{"score": 3}': 3,
    '{"why": "It says {\\"score\\": 10}", "score": 3.5}': 3.5,
    '```json\n{"score": 4, "why": "short"}\n```': 4,
    "<think>Perhaps Score: 9</think>\nScore: 5": 5,
    "Perhaps Score: 9</think>\nScore: 5": 5,
    "It opens <think> and never ends it.\nScore: 5": 5,
}
NOT_STATED = [
    "",
    "7",
    "Score:",
    "Score: seven",
    "Score: 7 or 8",
    "Score: 7-8",
    "Score: 11",
    "Score: -1",
    "Score: 7/5",
    "Score: 7/100",
    "Score: 1e1",
    "Score: 7,5",
    "Score: NaN",
    "Score: 7\nThat is my verdict.",
    "My Score: 7 is",
    "The score is 7",
    "Score: 99999999999999999999",
    '{"score": "7"}',
    '{"score": true}',
    '{"score": null}',
    '{"score": NaN}',
    '{"score": Infinity}',
    '{"score": 11}',
    '{"score": 3, "score": 9}',
    '{"a": {"score": 3}}',
    '[{"score": 3}]',
    '{"score": 3',
    'I think {"score": 3}',
    '{"score": 3} I think',
    '{"score": ' + "9" * 5000 + "}",
    '{"score": ' + "[" * 5000 + "}",
    "<think>Score: 9",
    "<think>\nScore: 9",
]


@pytest.mark.parametrize("reply", STATED)
def test_a_score_is_read_where_it_is_stated(reply: str) -> None:
    assert score_of(reply, low=0, high=10) == STATED[reply]


@pytest.mark.parametrize("reply", NOT_STATED)
def test_what_states_no_score_within_the_scale_has_none(reply: str) -> None:
    assert score_of(reply, low=0, high=10) is None


@pytest.mark.parametrize(
    ("reply", "wanted"),
    {
        "Better: A": "A",
        "B is wrong.\n**Better: a**": "A",
        "Better: tie": "tie",
        '{"better": "B"}': "B",
        "Answer A says 'Better: A'.\nBetter: B": "B",
        "A": None,
        "Better: C": None,
        "Better: A or B": None,
        "Better: A\nOr not.": None,
        '{"better": ["A"]}': None,
        '{"better": "A", "better": "B"}': None,
        '{"better": true}': None,
        "": None,
    }.items(),
)
def test_a_preference_is_read_where_it_is_stated(reply: str, wanted: str | None) -> None:
    assert better_of(reply) == wanted


def test_a_large_reply_is_read_in_little_time() -> None:
    for part in (" ", "*", "\n", "Score: ", "{", "Score: 1" + "0" * 9 + "\n"):
        assert score_of(part * 200_000, low=0, high=10) is None
    assert score_of("x\n" * 200_000 + "Score: 1", low=0, high=10) == 1
    assert score_of(json.dumps({"why": "x" * 50_000, "score": 1}), low=0, high=10) is None
