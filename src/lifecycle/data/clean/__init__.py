"""Which rows of a source are used: judged one by one, and against each other, the held-out and the evaluation sets."""
