"""Reads the files of a tokenizer for `transformers`, with clear errors for those that it cannot read.

    with without_marks(folder) as place: ...    # byte order marks are read over, as in every foreign file
    check_files(folder)                         # raises UserError for the first file that is at fault, or does nothing

    single_file(path, source), gpt2(folder)     # a bare tokenizer.json; vocabulary and merges as OpenAI published them

`check_files` is called after `transformers` failed: it reads the files again, one by one, to find the faulty one.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from lifecycle.errors import UserError
from lifecycle.system.foreign import parse_object, read_object, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONTENT = "tokenizer.json"
OBJECTS = (
    *(CONTENT, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    "config.json",  # of a model, which transformers asks for the kind of its tokenizer
)
TEXTS = ("chat_template.jinja", "merges.txt")
GPT2_FILES = ("encoder.json", "vocab.bpe")  # vocabulary and merges as OpenAI published them, plain or gzipped
GPT2_END = "<|endoftext|>"
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


def single_file(path: Path, source: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a bare tokenizer.json; its eos is the special token with one of the usual names."""
    from transformers import PreTrainedTokenizerFast  # here: it takes a second, which `tokenizer.py` spends late

    try:
        backend = read_backend(path)
    except UserError as fault:
        raise UserError(f"data.tokenizer is {source!r}, and a file there must be a tokenizer.json: {fault}") from fault
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    ends = [name for name in ("<|eos|>", GPT2_END, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>") if name in special]
    starts = [name for name in ("<|bos|>", "<s>", "<bos>", "<|begin_of_text|>") if name in special]
    marks = {"eos_token": ends[0] if ends else None, "bos_token": starts[0] if starts else None}
    return PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=str(path), **marks)


def holds_gpt2(folder: Path) -> bool:
    """Whether a folder has GPT-2's vocabulary and merges."""
    return folder.is_dir() and all(_plain_or_gzipped(folder / name) for name in GPT2_FILES)


def gpt2(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of these files. Errors: `UserError`."""
    from transformers import PreTrainedTokenizerFast  # here: it takes a second, which `tokenizer.py` spends late

    vocab = parse_object(_read(folder / GPT2_FILES[0]), folder / GPT2_FILES[0])
    lines = _read(folder / GPT2_FILES[1]).split("\n")[1:]  # the first line names the version
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line.strip())]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(GPT2_END, special=True, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=GPT2_END, eos_token=GPT2_END, clean_up_tokenization_spaces=False
    )


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _read(path: Path) -> str:
    found = _plain_or_gzipped(path)
    assert found is not None
    content = found.read_bytes()
    return (gzip.decompress(content) if found.suffix == ".gz" else content).decode()
