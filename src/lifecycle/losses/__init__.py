"""Losses: pure functions of tensors that return a sum and its metrics."""

from lifecycle.losses.cross_entropy import linear_cross_entropy, token_losses

__all__ = ["linear_cross_entropy", "token_losses"]
