"""What is wrong with the files of a tokenizer, in words: looked for where `transformers` could not read them.

check_files(folder)         # raises UserError for the first file that is at fault, or does nothing
"""

from __future__ import annotations

from pathlib import Path

import tokenizers

from lifecycle.errors import UserError
from lifecycle.foreign import read_object, read_text

CONTENT = "tokenizer.json"
OBJECTS = (CONTENT, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
TEXTS = ("chat_template.jinja", "merges.txt")
MARK = b"\xef\xbb\xbf"


def check_files(folder: Path) -> None:
    """Look at every file of a folder that a tokenizer is read from. Errors: `UserError` that names the file."""
    for path in (folder / name for name in (*OBJECTS, *TEXTS) if (folder / name).is_file()):
        read_object(path) if path.name in OBJECTS else read_text(path)
        if path.read_bytes().startswith(MARK):
            raise UserError(
                f"{path} begins with a byte order mark, which transformers does not read over: save it as UTF-8 "
                "without one"
            )
    if (folder / CONTENT).is_file():
        read_backend(folder / CONTENT)


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a tokenizer.json says. Errors: `UserError`."""
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        read_object(path)  # what is no JSON is named as such
        raise UserError(
            f"{path} is not what tokenizers {tokenizers.__version__} reads ({error}): it was written by a newer "
            "version, or is damaged; update tokenizers and transformers, or get the file again"
        ) from error
