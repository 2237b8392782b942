"""From logical streams to the batches of one rank."""
