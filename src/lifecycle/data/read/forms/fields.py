"""The fields of a row by our names, whatever the row's own names are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lifecycle.data.read.row import BadRow

MOST = float(np.finfo(np.float32).max)
"""The largest number that a batch holds (fp32): a larger one would become infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """values: the row. names: our name -> the row's, where they differ: a dotted path into a mapping, or several
    columns.

    answer_base: the number of the first option. step_tags: whether the steps of a worked answer are tagged. tie_margin:
    scores that differ by no more are a tie.
    """

    values: Mapping[str, Any]
    names: Mapping[str, str | list[str]]
    answer_base: int = 0
    step_tags: bool = False
    tie_margin: float = 0.0

    def name(self, key: str) -> str:
        """The row's own name of a field."""
        named = self.names.get(key, key)
        return named if isinstance(named, str) else ",".join(named)

    def look(self, key: str) -> Any:
        """The value of a field; None where there is none."""
        return value_at(self.values, self.name(key))

    def required(self, key: str) -> Any:
        """The value of a field that every row has."""
        return present(self.look(key), self.name(key))

    def several(self, key: str) -> Any:
        """The same of one that may be several columns: then the list of their values."""
        named = self.names.get(key, key)
        if isinstance(named, str):
            return self.required(key)
        return [present(value_at(self.values, column), column) for column in named]

    def text(self, key: str, *, strip: bool = True) -> str:
        """The text of a field that every row has, which is not empty."""
        value = self.required(key)
        if not isinstance(value, str):
            raise BadRow(f"wrong type of {self.name(key)}: {type(value).__name__}")
        cleaned = clean(value)
        if not cleaned:
            raise BadRow("empty")
        return cleaned if strip else value

    def text_if_there(self, key: str, *, strip: bool = True) -> str:
        """The text of a field that a row may have, or ""."""
        value = self.look(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise BadRow(f"wrong type of {self.name(key)}: {type(value).__name__}")
        cleaned = clean(value)
        return cleaned if strip else value

    def text_if_named(self, key: str) -> str:
        """The same of one that is read only where it is named: rows carry columns of that name that mean something
        else."""
        return self.text_if_there(key) if key in self.names else ""

    def text_or_number(self, key: str) -> str:
        """The text of a field that every row has; of a number, as it is written: 8.0 is 8."""
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadRow(f"wrong type of {self.name(key)}: {type(value).__name__}")
        if value != value:  # how pandas writes that there is none
            raise BadRow(f"missing field {self.name(key)}")
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()

    def number(self, key: str) -> float | None:
        """The number of a field that a row may have; NaN is how pandas writes that it has none."""
        value = self.look(key)
        if value is None or value != value:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRow(f"wrong type of {self.name(key)}: {type(value).__name__}")
        if abs(value) > MOST:
            raise BadRow(f"{self.name(key)} is too large a number")
        return float(value)


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """The row's value of that name; `a.b` is the `b` of the mapping `a` where there is no plain `a.b`."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def present(value: Any, name: str) -> Any:
    """The value, which has to be there."""
    if value is None:
        raise BadRow(f"missing field {name}")
    return value


def parsed(value: Any, what: str) -> Any:
    """The list or mapping that a column of text holds as JSON, as tables are written; other values as they came. what:
    the column, for errors."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadRow(f"bad json in {what}") from None


def unpacked(value: Any, what: str) -> Any:
    """The same of a column that may be a text in its own right: one that does not begin as JSON stays as it came."""
    begins = isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
    return parsed(value, what) if begins else value


def is_plain(value: Any) -> bool:
    """Whether JSON holds the value unchanged, as shards, checkpoints and a template's text need it."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, str)


def clean(text: str) -> str:
    """The text without space around it; one with NUL bytes is damaged."""
    if "\0" in text:
        raise BadRow("nul bytes")
    return text.strip()
