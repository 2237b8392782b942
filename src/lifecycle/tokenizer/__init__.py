"""Tokenizers: loaded, trained, extended; text to ids and back."""
