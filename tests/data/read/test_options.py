"""Options in another order, once for each visit: laws, and what must not be moved."""

from collections import Counter

import pytest
from tests.data.test_views import CHOICE, TOKENIZER, record, shown

from lifecycle.batch import Record
from lifecycle.data.read.forms.options import order_of, shuffled
from lifecycle.data.views import prompt

ROW = {"question": "Bile?", "options": ["lung", "liver", "skin", "bone"], "answer": "B"}


def asked(options: list[str], answer: str = "B", question: str = "Bile?") -> Record:
    return record({"question": question, "options": options, "answer": answer}, "multiple_choice")


def test_the_known_answer_moves_along_and_the_options_stand_in_the_prompt() -> None:
    given = asked(["lung", "liver", "skin", "bone"])
    orders = Counter[tuple[str, ...]]()
    for visit in range(200):
        made = shuffled(given, seed=1, visit=visit)
        options = made.meta["options"]
        assert sorted(options) == sorted(given.meta["options"]) and made.answer is not None
        assert options["ABCD".index(made.answer)] == "liver" == made.meta["answer_text"]
        text = shown(prompt(made, TOKENIZER, None).ids)
        assert [f"\n{letter}. {option}" in text for letter, option in zip("ABCD", options, strict=True)] == [True] * 4
        orders[tuple(options)] += 1
    assert len(orders) == 24  # every order comes


def test_the_order_follows_from_seed_record_and_visit() -> None:
    given = asked([f"option {i}" for i in range(10)])
    assert shuffled(given, seed=1, visit=0) == shuffled(given, seed=1, visit=0)
    assert len({str(shuffled(given, seed=s, visit=v).prompt) for s in (1, 2) for v in (0, 1)}) == 4


@pytest.mark.parametrize(
    "last", ["None of the above", "All of the above.", "none of these", "All", "Both", "All of the above are correct"]
)
def test_what_speaks_of_the_others_stays_behind_them(last: str) -> None:
    options = ["lung", "liver", "skin", last]
    orders = {tuple(order_of("Bile?", options, seed=seed)) for seed in range(100)}
    assert len(orders) == 6 and {order[-1] for order in orders} == {3}
    assert order_of("Bile?", [last, *options[:3]], seed=3) == [0, 1, 2, 3]  # elsewhere it holds the whole record


@pytest.mark.parametrize(
    "named", ["A and B", "Both a & c", "A, B and C", "Not A", "B or C only", "option A", "(a) + (b)"]
)
def test_what_names_another_by_its_letter_holds_the_record(named: str) -> None:
    for seed in range(30):
        assert order_of("Bile?", ["lung", "liver", named, "bone"], seed=seed) == [0, 1, 2, 3]


def test_a_question_that_names_an_option_holds_it_and_ordinary_words_do_not() -> None:
    assert {tuple(order_of("Why is option B wrong?", ["x y", "z y", "w y"], seed=s)) for s in range(30)} == {(0, 1, 2)}
    for options in (["Vitamin A and B", "Both kidneys", "All bones of the hand"], ["A 45-year-old", "12", "no pain"]):
        assert len({tuple(order_of("Why?", options, seed=s)) for s in range(60)}) == 6


def test_records_without_options_stay() -> None:
    plain = record({"question": "2+2?", "answer": "4"}, "word_problem")
    assert shuffled(plain, seed=1, visit=2) is plain


def test_two_options_are_one_question_too() -> None:
    assert {shuffled(CHOICE, seed=s, visit=0).answer for s in range(20)} == {"A", "B"}
