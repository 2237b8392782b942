"""Arithmetic that a model wrote, worked out exactly and in bounded time: numbers, + - * / // % ** and parentheses.

Nothing of Python is run: an expression of a few characters is parsed, and its tree is walked with fractions, each of
which has at most MOST_BITS bits. So 0.1 + 0.2 is 0.3, and 9**9**9 is too large before anything is multiplied.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

MOST_CHARACTERS = 100
MOST_BITS = 128
"""Of numerator and of denominator, in between and in the end: 38 digits."""

ALLOWED = re.compile(r"[0-9.+\-*/%() ]*")
EXACT, ROUNDED = 15, 10
"""A number is given exactly with up to so many digits, else rounded to the other."""

OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
DIVIDES = (ast.Div, ast.FloorDiv, ast.Mod)


class Unanswerable(Exception):
    """An expression without an answer; its text says why, in a few words."""


def worked_out(expression: str) -> str:
    """The value of an expression, as a number in digits. Raises Unanswerable."""
    text = expression.strip(" ")
    if len(text) > MOST_CHARACTERS:
        raise Unanswerable("too long")
    if not text or not ALLOWED.fullmatch(text):
        raise Unanswerable("not arithmetic")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, RecursionError, MemoryError):  # the last two: nested too deeply for this Python
        raise Unanswerable("not arithmetic") from None
    return _shown(_value(tree.body))


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as number):
            return _bounded(Fraction(repr(number)))
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            value = _value(operand)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            a, b = _value(left), _value(right)
            if isinstance(op, DIVIDES) and not b:
                raise Unanswerable("division by zero")
            return _bounded(Fraction(OPERATORS[type(op)](a, b)))
    raise Unanswerable("not arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise Unanswerable("exponent is not whole")
    if not base and exponent < 0:
        raise Unanswerable("division by zero")
    if _bits(base) * abs(exponent.numerator) > 2 * MOST_BITS:  # before it is computed
        raise Unanswerable("too large")
    return _bounded(Fraction(base**exponent.numerator))


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > MOST_BITS:
        raise Unanswerable("too large")
    return value


def _shown(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    number = float(value)
    exact = f"{number:.{EXACT}g}"
    return exact if Fraction(exact) == value else f"{number:.{ROUNDED}g}"
