"""Models that end in a score: `AutoModelForSequenceClassification` on the export gives their numbers, whatever pads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.huggingface.families import CONFIGS, IDS, LLAMA, made
from tests.model.huggingface.test_export import Marks
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, build
from lifecycle.model.huggingface import export, load_pretrained, read_config
from lifecycle.model.layers.initial import SCORE, fresh_score

FIRST = {config.family: config for config in reversed(CONFIGS.values()) if config.family != "glm4_moe"}
SCORED = {family: replace(config, score_head=True) for family, config in FIRST.items()}
LENGTHS = (17, 9)
PAD = 5  # bos of `Marks`, whose pad is its eos


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")


@torch.no_grad()
def scores(model: Decoder, ids_BT: Tensor) -> Tensor:
    """(B, T): the score of every beginning."""
    hidden_BTD = model(ids_BT, torch.arange(ids_BT.shape[1]).expand_as(ids_BT))
    return model.scores(hidden_BTD.flatten(0, 1)).view(ids_BT.shape)


def padded() -> tuple[Tensor, Tensor]:
    """Two sequences that end in the eos of `Marks`, the second one padded; and their masks."""
    ids_BT, mask_BT = IDS.clone(), torch.ones_like(IDS)
    ids_BT[ids_BT == PAD] = 11
    for row, length in enumerate(LENGTHS):
        ids_BT[row, length - 1], ids_BT[row, length:], mask_BT[row, length:] = 7, PAD, 0
    return ids_BT, mask_BT


@pytest.mark.parametrize("name", SCORED)
def test_scores_are_those_of_their_network_and_come_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = made(SCORED[name])
    export(model, tmp_path, tokenizer=Marks())
    ids_BT, mask_BT = padded()
    with torch.no_grad():
        found = theirs(tmp_path)(input_ids=ids_BT, attention_mask=mask_BT).logits
    assert found.shape == (2, 1)
    ours = torch.stack([scores(model, ids_BT[row : row + 1, :n])[0, -1] for row, n in enumerate(LENGTHS)])
    torch.testing.assert_close(ours, found[:, 0], rtol=1e-4, atol=1e-6)
    config, weights = load_pretrained(tmp_path)
    assert config == model.config == read_config(tmp_path)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_what_they_save_is_read(tmp_path: Path) -> None:
    model = made(SCORED["qwen3"])
    export(model, tmp_path / "ours")
    network = theirs(tmp_path / "ours")
    network.save_pretrained(tmp_path / "theirs")
    config, weights = load_pretrained(tmp_path / "theirs")
    assert config == model.config and torch.equal(weights[SCORE], model.state_dict()[SCORE])
    assert network.config.num_labels == 1 and network.config.problem_type == "regression"


def test_as_many_parameters_as_are_counted() -> None:
    for config in (SCORED["llama"], replace(SCORED["llama"], tied_head=True), SCORED["mixtral"]):
        assert sum(p.numel() for p in Decoder(config).parameters()) == config.parameters()
        predicts = replace(config, score_head=False)  # its head has a row for each token, the embedding is looked up
        fewer = 6 * (config.vocab - 1) * config.width
        assert config.flops_per_token(8) == predicts.flops_per_token(8) - fewer


def test_padding_never_is_what_ends_an_answer(tmp_path: Path) -> None:
    model = build(SCORED["llama"], seed=1)
    for ends, pad in (((7,), 5), ((8,), 7), ((7, 5), None)):
        export(model, tmp_path, tokenizer=Marks(end_ids=ends))
        config = json.loads((tmp_path / "config.json").read_text())
        said = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config.get("pad_token_id") == pad
        assert said["pad_token"] == (None if pad is None else Marks().special_names[pad])
    export(build(LLAMA, seed=1), tmp_path, tokenizer=Marks())  # the padding of what samples is in generation_config
    assert "pad_token_id" not in json.loads((tmp_path / "config.json").read_text())


def test_a_fresh_score_is_small_and_of_the_seed() -> None:
    wide = replace(LLAMA, width=512, score_head=True)
    weight = fresh_score(wide, seed=3)
    assert 0.8 / 513 < float(weight.std()) < 1.2 / 513
    assert torch.equal(build(wide, seed=3).state_dict()[SCORE], weight)
    assert not torch.equal(fresh_score(wide, seed=4), weight)


def test_what_ends_in_a_score_predicts_nothing_and_keeps_its_precision() -> None:
    model = build(SCORED["llama"], seed=1)
    with pytest.raises(UserError, match="ends in a score and predicts no tokens"):
        _ = model.head_weight
    hidden_ND = torch.randn(4, LLAMA.width, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.scores(hidden_ND)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hidden_ND.float() @ model.state_dict()[SCORE][0])


def test_other_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no class of family glm4_moe that ends in a score"):
        replace(CONFIGS["glm4_moe"], score_head=True)
    export(build(SCORED["llama"], seed=1), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "bad", "1": "good"}}))
    with pytest.raises(UserError, match="id2label has 2 labels"):
        read_config(tmp_path)


def test_the_card_says_how_to_score(tmp_path: Path) -> None:
    model: ModelConfig = SCORED["llama"]
    export(build(model, seed=1), tmp_path, tokenizer=Marks())
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "AutoModelForSequenceClassification" in card
    assert "LlamaForSequenceClassification" in card and "generate(" not in card
