"""Which rows of a source are used: filters on single rows, duplicates, the held-out split and contamination."""
