"""Rows of files, one module a format."""
