"""The files of a tokenizer as `transformers` takes them, and errors in words for those that it does not take.

    with without_marks(folder) as place: ...    # byte order marks are read over, as in every foreign file
    check_files(folder)                         # raises UserError for the first file that is at fault, or does nothing

The second is for when `transformers` could not read them: it looks at them again, one by one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from lifecycle.errors import UserError
from lifecycle.system.foreign import read_object, read_text

CONTENT = "tokenizer.json"
OBJECTS = (
    *(CONTENT, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    "config.json",  # of a model, which transformers asks for the kind of its tokenizer
)
TEXTS = ("chat_template.jinja", "merges.txt")
KINDS = (".json", ".jinja", ".txt", ".model")
MARK = b"\xef\xbb\xbf"


@contextmanager
def without_marks(folder: Path) -> Iterator[Path]:
    """The folder, or, where a file of it begins with a byte order mark, which `transformers` takes for a fault, a copy
    of its small files without."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix in KINDS]
    if not any(_begin(path) == MARK for path in files):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as made:
        for path in files:
            Path(made, path.name).write_bytes(path.read_bytes().removeprefix(MARK))
        yield Path(made)


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(MARK))


def check_files(folder: Path) -> None:
    """Look at every file of a folder that a tokenizer is read from. Errors: `UserError` that names the file."""
    for path in (folder / name for name in (*OBJECTS, *TEXTS) if (folder / name).is_file()):
        read_object(path) if path.name in OBJECTS else read_text(path)
    if (folder / CONTENT).is_file():
        read_backend(folder / CONTENT)


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json. Errors: `UserError` for a file that is none."""
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        read_object(path)  # what is no JSON is named as such
        raise UserError(
            f"{path} is not what tokenizers {tokenizers.__version__} reads ({error}): it was written by a newer "
            "version, or is damaged; update tokenizers and transformers, or get the file again"
        ) from error
