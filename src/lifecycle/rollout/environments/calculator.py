"""A calculator: `<calc>12 * (3 + 4)</calc>` is answered by ` = 84`, what cannot be worked out by ` = error: why`."""

from __future__ import annotations

from lifecycle.rewards.record import Answered
from lifecycle.rollout.environments.arithmetic import Unanswerable, worked_out
from lifecycle.rollout.environments.environment import Observation

OPEN, CLOSE = "<calc>", "</calc>"
ANSWER = " = "


class Calculator:
    """Knows nothing of the prompt, and nothing of what it was asked before."""

    stops = (CLOSE,)

    def reset(self, record: Answered) -> str | None:
        """Nothing is said beforehand."""
        return None

    def step(self, text: str) -> Observation:
        """The value of what stands between the last pair of marks."""
        before, _, _ = text.rpartition(CLOSE)
        _, opened, expression = before.rpartition(OPEN)
        if not opened:
            return Observation(text=f"{ANSWER}error: no {OPEN} before it", failed=True)
        try:
            return Observation(text=ANSWER + worked_out(expression))
        except Unanswerable as why:
            return Observation(text=f"{ANSWER}error: {why}", failed=True)
