"""A stage that adds to its parent's vocabulary: model, tokenizer and weights agree, and the config says so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.huggingface.families import LLAMA, made

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.inherit import adopted, settled
from lifecycle.lineage.parent import Parent, find_parent
from lifecycle.lineage.vocabulary import extended
from lifecycle.model.huggingface import export
from lifecycle.stages.run.inheritance import Vocabulary
from lifecycle.tokenizer.extend import extend
from lifecycle.tokenizer.tokenizer import Tokenizer, load, train_bpe

NEW = ["<think>", "</think>"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def parent_folder(tokens: int = 300) -> Path:
    tokenizer = train_bpe(["two words 12 12 12 <x> 12 two words"] * 9 + ["words"] * 9, vocab_size=tokens, digits=3)
    model = made(replace(LLAMA, vocab_size=320))
    export(model, Path("given"), tokenizer=tokenizer)
    return Path("given")


def extend_parent(new_tokens: list[str] | None = None, split_digits: bool = False) -> Parent:
    return extended(find_parent("given"), Vocabulary(new_tokens=new_tokens or [], split_digits=split_digits))


def tokenizer_of(parent: Parent) -> Tokenizer:
    assert parent.tokenizer is not None
    return load(parent.tokenizer)


def test_new_tokens_that_fit_into_the_padding_are_given_rows_of_their_own() -> None:
    folder = parent_folder()
    parent = extend_parent(NEW)
    before, after = load(str(folder)), tokenizer_of(parent)
    old = before.vocab_size
    assert after.vocab_size == old + 2 <= 320 == parent.model.vocab_size == parent.model.vocab
    given = made(parent.model).state_dict()["embedding.weight"]
    grown = parent.weights["embedding.weight"]
    assert torch.equal(grown[:old], given[:old]) and torch.equal(grown[old + 2 :], given[old + 2 :])
    torch.testing.assert_close(grown[old], given[:old].mean(0))
    assert torch.equal(grown[old], grown[old + 1])


def test_those_that_do_not_fit_make_the_model_larger() -> None:
    parent_folder()
    names = [f"<{number}>" for number in range(64)]
    parent = extend_parent(names)
    tokens = tokenizer_of(parent).vocab_size
    assert parent.model.vocab_size == parent.model.vocab == 384 >= tokens > 320
    assert parent.weights["embedding.weight"].shape == parent.weights["head.weight"].shape == (384, LLAMA.width)


def test_digits_apart_leave_the_weights_alone() -> None:
    folder = parent_folder()
    parent = extend_parent(split_digits=True)
    assert parent.model.vocab_size == 320
    assert len(tokenizer_of(parent).encode_batch(["12"])[0]) == 2 > len(load(str(folder)).encode_batch(["12"])[0])
    given = made(parent.model).state_dict()
    assert all(torch.equal(weight, given[name]) for name, weight in parent.weights.items())


def test_without_a_wish_nothing_is_touched() -> None:
    parent_folder()
    given = find_parent("given")
    assert extended(given, Vocabulary(new_tokens=[], split_digits=False)) is given


def test_the_config_says_which_vocabulary_is_used() -> None:
    parent_folder()
    words = ["stage=midtrain", "init_from=given", f"stage.new_tokens={NEW}", "stage.optimizer.lr=1e-4"]
    cfg = config.compose([*words, "stage.replay.share=0"])
    parent = adopted(cfg)
    assert parent is not None
    made = settled(cfg, parent)
    assert made.data.tokenizer == parent.tokenizer == extend_parent(NEW).tokenizer
    assert made.model.vocab_size == parent.model.vocab_size == 320
    plain = adopted(config.compose(["init_from=given"]))  # a stage that takes no wish for tokens
    assert plain is not None and plain.grown_from is None


def test_the_same_wish_gives_the_same_place() -> None:
    parent_folder()
    places = [str(extend_parent(NEW).tokenizer) for _ in range(2)]
    made = extend(load("given"), new_tokens=NEW)  # as stage=tokenizer makes it, to prepare data with
    assert load(places[0]).sha256 == made.sha256
    assert places[0] == places[1] != extend_parent(NEW, split_digits=True).tokenizer
    assert "<think>" in json.loads((Path(places[0]) / "tokenizer.json").read_text())["added_tokens"][-2]["content"]


def test_a_parent_without_a_tokenizer_cannot_be_extended() -> None:
    export(made(LLAMA), Path("given"))
    with pytest.raises(UserError, match=r"extend the parent's tokenizer, and .*given has none"):
        extend_parent(NEW)
