"""Sampling from a model: one engine for evaluation, reinforcement learning and serving."""

from lifecycle.rollout.engine import Engine, generate
from lifecycle.rollout.request import NewToken
from lifecycle.rollout.sampling.parameters import Sampling

__all__ = ["Engine", "NewToken", "Sampling", "generate"]
