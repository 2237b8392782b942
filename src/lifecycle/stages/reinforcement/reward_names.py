"""The names of rewards: graders, what networks and environments give, and MODULE:FUNCTION of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from lifecycle.rewards.graders import GRADERS
from lifecycle.rewards.judge.verdicts import JUDGED

REWARD_MODEL = "reward_model"
"""Also the key of `stage` for its settings."""
ENVIRONMENT = "environment"
NO_GRADERS = (REWARD_MODEL, *JUDGED, ENVIRONMENT)
"""Rewards of these names are no graders."""

KNOWN = (*GRADERS, *NO_GRADERS)


def is_own(name: str) -> bool:
    """Whether a reward is a function of the user's own."""
    return ":" in name


def fault_of(name: str, where: str) -> str | None:
    """What is wrong with the name of a reward, as far as that is known without importing anything."""
    if name in KNOWN or is_own(name):
        return None
    module, dot, function = name.rpartition(".")
    if dot:
        return f"{where} names '{name}', and a function of your own stands behind a colon: type {module}:{function}"
    near = difflib.get_close_matches(name, KNOWN, n=1)
    meant = f"; did you mean {near[0]}? There are" if near else ": take of"
    return (
        f"{where} names '{name}', which is no reward{meant} {', '.join(KNOWN)}, or a function of your own, "
        "MODULE:FUNCTION, such as my_rewards:polite"
    )


def faults_of(named: Iterable[tuple[str, object]]) -> list[str]:
    """The same of all names that a key holds. named: by the key, a name or a mapping of names to weights."""
    found = list[str | None]()
    for where, held in named:
        if isinstance(held, str):
            found.append(fault_of(held, where))
        elif isinstance(held, Sequence):
            weights = ", ".join(f"{str(name).replace(':', chr(92) + ':')}: 1" for name in held)
            found.append(f"{where} is a list, and each reward has a weight: type '{where}={{{weights}}}'")
        elif isinstance(held, Mapping):
            found += [_cut(name, weight, where) or fault_of(str(name), where) for name, weight in held.items()]
    return [fault for fault in found if fault]


def _cut(name: object, weight: object, where: str) -> str | None:
    """A function's name that the command line has cut at its colon: {my_rewards:polite: 1} is my_rewards there."""
    if not isinstance(weight, str) or ":" not in weight:
        return None
    return (
        f"{where} has '{name}' with the weight '{weight}': on a command line the colon of a name needs a backslash, so "
        f"type {name}\\:{weight} in the braces, and all of them in quotes"
    )
