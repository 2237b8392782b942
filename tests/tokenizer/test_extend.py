"""A given tokenizer that gets more: its ids stay, its texts come back, and its export is the same for transformers."""

import json
from functools import cache
from pathlib import Path

import pytest
from tests.tokenizer.test_tokenizer import corpus, strings
from transformers import AutoTokenizer

from lifecycle.errors import UserError
from lifecycle.tokenizer.extend import extend
from lifecycle.tokenizer.tokenizer import Tokenizer, load, train_bpe

NEW = ["<step>", "</step>", "<calculation>", "</calculation>", "<think>", "</think>"]


@cache
def plain() -> Tokenizer:
    return train_bpe([*corpus(), "12345 99 " * 20], vocab_size=500, digits=3)


def like_a_family(folder: Path) -> Tokenizer:
    """The same vocabulary under a class of transformers that builds its pre-tokenizer itself."""
    plain().save(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    return load(str(folder))


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([index]) for index in tokenizer.encode_batch([text])[0].tolist()]


def test_a_new_token_is_one_token_in_a_text_and_is_shown() -> None:
    tokenizer = extend(plain(), new_tokens=NEW)
    assert tokenizer.vocab_size == plain().vocab_size + len(NEW) == 506
    assert [tokenizer.encode_batch([name])[0].tolist() for name in NEW] == [[index] for index in range(500, 506)]
    text = "<think>a<step>1</step></think> b"
    shown = pieces(tokenizer, text)
    assert "".join(shown) == text == tokenizer.decode(tokenizer.encode_batch([text])[0])
    assert set(shown) >= {"<think>", "<step>", "</step>", "</think>"}
    assert tokenizer.bytes_of(tokenizer.encode_batch([text])[0]) == len(text)


def test_texts_without_new_tokens_have_the_ids_they_had() -> None:
    texts = corpus() + strings()
    before, after = plain().encode_batch(texts), extend(plain(), new_tokens=NEW).encode_batch(texts)
    assert [ids.tolist() for ids in before] == [ids.tolist() for ids in after]


def test_marks_of_documents_are_still_text_in_a_text() -> None:
    tokenizer = extend(plain(), new_tokens=NEW, split_digits=True)
    assert tokenizer.eos_id == plain().eos_id and tokenizer.eos_id not in tokenizer.encode_batch(["<|eos|>"])[0]
    assert tokenizer.hf.chat_template == plain().hf.chat_template


def test_digits_are_single_tokens_and_everything_comes_back() -> None:
    tokenizer = extend(plain(), split_digits=True)
    assert pieces(plain(), "12345") != list("12345") == pieces(tokenizer, "12345")
    texts = corpus() + strings()
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts
    assert tokenizer.vocab_size == plain().vocab_size


def test_texts_without_digits_have_the_ids_they_had() -> None:
    texts = [text for text in corpus() + strings() if not any(c.isnumeric() for c in text)]
    assert len(texts) > 100
    before, after = plain().encode_batch(texts), extend(plain(), split_digits=True).encode_batch(texts)
    assert [ids.tolist() for ids in before] == [ids.tolist() for ids in after]


@pytest.mark.parametrize("family", [False, True])
def test_saved_it_is_the_same_for_load_and_for_transformers(family: bool, tmp_path: Path) -> None:
    given = like_a_family(tmp_path / "given") if family else plain()  # the family brings a mark of its own
    assert (type(given.hf).__name__ == "Qwen2Tokenizer") == family
    tokenizer = extend(given, new_tokens=NEW, split_digits=True)
    tokenizer.save(tmp_path / "out")
    first = json.loads((tmp_path / "out/tokenizer.json").read_text())["pre_tokenizer"]
    assert first["type"] == "Sequence" and first["pretokenizers"][0] == {"type": "Digits", "individual_digits": True}
    other, again = AutoTokenizer.from_pretrained(tmp_path / "out"), load(str(tmp_path / "out"))
    assert again.sha256 == tokenizer.sha256 and len(other) == again.vocab_size == given.vocab_size + 6
    for text in [*corpus(), "<think>12 + 345</think>  6789", "no digits"]:
        ids = tokenizer.encode_batch([text])[0].tolist()
        assert other.encode(text, add_special_tokens=False) == ids == again.encode_batch([text])[0].tolist()
        assert other.decode(ids) == text


def test_what_is_there_already_is_not_added_again() -> None:
    once = extend(plain(), new_tokens=NEW[:2], split_digits=True)
    assert extend(once, new_tokens=NEW[:2], split_digits=True) is once
    assert extend(plain()) is plain()
    more = extend(once, new_tokens=NEW)
    assert more.encode_batch(["<step>"])[0].tolist() == [500] and more.vocab_size == 506


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["<|eos|>"], "marks documents or turns"),
        (["<a>", "<a>"], "named twice"),
        ([""], "is empty"),
        (["a"], "an ordinary token already"),
    ],
)
def test_names_that_cannot_be_are_refused(names: list[str], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        extend(plain(), new_tokens=names)


def test_digits_are_split_in_byte_level_tokenizers_only() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE(vocab={"</s>": 0, "a": 1}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(UserError, match=r"for byte-level tokenizers .* this one splits by Metaspace"):
        extend(Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")), split_digits=True)
