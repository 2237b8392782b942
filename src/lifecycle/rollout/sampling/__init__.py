"""From logits to a token: sampling settings, the draw, stop conditions, scores of given completions."""
