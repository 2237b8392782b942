"""What a policy talks to while it answers: tools and games, in turns."""
