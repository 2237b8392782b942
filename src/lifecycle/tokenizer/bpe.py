"""Training a byte-level BPE (arXiv 1508.07909, on bytes as in GPT-2).

    text -> split by `pattern` into words, numbers, punctuation and spaces -> bytes -> merges of the commonest pairs

Every byte is a token, so any text can be encoded and comes back as it was. Merges never cross a split. The same texts
in the same order give the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from lifecycle.errors import UserError
from lifecycle.system.unicode import well_formed
from lifecycle.tokenizer.chat import TRAINED_HERE, shipped_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Digits = Literal[1, 2, 3]

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
CHAT = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SPECIAL = (PAD, BOS, EOS, *CHAT)  # their ids are 0, 1, 2, ... in every tokenizer trained here
BYTES = 256
SEEN_AT_LEAST = 2  # a pair that occurs once is unlikely to occur in other texts


def pattern(digits: Digits) -> str:
    """What a token may span at most, as a regular expression (the rule of GPT-4 and Llama 3).

    In this order: English contractions; letters with one leading character that is no letter, digit or line break;
    up to `digits` digits; punctuation with a leading space and the line breaks after it; line breaks; spaces.
    """
    numbers = r"\p{N}" if digits == 1 else rf"\p{{N}}{{1,{digits}}}"
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + numbers
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def check_settings(*, vocab_size: int, digits: int, special_tokens: Sequence[str]) -> None:
    """Raise one `UserError` that lists every setting of `data.tokenizer` that cannot work."""
    faults = []
    smallest = BYTES + len(SPECIAL) + len(special_tokens)
    if vocab_size < smallest:
        faults.append(
            f"vocab_size is {vocab_size}; it must be {smallest} or more ({BYTES} bytes and "
            f"{smallest - BYTES} special tokens come first)"
        )
    if digits not in (1, 2, 3):
        faults.append(f"digits is {digits}; it must be 1, 2 or 3, the most digits in one token")
    names = [*SPECIAL, *special_tokens]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"special_tokens names {', '.join(twice)} twice; {', '.join(SPECIAL)} are always there")
    if "" in names:
        faults.append("special_tokens has an empty name; remove it")
    if faults:
        raise UserError("\n".join(f"data.tokenizer.{fault}." for fault in faults))


def train(
    texts: Iterator[str], *, vocab_size: int, digits: Digits, special_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` tokens (fewer where the texts have too few repeated pairs).

    Ids: pad 0, bos 1, eos 2, the chat marks, `special_tokens`, the 256 bytes, then merges by falling frequency.
    Raises `UserError` for settings that cannot work and when there is no text.
    """
    from transformers import PreTrainedTokenizerFast  # here: it takes a second, which `tokenizer.py` spends late

    check_settings(vocab_size=vocab_size, digits=digits, special_tokens=special_tokens)
    first = next((text for text in texts if text), None)
    if first is None:
        raise UserError("data.tokenizer is to be trained, but the sources gave no text: check data.sources and filters")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern(digits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials = [*SPECIAL, *special_tokens]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=SEEN_AT_LEAST,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(map(well_formed, _chain(first, texts)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens=specials[3:],
        chat_template=shipped_source(TRAINED_HERE),
        clean_up_tokenization_spaces=False,
    )


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
