"""What the machine gives: whole files, cache folder, locks, processes, derived seeds."""
