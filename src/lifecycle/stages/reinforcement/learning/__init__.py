"""What a step learns from its samples: rows, log-probabilities, the loss, the updates."""
