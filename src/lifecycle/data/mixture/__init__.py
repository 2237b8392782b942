"""Shares of the sources, as functions of the step."""
