"""The tokenizer of a run: text <-> ids, documents with bos and eos, and loading and training of tokenizers.

    load("gpt2"), load("outputs/demo")             a hub id, a folder, a run, a tokenizer.json
    from_recipe(TokenizerRecipe(...), texts, ...)  trained once on the mixture, then cached by the hash of its inputs

Names of special tokens in text are text: "<|eos|>" in a document is encoded as seven characters and cannot end the
document. Marks come from `document` alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend

from lifecycle.bounds import Count
from lifecycle.errors import UserError
from lifecycle.system.atomic import publish_folder, told_in_words
from lifecycle.system.hub_files import TOKENIZER, fetched, reason
from lifecycle.system.unicode import well_formed
from lifecycle.tokenizer.bpe import Digits, check_settings, train
from lifecycle.tokenizer.chat import end_ids
from lifecycle.tokenizer.tokenizer_files import check_files, gpt2, holds_gpt2, single_file, without_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.int32]

FORMAT = 1  # of the cache; increased when recipes are trained in another way


class Tokenizer:
    """A fast tokenizer of `transformers` (`hf`), used so that text stays text. Picklable.

    vocab_size: one more than the largest id. bos_id: that of eos where there is no bos; pad_id likewise.
    Raises `UserError` for a tokenizer without an end-of-text token.
    """

    def __init__(self, hf: PreTrainedTokenizerFast) -> None:
        if hf.eos_token_id is None:
            raise UserError(
                f"the tokenizer {hf.name_or_path or type(hf).__name__} has no end-of-text token (eos_token), but every "
                "document ends with one: name it in tokenizer_config.json, or choose another data.tokenizer"
            )
        self.hf = hf
        self.eos_id = int(hf.eos_token_id)
        self.bos_id = self.eos_id if hf.bos_token_id is None else int(hf.bos_token_id)
        self.pad_id = self.eos_id if hf.pad_token_id is None else int(hf.pad_token_id)
        # a copy: the settings below are ours, and `hf` stays as it came
        self._backend = Backend.from_str(hf.backend_tokenizer.to_str())
        self._backend.encode_special_tokens = True  # in text, the name of a special token is text
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[PreTrainedTokenizerFast]]:
        return Tokenizer, (self.hf,)  # encode_special_tokens is lost when a backend is pickled

    def with_template(self, source: str) -> Tokenizer:
        """The same tokenizer with that chat template."""
        if self.hf.chat_template == source:
            return self
        hf = copy.deepcopy(self.hf)
        hf.chat_template = source
        return Tokenizer(hf)

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text alone, without bos and eos; in threads where the environment has TOKENIZERS_PARALLELISM."""
        return [np.array(ids, np.int32) for ids in self._encode(texts)]

    def encode_marked(self, text: str) -> Ids:
        """Ids of a text in which names of special tokens become these tokens: for the output of a chat template, never
        for text of users."""
        (encoding,) = self._marking.encode_batch_fast([well_formed(text)], add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def documents(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text as a document: bos, the text, eos."""
        return [self.document(ids) for ids in self._encode(texts)]

    def document(self, ids: Sequence[int] | Ids) -> Ids:
        """The ids of a text between the marks: bos, ids, eos."""
        out = np.empty(len(ids) + 2, np.int32)
        out[0], out[1:-1], out[-1] = self.bos_id, ids, self.eos_id
        return out

    def decode(self, ids: Sequence[int] | Ids, *, specials: bool = False) -> str:
        """The text of ids; special tokens are left out, or with `specials` shown by name."""
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=not specials)

    def bytes_of(self, ids: Sequence[int] | Ids) -> int:
        """UTF-8 bytes of the text of these ids; special tokens count as 0."""
        return int(self.byte_lengths[np.asarray(ids, np.int64)].sum())

    def tokens_per_byte(self, texts: Sequence[str]) -> float:
        """Tokens for a UTF-8 byte of these texts, without marks (0 for no text)."""
        size = sum(len(well_formed(text).encode()) for text in texts)
        return sum(map(len, self._encode(texts))) / max(size, 1)

    @cached_property
    def byte_lengths(self) -> Ids:
        """(V,) bytes of text that each id stands for: exact for byte-level and byte-fallback vocabularies."""
        lengths = np.zeros(self.vocab_size, np.int32)
        by_bytes = "ByteLevel" in json.dumps(self._spec["pre_tokenizer"]) + json.dumps(self._spec["decoder"])
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            lengths[index] = len(token) if by_bytes else _bytes_of_piece(token)
        for index, added in self._backend.get_added_tokens_decoder().items():
            lengths[index] = 0 if added.special else len(added.content.encode())
        return lengths

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a completion: eos, and with a chat template the token that ends a turn."""
        return end_ids(self.hf, self.eos_id)

    @cached_property
    def special_names(self) -> dict[int, str]:
        """Names of the special tokens by id: marks of documents and turns, which a text cannot hold."""
        return {int(i): token.content for i, token in self.hf.added_tokens_decoder.items() if token.special}

    @cached_property
    def joins_freely(self) -> bool:
        """Whether the ids of two texts, one after the other, are ids of both together: not where every text begins with
        an added space (SentencePiece)."""
        first, second = self._encode(["a", "b"])
        return self.decode([*first, *second]) == "ab"

    @cached_property
    def sha256(self) -> str:
        """Hash of what ids depend on: the canonical content of tokenizer.json, and the marks of a document."""
        parts = {key: value for key, value in self._spec.items() if key not in ("truncation", "padding")}
        return _sha256(json.dumps([parts, self.bos_id, self.eos_id], sort_keys=True).encode())

    def save(self, folder: Path) -> None:
        """Write the files that `AutoTokenizer.from_pretrained` (transformers 4 and 5) and `load` read."""
        with told_in_words(folder):
            self.hf.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        # names of transformers 4 and of tools that use it; version 5 reads them too
        if config["tokenizer_class"] == "TokenizersBackend":
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(config.get("extra_special_tokens"), list):
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @cached_property
    def _marking(self) -> Backend:
        backend = Backend.from_str(self.hf.backend_tokenizer.to_str())
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(self._backend.to_str())
        return spec

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [well_formed(text) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(clean, add_special_tokens=False)]


def _bytes_of_piece(token: str) -> int:
    """Bytes of a SentencePiece token: <0x0A> is one byte, the lower block a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace("\u2581", " ").encode())


# -- from files


def load(source: str) -> Tokenizer:
    """The tokenizer in a folder, of a run (its name or folder), in a tokenizer.json, or under a hub id.

    A folder is in the format of `transformers`, or holds GPT-2's encoder.json and vocab.bpe (also gzipped).
    Raises `UserError` where there is none, or none that is fast.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # here: seconds that a dry run may do without

    path = place_of(source)
    if (path / "tokenizer").is_dir():
        path = path / "tokenizer"
    if holds_gpt2(path):
        return Tokenizer(gpt2(path))
    if path.is_file():
        return Tokenizer(single_file(path, source))
    looks_local = path.exists() or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if looks_local and not path.is_dir():
        raise UserError(f"data.tokenizer is {source!r}, which does not exist; give a folder, a run or a hub id")
    try:
        folder = path if path.is_dir() else fetched(source, TOKENIZER)
    except UserError as error:
        raise _none_in(source, error) from error
    try:
        with without_marks(folder) as given:
            hf = AutoTokenizer.from_pretrained(str(given), trust_remote_code=False)
        hf.name_or_path = str(path) if path.is_dir() else source
    except Exception as error:  # of every kind: missing files, and faults in the files
        check_files(folder)
        raise _none_in(source, error) from error
    if not isinstance(hf, PreTrainedTokenizerFast):
        raise UserError(
            f"data.tokenizer={source} is a {type(hf).__name__}; a fast tokenizer is needed, one with a tokenizer.json"
        )
    return Tokenizer(hf)


def place_of(source: str) -> Path:
    """The path of a tokenizer on this machine, which may not exist: `source` itself, or the folder of a run."""
    path = Path(source).expanduser()
    run = Path("outputs") / source
    return run if not path.exists() and not path.is_absolute() and (run / "tokenizer").is_dir() else path


def _none_in(source: str, error: Exception) -> UserError:
    return UserError(
        f"data.tokenizer is {source!r}, but no tokenizer could be loaded from it ({reason(error)}). "
        "Give a folder with tokenizer.json, a run, a hub id, or a recipe (vocab_size, digits, max_bytes)"
    )


# -- from a recipe


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """Settings under `data.tokenizer`: how a tokenizer is trained on the mixture.

    vocab_size: tokens at most, special ones included. digits: the most digits in one token. max_bytes: text it is
    trained on. special_tokens: further ones, beside those for documents and chat.
    """

    vocab_size: Count
    digits: Digits
    max_bytes: Count
    special_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UserError for settings that cannot work."""
        check_settings(vocab_size=self.vocab_size, digits=self.digits, special_tokens=self.special_tokens)


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, digits: Digits, special_tokens: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level BPE trained on `texts`; see `lifecycle.tokenizer.bpe.train`."""
    return Tokenizer(train(iter(texts), vocab_size=vocab_size, digits=digits, special_tokens=special_tokens))


def from_recipe(recipe: TokenizerRecipe, texts: Iterator[str], cache_dir: Path, key: str) -> Tokenizer:
    """The tokenizer trained by `recipe` on `texts`, from `cache_dir` if it is there.

    key: identifies the texts: the same key means the same texts, which are read only if the tokenizer must be trained.
    Any number of processes may call at once: one trains and the others wait for it. An entry that is damaged (hashes
    of its files) is made again.
    """
    inputs = {"format": FORMAT, "recipe": asdict(recipe), "key": key}
    folder = cache_dir / _sha256(json.dumps(inputs, sort_keys=True).encode())[:32]
    if _whole(folder):
        return load(str(folder))
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not _whole(folder):
            made = train_bpe(
                texts, vocab_size=recipe.vocab_size, digits=recipe.digits, special_tokens=recipe.special_tokens
            )
            _commit(made, folder, inputs)
    return load(str(folder))


def _commit(tokenizer: Tokenizer, folder: Path, inputs: Mapping[str, Any]) -> None:
    """Write the tokenizer into the cache, with the hashes of its files."""
    with publish_folder(folder, replace=True) as aside:  # only a damaged one can be there
        tokenizer.save(aside)
        files = {path.name: _sha256(path.read_bytes()) for path in sorted(aside.iterdir())}
        (aside / "recipe.json").write_text(json.dumps({"files": files, "sha256": tokenizer.sha256, **inputs}, indent=2))


def _whole(folder: Path) -> bool:
    """Whether a cached tokenizer exists and the hashes of all its files are right."""
    note = folder / "recipe.json"
    if not note.is_file():
        return False
    try:
        files = json.loads(note.read_text())["files"]
    except (ValueError, KeyError, TypeError):  # the note itself is damaged
        return False
    return all((folder / name).is_file() and _sha256((folder / name).read_bytes()) == h for name, h in files.items())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
