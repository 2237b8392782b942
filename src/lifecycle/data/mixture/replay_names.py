"""Names of replayed sources: `replay.web` is the parent's own `web`, `replay.2.web` that of its parent's parent.

A user's own `replay` stands in the place of them all.
"""

from __future__ import annotations

import re

from lifecycle.data.mixture.batch_plan import REPLAY

NAME = re.compile(rf"{REPLAY}\.(?:(\d+)\.)?(.+)")
NUMBERED = re.compile(r"\d+\.")


def replay_name(generation: int, name: str) -> str:
    """What the source `name` of the mixture of a generation (0: the parent) is called where it is replayed."""
    plain = generation == 0 and not NUMBERED.match(name)  # else its own number would be read as a generation
    return f"{REPLAY}.{name}" if plain else f"{REPLAY}.{generation}.{name}"


def generation_of(name: str) -> int | None:
    """The generation whose mixture a replayed source is of; None for a source of the run's own mixture."""
    found = NAME.fullmatch(name)
    return int(found[1] or 0) if found else 0 if name == REPLAY else None


def replayed_later(name: str, generations: int) -> str | None:
    """What the source that one run calls `name` is called in a run of so many generations later, where it is replayed
    in both; None for a source of its own mixture."""
    found = NAME.fullmatch(name)
    return replay_name(int(found[1] or 0) + generations, found[2]) if found else None
