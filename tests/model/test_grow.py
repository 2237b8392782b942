"""More rows for a trained vocabulary: the old tokens notice nothing, and no new one begins at random."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.huggingface.families import DEEPSEEK, IDS, LLAMA, made, our_logits, theirs
from torch import Tensor

from lifecycle.model import Decoder, ModelConfig
from lifecycle.model.grow import grow_config, grow_embeddings
from lifecycle.model.huggingface import export, load_pretrained

TIED = replace(LLAMA, tied_head=True)


def decoder(config: ModelConfig, weights: dict[str, Tensor]) -> Decoder:
    model = Decoder(config)
    model.load_state_dict(weights)
    return model.eval()


def test_a_matrix_by_hand() -> None:
    matrix = torch.tensor([[1.0, 8.0], [3.0, 2.0], [9.0, 9.0], [7.0, 7.0]])
    weights = {"embedding.weight": matrix, "other": torch.ones(1)}
    # two tokens and two rows of padding; one more token, and five rows in all
    grown = grow_embeddings(weights, old=2, new=3, rows=5)
    assert grown["embedding.weight"].tolist() == [[1, 8], [3, 2], [2, 5], [7, 7], [2, 5]]
    assert grown["other"] is weights["other"]
    assert matrix.shape == (4, 2)


@pytest.mark.parametrize("config", [LLAMA, TIED, DEEPSEEK], ids=["untied", "tied", "deepseek"])
def test_logits_of_the_old_tokens_stay_bit_for_bit(config: ModelConfig) -> None:
    model = made(config).eval()
    before, old = our_logits(model), config.vocab
    after = grow_config(config, old + 6)
    weights = grow_embeddings(model.state_dict(), old=old, new=old + 6, rows=after.vocab)
    grown = our_logits(decoder(after, weights))
    assert torch.equal(grown[..., :old], before)
    torch.testing.assert_close(grown[..., old:], before.mean(-1, keepdim=True).expand_as(grown[..., old:]))


def test_tokens_that_fit_into_the_padding_change_no_size() -> None:
    assert grow_config(replace(LLAMA, vocab_size=128), 128).vocab == 128
    assert grow_config(replace(LLAMA, vocab_size=100), 101).vocab == 128
    assert grow_config(replace(LLAMA, vocab_size=128), 129).vocab == 192


@pytest.mark.parametrize("config", [LLAMA, TIED], ids=["untied", "tied"])
def test_exported_it_is_the_same_for_transformers_and_comes_back(config: ModelConfig, tmp_path: Path) -> None:
    after = grow_config(config, config.vocab + 6)
    weights = grow_embeddings(made(config).state_dict(), old=config.vocab, new=config.vocab + 6, rows=after.vocab)
    model = decoder(after, weights)
    export(model, tmp_path)
    other = theirs(tmp_path)
    assert other.config.vocab_size == after.vocab
    torch.testing.assert_close(other(IDS).logits, our_logits(model), rtol=1e-4, atol=1e-5)
    described, read = load_pretrained(tmp_path)
    assert described == after
    assert all(torch.equal(read[name], weight) for name, weight in model.state_dict().items())
