"""Questions that Python itself answers: the value of an expression, and facts of functions of the standard library.

    questions        messages                    a question, and its answer
    few_questions    messages                    the first of these
    preferences      prompt, chosen, rejected    a question, its answer, and a wrong one of the same form

Half are small expressions, answered by `eval`; half are about functions of the standard library, whose signature
stands in the question. What is asked in one kind is never asked in the other: a model that was fine-tuned on the first
has not seen the pairs of the second.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

KINDS = ("questions", "few_questions", "preferences")
ROWS = 6000
"""Questions of both kinds together."""

FEW = 1200
"""Of them, those of `few_questions`."""

REPEATS = 1000
"""After so many draws in a row that gave no new question, there are no more about these functions."""

PAIRS_IN = 3
"""One question in this many is asked as a preference."""

EXPRESSIONS = (
    "sorted({numbers})",
    "sorted({numbers}, reverse=True)",
    "{numbers}[::-1]",
    "{numbers}[1:]",
    "{numbers} + [{one}]",
    "{numbers}[{place}]",
    "sum({numbers})",
    "max({numbers})",
    "min({numbers})",
    "len({numbers})",
)


class Signature(NamedTuple):
    """A function of the standard library: the module that defines it, its name, its parameters."""

    module: str
    name: str
    parameters: Sequence[str]


class Question(NamedTuple):
    """A question, its right answer, and a wrong one of the same form."""

    asked: str
    right: str
    wrong: str


def python_questions(kind: str, signatures: Sequence[Signature]) -> Iterator[Mapping[str, Any]]:
    """The rows of `kind`, no question twice: the same for the same signatures."""
    if kind == "few_questions":
        yield from itertools.islice(python_questions("questions", signatures), FEW)
        return
    for number, question in enumerate(_questions(signatures)):
        paired = int.from_bytes(hashlib.sha256(question.asked.encode()).digest()[:8]) % PAIRS_IN == 0
        if paired and kind == "preferences":
            asked, right, wrong = question
            yield {"id": f"{kind}/{number}", "prompt": asked, "chosen": right, "rejected": wrong}
        elif not paired and kind == "questions":
            turns = [{"role": "user", "content": question.asked}, {"role": "assistant", "content": question.right}]
            yield {"id": f"{kind}/{number}", "messages": turns}


def _questions(signatures: Sequence[Signature]) -> Iterator[Question]:
    draw = random.Random("python questions")
    seen: set[str] = set()
    repeated = 0
    while len(seen) < ROWS:
        if repeated == REPEATS:  # a Python with few of its sources: expressions make up the number
            signatures = ()
        about_names = signatures and len(seen) % 2
        question = _about(draw, draw.choice(signatures)) if about_names else _expression(draw)
        if question.asked not in seen and question.right != question.wrong:
            seen.add(question.asked)
            repeated = 0
            yield question
        else:
            repeated += 1


def _expression(draw: random.Random) -> Question:
    """The value of an expression over a list of digits. The wrong answer is that of another expression over them, or of
    the same one with another digit."""
    numbers = [draw.randint(0, 9) for _ in range(draw.randint(3, 5))]
    place = draw.randrange(len(numbers))
    expression = draw.choice(EXPRESSIONS).format(numbers=numbers, one=draw.randint(0, 9), place=place)
    right = eval(expression, {"__builtins__": {"sorted": sorted, "sum": sum, "max": max, "min": min, "len": len}})
    if isinstance(right, int):
        wrong: object = draw.choice([right + 1, max(right - 1, 0), *numbers])
    else:
        wrong = draw.choice([numbers, right[::-1], right[:-1], [*right[:-1], (right[-1] + 1) % 10]])
    return Question(f"What does Python give for `{expression}`?", repr(right), repr(wrong))


def _about(draw: random.Random, signature: Signature) -> Question:
    """A question about a function of the standard library, whose signature is in the question."""
    ask: Callable[[random.Random, Signature], Question] = draw.choice([_module_of, _parameter_of, _number_of])
    return ask(draw, signature)


def _module_of(draw: random.Random, signature: Signature) -> Question:
    module, name = signature.module, signature.name
    return Question(f"In `{module}.{name}`, which part is the module?", f"`{module}`", f"`{name}`")


def _parameter_of(draw: random.Random, signature: Signature) -> Question:
    parameters = signature.parameters
    which = draw.choice(("first", "last"))
    right, wrong = (parameters[0], parameters[-1]) if which == "first" else (parameters[-1], parameters[0])
    return Question(f"What is the {which} parameter of `{_written(signature)}`?", f"`{right}`", f"`{wrong}`")


def _number_of(draw: random.Random, signature: Signature) -> Question:
    count = len(signature.parameters)
    wrong = draw.choice([count + 1, count - 1])
    return Question(f"How many parameters has `{_written(signature)}`?", str(count), str(wrong))


def _written(signature: Signature) -> str:
    return f"{signature.name}({', '.join(signature.parameters)})"
