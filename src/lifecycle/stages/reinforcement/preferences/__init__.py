"""Reinforcement learning by marks of models: as rewards, or as pairs of the best and the worst sample."""
