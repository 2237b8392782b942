"""From logits to a token: what may be asked of a generation, the draw, when a completion stops, what it scores."""
