"""A mixture measured before a run is spent on it, and what counting alone can do with it."""
