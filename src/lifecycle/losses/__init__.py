"""Losses: pure functions of tensors that return a sum and its metrics; and the log-probabilities that others need."""

from lifecycle.losses.cross_entropy import linear_cross_entropy, token_losses
from lifecycle.losses.logprobs import log_collisions, token_logprobs

__all__ = ["linear_cross_entropy", "log_collisions", "token_logprobs", "token_losses"]
