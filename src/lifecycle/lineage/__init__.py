"""Where a run comes from: run folders, parents, and what a stage takes over from them."""
