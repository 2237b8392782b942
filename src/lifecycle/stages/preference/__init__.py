"""What `stages/dpo.py` is made of: the chosen loss, the reference it compares with, and what is told of a step."""
