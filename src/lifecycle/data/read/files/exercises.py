"""Exercises that are computed when they are read: small sums, and questions with the way of thinking that answers them.

    arithmetic   question, answer, level   as GSM8K writes them: a line a step, marks <<8*12=96>>, the result after ####
    reasoning    messages                  a question, and an answer that thinks aloud between <think> tags first

Not a published data set, but correct, and available without a network: for trying out settings meant for real sets.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

KINDS = ("arithmetic", "reasoning")
ROWS = 2000
LEVELS = 5
THINGS = "apples books coins cups eggs keys lamps pens plums stones".split()

Exercise = Mapping[str, Any]


def exercises(kind: str) -> Iterator[Exercise]:
    """`ROWS` rows, no question twice, the same in every Python."""
    draw = random.Random(kind)
    seen: set[str] = set()
    while len(seen) < ROWS:
        question, row = _sum(draw) if kind == "arithmetic" else _thought(draw)
        if question not in seen:
            seen.add(question)
            yield {"id": f"{kind}/{len(seen)}", **row}


def _sum(draw: random.Random) -> tuple[str, Exercise]:
    """A sum of as many steps as its level."""
    level = draw.randint(1, LEVELS)
    have, thing = draw.randint(2, 99), draw.choice(THINGS)
    story, steps = [f"Ann has {have} {thing}."], []
    for _ in range(level):
        amount = draw.randint(2, 9)
        sign, sentence = draw.choice(
            [("+", f"She gets {amount} more."), ("*", f"Then she has {amount} times as many.")]
        )
        then = have + amount if sign == "+" else have * amount
        story.append(sentence)
        steps.append(f"{have} {sign} {amount} = <<{have}{sign}{amount}={then}>>{then} {thing}.")
        have = then
    question = " ".join([*story, f"How many {thing} does she have now?"])
    return question, {"question": question, "answer": "\n".join([*steps, f"#### {have}"]), "level": f"Level {level}"}


def _thought(draw: random.Random) -> tuple[str, Exercise]:
    task: Callable[[random.Random], tuple[str, list[str], str]] = draw.choice([_common_divisor, _prime, _largest])
    question, thoughts, answer = task(draw)
    reply = "<think>\n" + "\n".join(thoughts) + f"\n</think>\n\n{answer}"
    return question, {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def _common_divisor(draw: random.Random) -> tuple[str, list[str], str]:
    """Euclid's way."""
    first, second = sorted((draw.randint(10, 999), draw.randint(10, 999)), reverse=True)
    large, small, thoughts = first, second, []
    while small:
        thoughts.append(f"{large} = {large // small} * {small} + {large % small}.")
        large, small = small, large % small
    thoughts.append(f"The rest is 0, so the last divisor, {large}, divides both.")
    return f"What is the greatest common divisor of {first} and {second}?", thoughts, f"It is {large}."


def _prime(draw: random.Random) -> tuple[str, list[str], str]:
    """One divisor after the other."""
    number, thoughts, divisor = draw.randint(10, 999), [], 2
    while divisor * divisor <= number and number % divisor:
        thoughts.append(
            f"{number} = {number // divisor} * {divisor} + {number % divisor}: {divisor} does not divide it."
        )
        divisor += 1
    if divisor * divisor <= number:
        thoughts.append(f"{number} = {number // divisor} * {divisor}: {divisor} divides it.")
        return f"Is {number} a prime number?", thoughts, f"No, {divisor} divides it."
    thoughts.append(f"{divisor} * {divisor} is more than {number}: no divisor is left to try.")
    return f"Is {number} a prime number?", thoughts, "Yes."


def _largest(draw: random.Random) -> tuple[str, list[str], str]:
    """From left to right, with the largest so far in mind."""
    numbers = [draw.randint(1, 999) for _ in range(draw.randint(4, 8))]
    largest, thoughts = numbers[0], [f"I begin with {numbers[0]}."]
    for number in numbers[1:]:
        thoughts.append(f"{number} is {'more' if number > largest else 'not more'} than {largest}.")
        largest = max(largest, number)
    return f"Which of {', '.join(map(str, numbers))} is the largest?", thoughts, f"It is {largest}."
