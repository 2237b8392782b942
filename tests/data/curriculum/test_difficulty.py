"""Scores of difficulty against values worked out by hand, and in the order that they are meant to give."""

import math

import numpy as np
import pytest
import torch

from lifecycle.data.curriculum.code_complexity import Size, complexity, measure
from lifecycle.data.curriculum.difficulty import grade, rarity, readability, surprisal_bits, syllables

PYTHON = """
def f(a, b):
    if a and b or a:
        return [x for x in a if x]
    return b
"""
JAVASCRIPT = """
// if this were code, it would count
function f(a, b) {
    if (a && b) { return [a, (b)]; }
    return a ? b : "if while";
}
"""


def test_rarity_is_minus_log2_of_the_share() -> None:
    bits = surprisal_bits(np.array([4, 2, 1, 1, 0]))
    assert bits.tolist() == [1.0, 2.0, 3.0, 3.0, math.inf]
    assert rarity(np.array([0, 0, 1, 3], np.int32), bits) == pytest.approx((1 + 1 + 2 + 3) / 4)
    assert rarity(np.zeros(0, np.int32), bits) == 0.0


def test_the_mean_rarity_of_a_whole_source_is_the_entropy_of_its_tokens() -> None:
    ids = np.random.default_rng(0).integers(0, 50, 1000).astype(np.int32)
    counts = np.bincount(ids)
    nats = torch.distributions.Categorical(torch.tensor(counts / counts.sum())).entropy()
    assert rarity(ids, surprisal_bits(counts)) == pytest.approx(float(nats) / math.log(2))


def test_the_grade_is_that_of_the_formula() -> None:
    assert grade(6, 1, 6) == pytest.approx(0.39 * 6 + 11.8 - 15.59)
    assert readability("The cat sat on the mat.") == pytest.approx(-1.45)
    two = "He said, “Run!” Physicians reading difficult pages... nod"
    assert readability(two) == pytest.approx(grade(8, 3, 1 + 1 + 1 + 3 + 2 + 3 + 2 + 1))
    assert readability("3.14 + 2 = ?") == readability("") == 0.0


@pytest.mark.parametrize(
    ("word", "count"),
    [("made", 1), ("times", 1), ("called", 1), ("wanted", 2), ("table", 2), ("boxes", 2), ("the", 1), ("e", 1)]
    + [("physician", 3), ("through", 1), ("naïveté", 3), ("nth", 1), ("Breathe", 1), ("judges", 2), ("people", 2)],
)
def test_syllables(word: str, count: int) -> None:
    assert syllables(word) == count


def test_the_size_of_a_syntax_tree() -> None:
    # Module, Assign, Name, Store, BinOp, Constant, Add, Constant
    assert measure("x = 1 + 2") == Size(nodes=8, depth=4, cyclomatic=1)
    # if; and, or; the comprehension and its if
    assert measure(PYTHON).cyclomatic == 1 + 1 + 2 + 2
    assert complexity("x = 1 + 2") == pytest.approx(math.log2(8 * 4))


def test_what_is_not_python_is_measured_by_its_characters() -> None:
    size = measure(JAVASCRIPT)
    # if, &&, ?, and the words in the string that nothing here can tell from code
    assert size.cyclomatic == 1 + 3 + 2
    assert size.depth == 1 + 4  # { { [ (
    assert measure("if (") == Size(nodes=2, depth=2, cyclomatic=2)
    assert measure("print 'a'") == Size(nodes=2, depth=1, cyclomatic=1)
    assert measure("#") == measure("") == Size(nodes=1, depth=1, cyclomatic=1)


def test_a_chain_too_long_for_recursion_is_measured_all_the_same() -> None:
    assert measure("+".join(["1"] * 20_000)).nodes > 20_000


def test_harder_text_scores_higher() -> None:
    easy = "The dog ran. The cat sat. They went home."
    hard = "Immunohistochemical characterisation of extrapulmonary manifestations necessitates consideration."
    assert readability(hard) > 12 > 5 > readability(easy)
    assert complexity(PYTHON) > complexity("x = 1")
