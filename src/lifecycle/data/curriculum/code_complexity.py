"""How complex a program is: log2(nodes depth cyclomatic), so that a doubling of any of the three counts the same.

    nodes        of Python's syntax tree
    depth        of the tree
    cyclomatic   1 + places where the flow divides (McCabe 1976), over the whole text

What does not parse as Python (other languages, other versions, pieces) is measured by its characters alone: tokens for
nodes, brackets and indentation for depth, keywords and operators for where the flow divides.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from typing import NamedTuple

BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)
TOKEN = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\w+|[^\w\s]")
DIVIDES = re.compile(r"\b(?:if|elif|elsif|for|foreach|while|until|case|when|catch|except|rescue|and|or)\b|&&|\|\||\?")
LINE_COMMENT = re.compile(r"(?:#|//|--)[^\n]*|/\*.*?\*/", re.DOTALL)
INDENT_COLUMNS = 4  # of one level, where nothing but the indentation shows it


class Size(NamedTuple):
    """What a program is measured by; each at least 1."""

    nodes: int
    depth: int
    cyclomatic: int


def complexity(text: str) -> float:
    """log2 of the product of the three."""
    return math.log2(math.prod(measure(text)))


def measure(text: str) -> Size:
    """Of the syntax tree where `text` is Python, else of its characters."""
    tree = _parsed(text)
    return _of_characters(text) if tree is None else _of_tree(tree)


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in the strings of the data
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _of_tree(tree: ast.Module) -> Size:
    nodes, deepest, divisions = 0, 1, 0
    level: list[ast.AST] = [tree]
    for depth in range(1, 1 << 30):  # level by level: a recursive walk would end at long chains of operators
        nodes, deepest = nodes + len(level), depth
        divisions += sum(map(_divides, level))
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            break
    return Size(nodes, deepest, 1 + divisions)


def _divides(node: ast.AST) -> int:
    """At how many places the flow divides in this node itself."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, BRANCHES))


def _of_characters(text: str) -> Size:
    code = LINE_COMMENT.sub("", text)
    tokens = TOKEN.findall(code)
    nested = deepest = 0
    for token in tokens:
        nested = max(0, nested + (token in "([{") - (token in ")]}"))
        deepest = max(deepest, nested)
    lines = [line.expandtabs(INDENT_COLUMNS) for line in code.splitlines() if line.strip()]
    indents = [(len(line) - len(line.lstrip())) // INDENT_COLUMNS for line in lines]
    depth = 1 + max([deepest, *indents])
    return Size(max(1, len(tokens)), depth, 1 + len(DIVIDES.findall(code)))
