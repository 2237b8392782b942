"""What single-stream policy optimisation keeps of every prompt, and how it chooses among them."""
