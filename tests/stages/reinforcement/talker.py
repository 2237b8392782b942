"""An environment that a policy with random weights calls often."""

from lifecycle.rewards.record import Answered
from lifecycle.rollout.environments.environment import Observation


class Talker:
    """Answers by what it was told and how often; fails at times."""

    stops = tuple(chr(65 + i) for i in range(10, 40))

    def __init__(self) -> None:
        self.turns = 0

    def reset(self, record: Answered) -> str | None:
        return "AB" if len(record.prompt) % 3 == 1 else None

    def step(self, text: str) -> Observation:
        self.turns += 1
        value = sum(map(ord, text)) + self.turns
        said = "".join(chr(66 + (value * k) % 60) for k in range(1, 1 + value % 5))
        return Observation(text=said, done=value % 11 == 0, reward=0.25, failed=value % 3 == 0)
