"""What marks the samples of a step: graders, and networks."""
