"""Speed and memory beside other codebases; every variant in its own process, one JSON a benchmark."""
