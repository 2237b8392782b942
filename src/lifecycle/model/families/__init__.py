"""One file a family: what an architecture of `transformers` has, and how its files say it.

The file's name is the family's and their model_type; it holds one `FAMILY`, and is found by its name (see family.py).
"""
