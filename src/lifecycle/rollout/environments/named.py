"""An environment by its name: `calculator`, or MODULE:CLASS of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from lifecycle.errors import UserError
from lifecycle.rollout.environments.calculator import Calculator
from lifecycle.rollout.environments.environment import Environment
from lifecycle.system.foreign import users_own

BUILT_IN: dict[str, Callable[[], Environment]] = {"calculator": Calculator}


def environment(name: str, where: str = "stage.environment") -> Callable[[], Environment]:
    """What makes one. Raises UserError for a class that cannot be imported, and for one that is no environment."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise UserError(f"{where} is {name!r}; wanted {' or '.join(BUILT_IN)}, or a class of your own, MODULE:CLASS")
    made = users_own(name, where, what="class", example="my_tools:Dictionary")
    stops = getattr(made, "stops", None)
    lacking = [method for method in ("reset", "step") if not callable(getattr(made, method, None))]
    if lacking or isinstance(stops, str) or not stops or not all(isinstance(text, str) and text for text in stops):
        raise UserError(
            f"{where} is {name!r}, which is no environment: wanted a class with stops (texts that end a turn, such as "
            "('</call>',)), reset(record) and step(text)" + (f"; it lacks {' and '.join(lacking)}" if lacking else "")
        )
    make: Callable[[], Environment] = made
    return make
