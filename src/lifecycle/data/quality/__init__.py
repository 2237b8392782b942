"""What a text is like: pure functions of it, and of sets of texts."""
