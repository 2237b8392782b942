"""Out to Hugging Face and back: the same numbers in their networks, the same bits in ours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, build
from lifecycle.model.huggingface import export, from_huggingface, load_pretrained, names, to_huggingface

LLAMA = ModelConfig(
    family="llama",
    layers=2,
    width=24,
    heads=4,
    kv_heads=2,
    head_dim=10,
    ffn_width=40,
    vocab_size=96,
    max_positions=64,
    rope_theta=5e5,
    norm_eps=1e-6,
    qk_norm=False,
    tied_head=True,
    init_std=0.2,
)
QWEN3 = replace(LLAMA, family="qwen3", qk_norm=True, head_dim=8)
CONFIGS = {
    "llama": LLAMA,
    "llama_untied": replace(LLAMA, tied_head=False),
    "qwen3": QWEN3,
    "qwen3_untied": replace(QWEN3, tied_head=False),
}
IDS = torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Decoder:
    made = build(CONFIGS[request.param], seed=1)
    with torch.no_grad():  # norms of ones would hide a weight that is not read
        for parameter in made.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


class Marks:
    """The part of a tokenizer that an export needs."""

    bos_id, eos_id, pad_id = 5, 7, 7

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def theirs(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation="eager")


def our_logits(model: Decoder) -> Tensor:
    positions = torch.arange(IDS.shape[1]).expand_as(IDS)
    return model.logits(model(IDS, positions, None))


def test_logits_and_gradients_are_those_of_their_network(model: Decoder, tmp_path: Path) -> None:
    export(model, tmp_path)
    other = theirs(tmp_path)
    ours, its = our_logits(model), other(input_ids=IDS).logits
    torch.testing.assert_close(ours, its, rtol=1e-5, atol=1e-5)
    for logits in (ours, its):
        logits.square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    assert gradients.keys() == set(names(model.config).values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[names(model.config)[name]], rtol=1e-4, atol=1e-5)


def test_out_and_back_is_the_same_to_the_bit(model: Decoder, tmp_path: Path) -> None:
    export(model, tmp_path)
    for config, weights in (load_pretrained(tmp_path), from_huggingface(*to_huggingface(model))):
        assert config == model.config
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("name", CONFIGS)
def test_what_they_save_is_read(name: str, tmp_path: Path) -> None:
    export(build(CONFIGS[name], seed=1), tmp_path / "ours")
    other = theirs(tmp_path / "ours")
    other.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    config, weights = load_pretrained(tmp_path / "theirs")
    assert config == CONFIGS[name]
    again = Decoder(config)
    again.load_state_dict(weights)
    torch.testing.assert_close(our_logits(again), other(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)


def test_half_precision_is_stated_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = build(LLAMA, seed=1)
    export(model, tmp_path, dtype="bf16")
    assert model.embedding.weight.dtype == torch.float32
    assert theirs(tmp_path).dtype == torch.bfloat16
    weights = load_pretrained(tmp_path)[1]
    assert torch.equal(weights["embedding.weight"], model.embedding.weight.bfloat16().float())
    with pytest.raises(UserError, match="export.dtype is 'int8'; choose one of fp32, bf16, fp16"):
        export(model, tmp_path, dtype="int8")


def test_the_tokenizers_marks_go_along_and_pad_freezes_nothing(tmp_path: Path) -> None:
    export(build(LLAMA, seed=1), tmp_path, tokenizer=Marks())
    assert (tmp_path / "tokenizer.json").exists()
    other = theirs(tmp_path)
    assert (other.config.bos_token_id, other.config.eos_token_id) == (5, 7)
    assert other.generation_config.pad_token_id == 7
    assert other.get_input_embeddings().padding_idx is None


def test_an_export_leaves_nothing_but_its_files_and_replaces_an_older_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        export(build(LLAMA, seed=seed), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    embedding = load_pretrained(tmp_path)[1]["embedding.weight"]
    assert torch.equal(embedding, build(LLAMA, seed=2).embedding.weight)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(tmp_path: Path) -> None:
    export(build(LLAMA, seed=1), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.9.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    said = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight (40, 24)" in said
    assert "not of this model: model.layers.9.mlp.up_proj.weight (40, 24)" in said
    assert "shape: model.norm.weight is (3,), by config.json it is (24,)" in said


def test_a_tied_head_may_be_stored_too_but_must_be_the_embedding(tmp_path: Path) -> None:
    model = build(LLAMA, seed=1)
    export(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(load_pretrained(tmp_path)[1]["embedding.weight"], model.embedding.weight)
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="lm_head.weight is another matrix"):
        load_pretrained(tmp_path)


def test_the_layout_of_transformers_4_is_read(tmp_path: Path) -> None:
    export(build(LLAMA, seed=1), tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    del older["rope_parameters"]
    path.write_text(json.dumps(older | {"rope_scaling": None, "torch_dtype": "float32"}))
    assert load_pretrained(tmp_path)[0] == LLAMA


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; the architectures known here are llama, qwen3"),
        ({"attention_bias": True}, "attention_bias is True; only False is built"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is built"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "rope_parameters.rope_type is 'linear'",
        ),
    ],
)
def test_a_network_that_ours_is_not_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    export(build(LLAMA, seed=1), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        load_pretrained(tmp_path)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json does not exist: it is not a Hugging Face model folder"):
        load_pretrained(tmp_path)
    export(build(LLAMA, seed=1), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights are read from safetensors files only"):
        load_pretrained(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names files that are not there: model-00001-of-00002.safetensors"):
        load_pretrained(tmp_path)
