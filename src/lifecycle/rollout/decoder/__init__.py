"""Decoding backends: the next token of a few sequences at a time, in torch or in C."""
