"""A weight of the entropy that keeps a policy from certainty too early (Skywork-OR1, arXiv 2505.22312; TRL's
`use_adaptive_entropy`):

    weight in step k    c_k where e_k <= target, else 0          e_k: mean entropy of a token of the step's samples
    c_k+1               c_k + delta where e_k <= target, else c_k - delta; between 0 and most
"""

from __future__ import annotations

from dataclasses import dataclass

from lifecycle.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AdaptiveEntropy:
    """target: nats, below which the entropy of a token is not to fall. delta: what the coefficient moves by in a step.
    most: its bound. The coefficient is all there is to remember: a number for the checkpoint."""

    target: float
    delta: float
    most: float

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.delta > 0 and self.most > 0):
            raise UserError(
                f"adaptive entropy has target={self.target}, delta={self.delta} and most={self.most}; wanted all above "
                "0"
            )

    def weight(self, coefficient: float, measured: float) -> float:
        """Of the entropy in the step whose samples' tokens have the mean entropy `measured`, over all ranks."""
        return coefficient if measured <= self.target else 0.0

    def adapted(self, coefficient: float, measured: float) -> float:
        """The coefficient of the next step."""
        moved = coefficient + (self.delta if measured <= self.target else -self.delta)
        return min(max(moved, 0.0), self.most)
