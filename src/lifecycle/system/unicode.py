"""Text that UTF-8 can express."""

from __future__ import annotations


def well_formed(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot express, replaced by U+FFFD; the same object without them."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
