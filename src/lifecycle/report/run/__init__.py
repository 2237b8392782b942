"""The report of one run: what its folder holds, the facts, pictures and sections made of it."""
