"""Graders: plain functions that mark a completion by what is known of its prompt, from 0 to 1; a judge (`judge`); and
how sure a share of such marks is."""
