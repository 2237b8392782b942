"""The parts of a block: attention inside documents, its cache, rotary positions, feed-forward parts, experts."""
