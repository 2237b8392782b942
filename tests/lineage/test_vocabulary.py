"""A stage that adds to its parent's vocabulary: model, tokenizer and weights agree, and the config says so."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, open_dict
from tests.model.huggingface.families import LLAMA, made

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, adopt_parent
from lifecycle.lineage.vocabulary import extend_vocabulary
from lifecycle.model.huggingface import export
from lifecycle.tokenizer.extend import extend
from lifecycle.tokenizer.tokenizer import load, train_bpe

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


def adopted(**keys: object) -> tuple[DictConfig, Parent]:
    cfg = config.compose(["init_from=given"])
    with open_dict(cfg):
        cfg.stage.update(keys)
    parent = adopt_parent(cfg)
    assert parent is not None
    extended = extend_vocabulary(cfg, parent)
    assert extended is not None
    return cfg, extended


def test_new_tokens_that_fit_into_the_padding_are_given_rows_of_their_own() -> None:
    folder = parent_folder()
    cfg, parent = adopted(new_tokens=NEW)
    before, after = load(str(folder)), load(cfg.data.tokenizer)
    old = before.vocab_size
    assert after.vocab_size == old + 2 <= 320 == cfg.model.vocab_size == parent.model.vocab
    given = made(parent.model).state_dict()["embedding.weight"]
    grown = parent.weights["embedding.weight"]
    assert torch.equal(grown[:old], given[:old]) and torch.equal(grown[old + 2 :], given[old + 2 :])
    torch.testing.assert_close(grown[old], given[:old].mean(0))
    assert torch.equal(grown[old], grown[old + 1])


def test_those_that_do_not_fit_make_the_model_larger() -> None:
    parent_folder()
    names = [f"<{number}>" for number in range(64)]
    cfg, parent = adopted(new_tokens=names)
    tokens = load(cfg.data.tokenizer).vocab_size
    assert cfg.model.vocab_size == parent.model.vocab == 384 >= tokens > 320
    assert parent.weights["embedding.weight"].shape == parent.weights["head.weight"].shape == (384, LLAMA.width)


def test_digits_apart_leave_the_weights_alone() -> None:
    folder = parent_folder()
    cfg, parent = adopted(split_digits=True)
    assert cfg.model.vocab_size == 320
    assert len(load(cfg.data.tokenizer).encode_batch(["12"])[0]) == 2 > len(load(str(folder)).encode_batch(["12"])[0])
    given = made(parent.model).state_dict()
    assert all(torch.equal(weight, given[name]) for name, weight in parent.weights.items())


def test_without_a_wish_or_a_parent_nothing_is_touched() -> None:
    parent_folder()
    cfg, parent = adopted(new_tokens=[], split_digits=False)
    assert cfg.data.tokenizer == parent.tokenizer == str(Path("given").resolve())
    with open_dict(cfg):
        cfg.stage.new_tokens = NEW
    assert extend_vocabulary(cfg, None) is None


def test_the_same_wish_gives_the_same_place() -> None:
    parent_folder()
    places = [adopted(new_tokens=NEW)[0].data.tokenizer for _ in range(2)]
    made = extend(load("given"), new_tokens=NEW)  # as stage=tokenizer makes it, to prepare data with
    assert load(places[0]).sha256 == made.sha256
    assert places[0] == places[1] != adopted(new_tokens=NEW, split_digits=True)[0].data.tokenizer
    assert "<think>" in json.loads((Path(places[0]) / "tokenizer.json").read_text())["added_tokens"][-2]["content"]


def test_a_parent_without_a_tokenizer_cannot_be_extended() -> None:
    export(made(LLAMA), Path("given"))
    with pytest.raises(UserError, match=r"extend the parent's tokenizer, and .*given has none"):
        adopted(new_tokens=NEW)
