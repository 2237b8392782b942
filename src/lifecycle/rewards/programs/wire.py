"""Values and calls between two processes that trust each other with nothing but plain values.

    plain        None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict; types
                 of Python itself: sent as they are
    the rest     stays where it is, and the other side has a `Remote`, whose calls, attributes and items are asked for

So an object that says of itself that it equals everything is equal to nothing on the other side.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator
from typing import Any

from lifecycle.rewards.sandbox import frames

CALL, GET, SET, ITEM, SIZE, ITERATE, NEXT = "call", "get", "set", "item", "size", "iterate", "next"


class Gone(Exception):
    """The other process has ended, or speaks otherwise than agreed."""


class Peer:
    """One side. may_ask_all: whether the other side may do more with what stays here than call it."""

    def __init__(self, fd: int, *, may_ask_all: bool) -> None:
        self._fd, self._may_ask_all = fd, may_ask_all
        self._kept: list[Any] = []
        self.asked = 0

    # -- asking

    def ask(self, what: str, *values: Any) -> Any:
        """Have the other side do something; what it raises is raised here."""
        self.asked += 1
        self.send("ask", what, self.encode(list(values)))
        return self.answer()

    def answer(self) -> Any:
        """The next answer; what the other side asks meanwhile is done."""
        while True:
            kind, *rest = self._receive()
            if kind == "answer":
                return self.decode(rest[0])
            if kind == "raised":
                raise _exception(*rest)
            self._do(*rest)

    def send(self, *message: Any) -> None:
        """Send a message."""
        try:
            frames.write(self._fd, message)
        except OSError as error:
            raise Gone from error

    def _receive(self) -> Any:
        try:
            return frames.read(self._fd)
        except (OSError, EOFError, ValueError, RecursionError) as error:
            raise Gone from error

    # -- doing

    def serve(self) -> None:
        """Do what the other side asks until it is gone."""
        while True:
            kind, *rest = self._receive()
            assert kind == "ask"
            self._do(*rest)

    def _do(self, what: str, values: Any) -> None:
        """Do it, and send what comes of it. A program raises anything."""
        try:
            done = self.encode(self._done(what, self.decode(values)))
        except Gone:
            raise
        except BaseException as error:
            self.send("raised", type(error).__name__, _text(error))
        else:
            self.send("answer", done)

    def _done(self, what: str, values: list[Any]) -> Any:
        target, *rest = values
        if what == CALL:
            given, named = rest
            return [target(*given, **named), [one if type(one) in CHANGEABLE else None for one in given]]
        if not self._may_ask_all:
            raise PermissionError(what)
        doing: dict[str, Callable[..., Any]] = {
            GET: getattr, SET: setattr, ITEM: lambda held, key: held[key], SIZE: len, ITERATE: iter, NEXT: next,
        }  # fmt: skip
        return doing[what](target, *rest)

    # -- values

    def encode(self, value: Any) -> Any:
        """As JSON. Values of a kind made from a plain one are of the plain kind."""
        if value is None or value is True or value is False or type(value) is str:
            return value
        if isinstance(value, Remote):
            return {"yours": value._remote_number}
        if (name := TYPES.get(id(value))) is not None:
            return {"type": name}
        for kind, write in WRITTEN.items():
            if isinstance(value, kind):
                return {kind.__name__: write(value)}
        for kind, items in ITEMS.items():
            if isinstance(value, kind):
                return {kind.__name__: [self.encode(one) for one in items(value)]}
        if isinstance(value, dict):
            return {"dict": [[self.encode(key), self.encode(held)] for key, held in dict.items(value)]}
        self._kept.append(value)
        return {"mine": len(self._kept) - 1}

    def decode(self, value: Any) -> Any:
        """From JSON."""
        if not isinstance(value, dict):
            return value
        ((kind, held),) = value.items()
        if kind in READ:
            return READ[kind](held)
        if kind in ("list", "tuple", "set", "frozenset"):
            return getattr(builtins, kind)([self.decode(one) for one in held])
        if kind == "dict":
            return {self.decode(key): self.decode(one) for key, one in held}
        return self._kept[held] if kind == "yours" else Remote(self, held)


CHANGEABLE = (list, set, dict, bytearray)
"""Arguments that a call may change: the other side's follow."""
WRITTEN: dict[type, Callable[[Any], Any]] = {
    str: lambda text: str.__str__(text),
    int: lambda number: f"{int.__index__(number):x}",
    float: lambda number: float.hex(number),
    complex: lambda number: [number.real.hex(), number.imag.hex()],
    bytes: lambda data: bytes.hex(data),
    bytearray: lambda data: bytearray.hex(data),
}
ITEMS: dict[type, Callable[[Any], Iterator[Any]]] = {
    list: list.__iter__, tuple: tuple.__iter__, set: set.__iter__, frozenset: frozenset.__iter__,
}  # fmt: skip
TYPES = {id(kind): name for name, kind in vars(builtins).items() if isinstance(kind, type)}
"""Python's own, by identity: one of a program's may say that it has another's name."""
READ: dict[str, Callable[[Any], Any]] = {
    "type": lambda name: getattr(builtins, name if name in TYPES.values() else ""),
    "str": str,
    "int": lambda text: int(text, 16),
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
}


class Remote:
    """What stays on the other side. It equals itself alone, and is true."""

    __slots__ = ("_remote_number", "_remote_peer")
    _remote_number: int
    _remote_peer: Peer

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_remote_peer", peer)
        object.__setattr__(self, "_remote_number", number)

    def __call__(self, *given: Any, **named: Any) -> Any:
        result, changed = self._remote_peer.ask(CALL, self, list(given), named)
        for mine, theirs in zip(given, changed, strict=True):
            if type(mine) in CHANGEABLE and type(theirs) is type(mine) and theirs != mine:
                mine.clear()
                (mine.update if isinstance(mine, dict | set) else mine.extend)(theirs)
        return result

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote_peer.ask(GET, self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_peer.ask(SET, self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._remote_peer.ask(ITEM, self, key)

    def __len__(self) -> int:
        return int(self._remote_peer.ask(SIZE, self))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        through = self._remote_peer.ask(ITERATE, self)
        return through if isinstance(through, Remote) else iter(through)

    def __next__(self) -> Any:
        return self._remote_peer.ask(NEXT, self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other._remote_number == self._remote_number

    def __hash__(self) -> int:
        return hash(self._remote_number)


def _text(error: BaseException) -> str:
    """What an exception says, which it may not want to."""
    try:
        return str(error)[:500]
    except BaseException:
        return ""


def _exception(name: str, text: str) -> Exception:
    """The exception that the other side raised; by name one that is not of Python itself, or would end this process."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind(text) if kind not in NEED_MORE else RuntimeError(f"{name}: {text}")
    return RuntimeError(f"{name}: {text}")


NEED_MORE = (UnicodeDecodeError, UnicodeEncodeError, UnicodeTranslateError, BaseExceptionGroup, ExceptionGroup)
"""Exceptions that a text alone does not make."""
