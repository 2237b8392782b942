"""The cost of a run, estimated before it starts: time, memory, tokens, disk."""
