"""One run from its beginning to its end: resume, trainer, what it leaves behind, jobs."""
