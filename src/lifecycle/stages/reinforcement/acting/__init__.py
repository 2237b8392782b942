"""How the samples of a step come about: prompts, draws, marks, and what is told and kept of them."""
