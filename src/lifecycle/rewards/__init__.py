"""Graders: plain functions that mark a completion by what is known of its prompt, from 0 to 1."""
