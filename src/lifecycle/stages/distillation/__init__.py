"""What `stages/distill.py` is made of: the teacher, what it said before, and what the student writes itself."""
