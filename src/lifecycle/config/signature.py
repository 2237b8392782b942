"""Converts plain values to the types of a signature: one walk finds every fault of keys and types, with what to type.

    walk = Walk()
    walk.arguments(AdamW, {"lr": "fast"}, ("stage", "optimizer"))   # walk.faults: stage.optimizer.lr is 'fast' ...

Nested mappings become the dataclasses of the annotations. A whole number may be written as a float (2e9), and text as
a whole number (run=7); what was changed so stands in `Walk.changed`. Numbers keep the bounds of their annotation
(`bounds.py`), and are finite.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import importlib
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lifecycle.bounds import KEYS
from lifecycle.config.targets import TARGETS
from lifecycle.config.wording import (
    OTHER_NAMES,
    OTHER_WAYS,
    bounds_of,
    fits,
    is_dataclass,
    nearest,
    shown,
    typed,
    wanted,
)
from lifecycle.errors import UserError

KeyPath = tuple[str, ...]

RESERVED = ("_target_", "_partial_")
ALIKE = 0.8  # likeness of a key that was typed to one of another group: below it chance is as good a reason


@dataclasses.dataclass
class Walk:
    """What one walk over a config found. `known`: its dotted keys, for spelling; `default`: the value of a key in the
    config files, or None, for what to type."""

    known: Sequence[str] = ()
    default: Callable[[str], Any] = lambda key: None
    faults: list[str] = dataclasses.field(default_factory=list)
    changed: dict[KeyPath, Any] = dataclasses.field(default_factory=dict)

    def locate(self, target: Any, at: KeyPath) -> Callable[..., Any] | None:
        """The class or function of the `_target_` of the node `at`; None (and a fault) where it may not stand there."""
        allowed = TARGETS.get(dotted(at), ())
        if target not in allowed:
            near = nearest(str(target), allowed)
            wanted = f"; did you mean {near}?" if near else f"; wanted {' or '.join(allowed) or 'none here'}"
            self.faults.append(f"{dotted((*at, '_target_'))} is {target!r}{wanted}")
            return None
        module_name, _, name = target.rpartition(".")
        found: Callable[..., Any] = getattr(importlib.import_module(module_name), name)
        return found

    def arguments(
        self,
        target: Callable[..., Any],
        node: Mapping[str, Any],
        at: KeyPath,
        *,
        supplied: Collection[str] = (),
        aside: Collection[str] = (),
    ) -> dict[str, Any]:
        """Keyword arguments for `target` from `node`.

        `supplied` parameters come from elsewhere and must not stand in the node; `aside` keys are read by others. A
        parameter of the annotation `Keys[Group]` gets a `Group` made of those keys of the node that are its fields.
        """
        hints = _hints(target)
        groups = {name: group for name, hint in hints.items() if (group := _of_keys(hint)) is not None}
        parameters = {name: p for name, p in inspect.signature(target).parameters.items() if name not in groups}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        out: dict[str, Any] = {}
        for name, group in groups.items():
            names = [field.name for field in dataclasses.fields(group)]
            out[name] = self.construct(group, {key: node[key] for key in names if key in node}, at)
            aside = {*aside, *names}
        for key, value in node.items():
            place = (*at, str(key))
            if key in RESERVED or key in aside:
                continue
            if key in supplied:
                self.faults.append(f"{dotted(place)} is set by the run itself: remove it")
            elif key in parameters or open_ended:
                out[str(key)] = self.read(value, hints.get(key, Any), place)
            else:
                self._unknown(place, value, {*parameters, *aside} - set(supplied))
        if not node.get("_partial_"):
            needed = (p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD)
            for name in needed:
                if name not in node and name not in supplied:
                    place = (*at, name)
                    self.faults.append(f"{dotted(place)} is missing; {self._wanted(hints.get(name, Any), place)}")
        return out

    def construct(self, target: Callable[..., Any], node: Mapping[str, Any], at: KeyPath) -> Any:
        """`target` called with the node's arguments; a `UserError` of it joins the faults. None where there are
        faults."""
        before = len(self.faults)
        arguments = self.arguments(target, node, at)
        if len(self.faults) > before:
            return None
        try:
            return target(**arguments)
        except UserError as error:  # collected, so that the user sees all faults at once
            self.faults.append(str(error))
            return None

    def read(self, value: Any, hint: Any, at: KeyPath) -> Any:
        """`value` converted to the type `hint`; where it does not fit, `value` itself and a fault."""
        origin = get_origin(hint)
        if hint is Any:
            return value
        if origin is Annotated:
            return self._bounded(value, hint, at)
        if isinstance(value, Mapping) and "_target_" in value:
            return self._node(value, hint, at)
        if origin in (Union, types.UnionType):
            return self._union(value, hint, at)
        if isinstance(value, Mapping) and is_dataclass(hint):
            return self.construct(hint, value, at)
        if isinstance(value, Mapping) and origin in (dict, collections.abc.Mapping):
            inner = get_args(hint)[1]
            return {str(key): self.read(item, inner, (*at, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple) and origin in (list, tuple, collections.abc.Sequence):
            return self._items(value, hint, at)
        if origin is Literal and any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
        if isinstance(hint, type) and origin is None:
            return self._scalar(value, hint, at)
        return self._wrong(value, hint, at)

    def _bounded(self, value: Any, hint: Any, at: KeyPath) -> Any:
        """A number of an annotation with bounds; the fault names type and bounds together."""
        walk = Walk(self.known)
        number = walk.read(value, get_args(hint)[0], at)
        if walk.faults or not all(bounds.hold(number) for bounds in bounds_of(hint)):
            return self._wrong(value, hint, at)
        self.changed |= walk.changed
        return number

    def _scalar(self, value: Any, hint: type, at: KeyPath) -> Any:
        if not fits(value):
            return self._wrong(value, hint, at)
        if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if hint is int and isinstance(value, float) and value.is_integer() and fits(int(value)):
            return self._change(int(value), at)
        if hint is str and isinstance(value, int) and not isinstance(value, bool):
            return self._change(str(value), at)
        if hint is Path and isinstance(value, str):
            return Path(value)
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
        return self._wrong(value, hint, at)

    def _items(self, value: Sequence[Any], hint: Any, at: KeyPath) -> Any:
        inner = get_args(hint)
        if get_origin(hint) is tuple and inner[-1] is not Ellipsis:
            if len(inner) != len(value):
                return self._wrong(value, hint, at)
            return tuple(self.read(v, h, (*at, str(i))) for i, (v, h) in enumerate(zip(value, inner, strict=True)))
        items = [self.read(item, inner[0], (*at, str(i))) for i, item in enumerate(value)]
        return tuple(items) if get_origin(hint) is tuple else items

    def _union(self, value: Any, hint: Any, at: KeyPath) -> Any:
        """The first alternative that fits without conversion, else the first that fits at all."""
        tried = []
        for member in get_args(hint):
            walk = Walk(self.known)
            tried.append((member, walk, walk.read(value, member, at)))
        fits = [(walk, result) for _, walk, result in tried if not walk.faults]
        meant = [(member, walk) for member, walk, _ in tried if _has_fields(member, value)]
        if fits and not any(walk.faults for _, walk in meant):  # {ratio: x} is a wrong Ratio, though a mapping is one
            walk, result = min(fits, key=lambda pair: len(pair[0].changed))
            self.changed |= walk.changed
            return result
        inside = [member for member, _ in meant] or [member for member, *_ in tried if _takes(member, value)]
        return self.read(value, inside[0], at) if inside else self._wrong(value, hint, at)

    def _node(self, node: Mapping[str, Any], hint: Any, at: KeyPath) -> Any:
        """A nested `_target_`: a dataclass of the annotation, or what `TARGETS` lists with `_partial_: true`."""
        members = [member for member in (get_args(hint) or (hint,)) if is_dataclass(member)]
        names = {f"{member.__module__}.{member.__qualname__}": member for member in members}
        target: Any = names.get(str(node["_target_"]))
        if target is None and (dotted(at) in TARGETS or not names):
            target = self.locate(node["_target_"], at)
            if target is None:
                return None
        if target in members:
            return self.construct(target, node, at)
        if node.get("_partial_") is True and not members:
            return functools.partial(target, **self.arguments(target, node, at))
        self.faults.append(
            f"{dotted((*at, '_target_'))} is {node['_target_']}; "
            + (f"wanted {' or '.join(names)}" if names else "a nested _target_ needs _partial_: true beside it")
        )
        return None

    def _change(self, value: Any, at: KeyPath) -> Any:
        self.changed[at] = value
        return value

    def _wrong(self, value: Any, hint: Any, at: KeyPath) -> Any:
        self.faults.append(f"{dotted(at)} is {shown(value)}; {self._wanted(hint, at, value)}")
        return value

    def _wanted(self, hint: Any, at: KeyPath, value: Any = None) -> str:
        """The type that a key wants, and what to type: its default, where that fits and is not `value`."""
        default = self.default(dotted(at))
        if default is not None:
            walk = Walk()
            walk.read(default, hint, at)
            default = None if walk.faults or default == value else default
        return wanted(hint, dotted(at), value, default)

    def _elsewhere(self, place: KeyPath, mapping: bool) -> dict[str, str]:
        """Known keys by their last part: those of values, and for a mapping those of mappings too."""
        found = {}
        for key in reversed(self.known):
            parts = key.split(".")
            for depth in range(1 if mapping else len(parts), len(parts) + 1):
                found[parts[depth - 1]] = dotted(tuple(parts[:depth]))
        return {name: key for name, key in found.items() if key != dotted(place)}

    def _unknown(self, place: KeyPath, value: Any, siblings: Iterable[str]) -> None:
        """No such key: look among its neighbours first, then for the same name elsewhere."""
        if (instead := OTHER_WAYS.get(place[-1])) is not None:
            self.faults.append(f"{dotted(place)}: there is no such key; here it is {instead}")
            return
        near = nearest(place[-1], siblings)
        elsewhere = self._elsewhere(place, isinstance(value, Mapping))
        better = dotted((*place[:-1], near)) if near else elsewhere.get(nearest(place[-1], elsewhere, ALIKE) or "")
        if (other := OTHER_NAMES.get(place[-1])) in self.known:
            better = other
        shown = dotted(place) + ("" if isinstance(value, Mapping) else f"={typed(value)}")
        if better is None:
            options = ", ".join(sorted(siblings))
            self.faults.append(f"{shown}: there is no such key{f'; here are {options}' if options else ''}")
        elif isinstance(value, Mapping):
            self.faults.append(f"{shown}: there is no such key; did you mean {better}?")
        else:
            self.faults.append(f"{shown}: there is no such key; did you mean {better}? Type {better}={typed(value)}")


def dotted(place: KeyPath) -> str:
    """The key as it is typed."""
    return ".".join(place)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    plain_class = inspect.isclass(target) and not dataclasses.is_dataclass(target)
    return get_type_hints(vars(target).get("__init__", target.__init__) if plain_class else target, include_extras=True)


def _of_keys(hint: Any) -> Any:
    """The dataclass of a `Keys[...]` annotation; None for another."""
    return get_args(hint)[0] if get_origin(hint) is Annotated and KEYS in get_args(hint)[1:] else None


def _takes(member: Any, value: Any) -> bool:
    """Whether this alternative is a container of the value's kind, so that its faults are the ones to show."""
    if isinstance(value, Mapping):
        return is_dataclass(member) or get_origin(member) in (dict, collections.abc.Mapping)
    return isinstance(value, list) and get_origin(member) in (list, tuple, collections.abc.Sequence)


def _has_fields(member: Any, value: Any) -> bool:
    """Whether the value names fields of this dataclass and nothing else."""
    names = {field.name for field in dataclasses.fields(member)} if is_dataclass(member) else set()
    return isinstance(value, Mapping) and bool(value) and set(value) <= names
