"""What the stages of reinforcement learning share: sampling, grading, and the rows that a policy is updated on."""
