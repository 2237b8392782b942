"""One run from its beginning to its end: plan, resume, trainer, results; jobs."""
