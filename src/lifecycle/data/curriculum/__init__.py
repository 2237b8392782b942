"""Easy to hard: the difficulty of rows, levels of it, and when each is read."""
