"""What is looked at before the first update, and while a policy is trained, and said in words."""
