"""An environment by its name, `calculator` or MODULE:CLASS of the user's own, and the keys of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lifecycle.bounds import Count
from lifecycle.errors import UserError
from lifecycle.rewards.record import Answered
from lifecycle.rollout.environments.calculator import Calculator
from lifecycle.rollout.environments.environment import Coding, Environment, Environments
from lifecycle.system.foreign import text_of, users_own

BUILT_IN: dict[str, Callable[[], Environment]] = {"calculator": Calculator}


@dataclass(frozen=True, kw_only=True)
class EnvironmentKeys:
    """What answers completions in the middle. name: see `environment`; None: nothing does. max_turns,
    max_observation_tokens: see `Environments`."""

    name: str | None
    max_turns: Count
    max_observation_tokens: Count

    def check(self) -> None:
        """Raise UserError for a name that is none."""
        if self.name is not None:
            environment(self.name)

    @property
    def text(self) -> str | None:
        """A hash of the file that a class of the user's own stands in, which decides what it answers; None of others,
        and where there is no such file."""
        if self.name is None or self.name in BUILT_IN:
            return None
        return text_of(environment(self.name))

    def of(self, records: Sequence[Answered], tokenizer: Coding) -> Environments | None:
        """For prompts with these records; None where there is none."""
        if self.name is None:
            return None
        return Environments(
            make=environment(self.name),
            records=records,
            tokenizer=tokenizer,
            max_turns=self.max_turns,
            max_observation_tokens=self.max_observation_tokens,
        )


def fault_of(name: str, where: str = "stage.environment.name") -> str | None:
    """What is wrong with a name, as far as that is known without importing anything."""
    if name in BUILT_IN or ":" in name:
        return None
    return f"{where} is {name!r}; wanted {' or '.join(BUILT_IN)}, or a class of your own, MODULE:CLASS"


def environment(name: str, where: str = "stage.environment.name") -> Callable[[], Environment]:
    """What makes one. Raises UserError for a class that cannot be imported, and for one that is no environment."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    if fault := fault_of(name, where):
        raise UserError(fault)
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
