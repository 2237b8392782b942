"""Optimizers, learning-rate schedules and gradient clipping: what happens between `backward` and the next forward."""

from lifecycle.optim.adamw import AdamW
from lifecycle.optim.clip import clip_gradients
from lifecycle.optim.groups import parameter_groups
from lifecycle.optim.muon import Muon, MuonAdamW
from lifecycle.optim.schedule import Schedule

__all__ = ["AdamW", "Muon", "MuonAdamW", "Schedule", "clip_gradients", "parameter_groups"]
