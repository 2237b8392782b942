"""Parts of a block in our own C, for training on a CPU."""
