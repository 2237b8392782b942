"""What the report of a run that learns from its own samples has: what was gained, pictures, what was noticed."""
