"""What a stage gets from its run: facts, and what it takes over from a parent."""
