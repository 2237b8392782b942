"""Marks that a language model gives: what it is asked, who answers, and how its replies are read."""
