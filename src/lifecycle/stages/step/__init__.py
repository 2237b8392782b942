"""The arithmetic of a step: gradients over micro-batches and ranks, the optimizer, bad steps, penalties, metrics."""
