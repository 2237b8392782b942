"""Workers that graders run in: small processes with limits, killed and replaced where a grader takes too long."""
