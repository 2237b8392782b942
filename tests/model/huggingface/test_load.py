"""What is read: other layouts, 8-bit blocks, stretched angles; what is refused, and in which words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.huggingface.families import CONFIGS, DEEPSEEK, IDS, LLAMA, made, our_logits, theirs

from lifecycle.errors import UserError
from lifecycle.model import Decoder, ModelConfig, RopeScaling
from lifecycle.model.huggingface import export, load_pretrained, read_config
from lifecycle.model.huggingface.lazy_tensors import ends_of, weight_files

TIED = replace(LLAMA, tied_head=True)


def rewrite(folder: Path, *gone: str, **changes: Any) -> None:
    path = folder / "config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in gone}
    path.write_text(json.dumps(kept | changes))


@pytest.mark.parametrize("name", ["llama_3", "glm4_moe", "deepseek_v3_yarn"])
def test_the_layout_of_transformers_4_is_read(name: str, tmp_path: Path) -> None:
    export(made(CONFIGS[name]), tmp_path)
    rewrite(tmp_path, "rope_parameters", torch_dtype="float32")
    assert read_config(tmp_path) == CONFIGS[name]
    rewrite(tmp_path, "rope_theta", "rope_scaling", "partial_rotary_factor")  # and that of 5 alone
    export(made(CONFIGS[name]), tmp_path)
    rewrite(tmp_path, "rope_theta", "rope_scaling", "partial_rotary_factor")
    assert read_config(tmp_path) == CONFIGS[name]


def test_a_stretch_that_has_no_name_there_goes_out_as_a_larger_base(tmp_path: Path) -> None:
    ours = made(replace(LLAMA, rope_theta=1e4, rope_scaling=RopeScaling(kind="ntk", factor=4.0)))
    export(ours, tmp_path)
    torch.testing.assert_close(our_logits(ours), theirs(tmp_path)(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    config, weights = load_pretrained(tmp_path)
    assert config == replace(LLAMA, rope_theta=1e4 * 4 ** (10 / 8))
    again = Decoder(config)
    again.load_state_dict(weights)
    torch.testing.assert_close(our_logits(again), our_logits(ours), rtol=1e-5, atol=1e-5)


def test_a_stretch_of_two_dimensions_goes_out_too(tmp_path: Path) -> None:
    ours = made(replace(LLAMA, heads=16, kv_heads=16, head_dim=2, rope_scaling=RopeScaling(kind="ntk", factor=2.0)))
    export(ours, tmp_path)
    torch.testing.assert_close(our_logits(ours), theirs(tmp_path)(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


def test_rows_that_are_not_interleaved_stay_where_they_are(tmp_path: Path) -> None:
    model = made(DEEPSEEK)
    export(model, tmp_path)
    rewrite(tmp_path, rope_interleave=False)
    config, weights = load_pretrained(tmp_path)
    other = Decoder(config)
    other.load_state_dict(weights)
    torch.testing.assert_close(our_logits(other), theirs(tmp_path)(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)
    name = "blocks.0.attention.kv_down.weight"
    assert not torch.equal(weights[name], model.state_dict()[name])


def test_blocks_of_8_bit_floats_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    eighths = torch.arange(40 * 32).view(40, 32).remainder(16).float()
    tensors[name] = eighths.to(torch.float8_e4m3fn)
    tensors[f"{name}_scale_inv"] = torch.tensor([[2.0, 4.0], [8.0, 16.0], [32.0, 64.0]])
    save_file(tensors, tmp_path / "model.safetensors")
    rewrite(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    found = load_pretrained(tmp_path)[1]["blocks.0.ffn.up_proj.weight"]
    assert found[0, 1] == 1 * 2 and found[0, 17] == 1 * 4 and found[17, 1] == 1 * 8 and found[39, 31] == 15 * 64
    rewrite(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UserError, match=r"the weights are quantized \(gptq\)"):
        load_pretrained(tmp_path)


def test_what_predicts_further_tokens_is_left_out(tmp_path: Path) -> None:
    export(made(DEEPSEEK), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.3.eh_proj.weight"] = torch.ones(2)  # blocks 0 to 2 are the network's
    save_file(tensors, tmp_path / "model.safetensors")
    rewrite(tmp_path, num_nextn_predict_layers=1)
    assert load_pretrained(tmp_path)[0] == DEEPSEEK


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(tmp_path: Path) -> None:
    export(made(CONFIGS["qwen3_moe"]), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.9.mlp.up_proj.weight"] = tensors.pop("model.layers.1.mlp.experts.4.up_proj.weight")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_pretrained(tmp_path)
    said = str(caught.value)
    assert "missing: model.layers.1.mlp.experts.4.up_proj.weight (12, 32)" in said
    assert "not of this model: model.layers.9.mlp.up_proj.weight (12, 32)" in said
    assert "shape: model.norm.weight is (3,), by config.json it is (32,)" in said
    assert said.count("\n  - ") == 3


def test_a_tied_head_may_be_stored_too_but_must_be_the_embedding(tmp_path: Path) -> None:
    model = made(TIED)
    export(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(load_pretrained(tmp_path)[1]["embedding.weight"], model.embedding.weight)
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight is another matrix"):
        load_pretrained(tmp_path)


LINEAR = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "llama",
            {"model_type": "gpt2"},
            "model_type is 'gpt2'; the architectures known here are deepseek_v2, deepseek_v3, glm4_moe",
        ),
        ("llama", {"attention_bias": True}, "attention_bias is True; only False is built"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is built"),
        ("llama", {"rope_parameters": LINEAR, "rope_scaling": None}, "rope_parameters.rope_type is 'dynamic'"),
        ("qwen2_sliding", {"layer_types": ["sliding_attention"] * 2 + ["full_attention"]}, "layer_types mixes"),
        ("mistral", {"layer_types": ["full_attention"] + ["sliding_attention"] * 2}, "all blocks can slide, or none"),
        ("llama", {"per_layer_config": {"1": {"num_key_value_heads": 4}}}, "per_layer_config is {"),
        ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window is True; only False is built"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "only the first blocks can be dense"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2; only 1 is built"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob is True; only False is built"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
    ],
)
def test_a_network_that_ours_is_not_is_refused(name: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    export(made(CONFIGS[name]), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        read_config(tmp_path)
    assert said in str(caught.value)


def test_all_that_is_not_built_is_said_at_once(tmp_path: Path) -> None:
    export(made(CONFIGS["qwen3_moe"]), tmp_path)
    rewrite(tmp_path, attention_bias=True, hidden_act="relu", decoder_sparse_step=2)
    with pytest.raises(UserError) as caught:
        read_config(tmp_path)
    assert str(caught.value).count("\n  - ") == 3


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_names_files_of_its_own_folder_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match="names files outside the folder"):
        weight_files(tmp_path)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json does not exist: it is not a Hugging Face model folder"):
        load_pretrained(tmp_path)
    export(made(TIED), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"model.safetensors is no whole safetensors file"):
        load_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights are read from safetensors files only"):
        load_pretrained(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names files that are not there: model-00001-of-00002.safetensors"):
        load_pretrained(tmp_path)


# What the hub says of models that people start from, as far as it decides the network (their own config.json).
HUB: dict[str, tuple[dict[str, Any], int]] = {
    "Mistral-7B-v0.1": (
        {"model_type": "mistral", "sliding_window": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-05},
        7_241_732_096,
    ),
    "Mixtral-8x7B-v0.1": ({"model_type": "mixtral", "sliding_window": None, "rope_theta": 1e6}, 46_702_792_704),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": 48,
            "head_dim": 128,
            "max_window_layers": 48,
            "norm_topk_prob": True,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        30_532_122_624,
    ),
    "Qwen1.5-MoE-A2.7B": (
        {"model_type": "qwen2_moe", "max_window_layers": 21, "sliding_window": 32768},
        14_315_784_192,
    ),
    "DeepSeek-V2-Lite": (
        {
            "model_type": "deepseek_v2",
            "first_k_dense_replace": 1,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "moe_layer_freq": 1,
            "n_group": 1,
            "num_attention_heads": 16,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 40,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
                "original_max_position_embeddings": 4096,
                "type": "yarn",
            },
            "scoring_func": "softmax",
            "topk_group": 1,
            "topk_method": "greedy",
        },
        15_706_484_224,
    ),
    "DeepSeek-V3": (
        {"model_type": "deepseek_v3", "num_nextn_predict_layers": 1, "topk_method": "noaux_tc", "moe_layer_freq": 1},
        671_026_404_352,
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_models_of_the_hub_have_the_size_that_is_known_of_them(name: str, tmp_path: Path) -> None:
    described, parameters = HUB[name]
    (tmp_path / "config.json").write_text(json.dumps(described))
    config: ModelConfig = read_config(tmp_path)
    assert config.parameters() == pytest.approx(parameters, rel=1e-6)


# -- what transformers loads too


def stored(folder: Path, changed: dict[str, torch.Tensor]) -> None:
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def alike(folder: Path) -> None:
    """The folder is the same network here and there."""
    config, weights = load_pretrained(folder)
    ours = Decoder(config)
    ours.load_state_dict(weights)
    torch.testing.assert_close(our_logits(ours), theirs(folder)(input_ids=IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {"use_sliding_window": False}),
        ("mixtral", {"use_sliding_window": False, "layer_types": ["full_attention"] * 3}),
        ("qwen3_moe_sliding", {"layer_types": ["full_attention"] * 3}),
        ("deepseek_v2", {"rope_interleave": False}),
        ("llama", {"sliding_window": 4, "moe_layer_freq": 2, "rope_interleave": False}),
        ("glm4_moe", {"sliding_window": 4, "use_sliding_window": True, "mlp_bias": True}),
        ("deepseek_v3", {"sliding_window": 4}),
        ("qwen2", {"attention_bias": True}),
    ],
)
def test_a_key_that_their_class_does_not_know_means_nothing(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = CONFIGS[name.removesuffix("_sliding")]
    config = replace(config, sliding_window=4) if name == "qwen3_moe_sliding" else config
    export(made(config), tmp_path)
    rewrite(tmp_path, **changes)
    assert read_config(tmp_path) == config
    alike(tmp_path)


def test_blocks_of_a_mistral_may_all_be_without_its_window(tmp_path: Path) -> None:
    export(made(CONFIGS["mistral"]), tmp_path)
    rewrite(tmp_path, layer_types=["full_attention"] * 3)
    assert read_config(tmp_path) == CONFIGS["mistral_whole"]
    alike(tmp_path)
    rewrite(tmp_path, layer_types=["sliding_attention"] * 3)
    assert read_config(tmp_path) == CONFIGS["mistral"]
    alike(tmp_path)


def test_a_tied_model_of_which_the_head_alone_is_stored_has_it_for_its_embedding(tmp_path: Path) -> None:
    export(made(TIED), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    stored(tmp_path, tensors)
    alike(tmp_path)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2_sliding", "qwen3_sliding"])
def test_a_base_model_saved_alone_is_read(name: str, tmp_path: Path) -> None:
    export(made(CONFIGS[name]), tmp_path)
    theirs(tmp_path).model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    alike(tmp_path)


def test_a_base_model_without_a_head_is_not_given_one(tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    theirs(tmp_path).model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"there is no head, so this is a base model that predicts nothing; get the"):
        load_pretrained(tmp_path)


def test_swish_is_another_name_of_silu(tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    rewrite(tmp_path, hidden_act="swish")
    alike(tmp_path)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("llama", {"attention_dropout": 0.1}), ("mixtral", {"router_jitter_noise": 0.1, "attention_dropout": 0.2})],
)
def test_noise_of_training_is_no_part_of_the_network_and_said(
    name: str, changes: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export(made(CONFIGS[name]), tmp_path)
    rewrite(tmp_path, **changes)
    alike(tmp_path)
    for key, value in changes.items():
        assert f"{key} is {value} in config.json; training here goes without" in caplog.text


def test_a_converters_initializer_range_of_0_is_read(tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    rewrite(tmp_path, initializer_range=0.0)
    alike(tmp_path)
    assert read_config(tmp_path).init_std == 0.02


def test_tensors_beside_the_network_are_passed_over_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(made(LLAMA), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stored(tmp_path, tensors | {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)})
    alike(tmp_path)
    assert (
        "passed over, since they are no part of the network: v_head.summary.bias, v_head.summary.weight" in caplog.text
    )


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.0.self_attn.q_proj.bias", "model.embed_positions.weight"]
)
def test_tensors_inside_the_network_are_never_passed_over(name: str, tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    stored(tmp_path, load_file(tmp_path / "model.safetensors") | {name: torch.ones(40)})
    with pytest.raises(UserError, match=f"not of this model: {name}"):
        load_pretrained(tmp_path)


# -- files that are not what they should be


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": "four"}, "Field 'num_attention_heads' expected int, got str"),
        ({"num_attention_heads": 5}, "num_attention_heads|multiple of"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        (
            {"rope_parameters": "yarn"},
            "config.json: rope_parameters is 'yarn'; an object or null is wanted; get the file",
        ),
        ({"rope_theta": None, "rope_parameters": None}, "rope_parameters.rope_theta is None; a number"),
        ({"final_logit_softcapping": "x"}, "final_logit_softcapping is 'x'; a number or null is wanted"),
        ({"architectures": 5}, "architectures is 5; a list or null"),
        ({"rms_norm_eps": 0.0}, r"by its config.json: model: .*\n.*norm_eps is 0.*\n.*mend it there, or begin"),
    ],
)
def test_a_config_of_other_types_is_refused_by_its_place(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match=said) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_pointer_to_a_file_is_not_the_file(name: str, tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(UserError, match=f"{name} is a Git LFS pointer"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_names_no_files_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index.json names no files under weight_map"):
        weight_files(tmp_path)


def test_ends_are_numbers_of_tokens() -> None:
    assert ends_of({"eos_token_id": [2, 7]}) == [2, 7] and ends_of({"eos_token_id": 0}) == [0]
    assert ends_of({"eos_token_id": None}) == ends_of({}) == []
    for odd in ("</s>", ["2"], [[2]], 2.0, True):
        with pytest.raises(UserError, match="wanted the number of a token, or a list of them: mend it in generation_"):
            ends_of({"eos_token_id": odd})
