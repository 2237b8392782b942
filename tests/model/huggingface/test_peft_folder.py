"""An adapter in the form of `peft` on the exported base, by `transformers`, is the adapted decoder; and it is read back
to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tests.model.adapted import adapted, lora
from tests.model.huggingface.families import CONFIGS, IDS, made, our_logits, theirs

from lifecycle.errors import UserError
from lifecycle.model import Decoder
from lifecycle.model.adapters import check_adapter, factors_of, is_parameter, matrices, places, plain_weights
from lifecycle.model.huggingface import export
from lifecycle.model.huggingface.peft_folder import read_adapter, write_adapter
from lifecycle.model.lora import Adapter

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),  # peft asks transformers
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match"),  # peft forgets its parameters
]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2")
LATENT = ("deepseek_v2_yarn", "deepseek_v3", "deepseek_v3_dense")


def written(name: str, adapter: Adapter, folder: Path) -> Decoder:
    """The adapted decoder; below `folder` its base and its adapter."""
    base = made(CONFIGS[name])
    export(base, folder / "base")
    model = adapted(base, adapter)
    found = factors_of(model.state_dict(), model.config, adapter)
    write_adapter(folder, model.config, adapter, found, base=str(folder / "base"))
    return model


def loaded(folder: Path) -> Any:
    """By peft, which must know every tensor of the folder and miss none."""
    model = PeftModel.from_pretrained(theirs(folder / "base"), str(folder))
    wanted = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    assert {name: tensor.shape for name, tensor in load_file(folder / "adapter_model.safetensors").items()} == wanted
    return model


def check_parity(name: str, adapter: Adapter, folder: Path) -> None:
    model = written(name, adapter, folder)
    with torch.no_grad():
        ours, other = our_logits(model), loaded(folder)(input_ids=IDS).logits
        base = theirs(folder / "base")(input_ids=IDS).logits
    assert not torch.allclose(ours, base, atol=0.05)
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()) / 10)


@pytest.mark.parametrize("name", [*FAMILIES, *LATENT])
def test_peft_on_the_exported_base_computes_the_same(name: str, tmp_path: Path) -> None:
    check_parity(name, lora(), tmp_path)


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "deepseek_v3"])
@pytest.mark.parametrize(
    "changes", [{"rslora": True}, {"targets": ["q_proj", "blocks.1", "down_proj"]}, {"targets": ["up_proj"]}], ids=str
)
def test_whatever_is_adapted_and_however_it_is_scaled(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    if name == "deepseek_v3":
        changes = {**changes, "targets": ["q_up", "blocks.1", "up_proj"]} if "targets" in changes else changes
    check_parity(name, lora(**changes), tmp_path)


@pytest.mark.parametrize("target", ["experts", "gate_proj", "down_proj"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "glm4_moe"])
def test_an_adapter_may_sit_on_experts_alone(name: str, target: str, tmp_path: Path) -> None:
    check_parity(name, lora(targets=[target]), tmp_path)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_dora_is_theirs(name: str, tmp_path: Path) -> None:
    check_parity(name, lora(dora=True), tmp_path)


def test_dora_on_latent_attention_is_theirs(tmp_path: Path) -> None:
    check_parity("deepseek_v3", lora(dora=True, targets=["attention"]), tmp_path)


@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek_v3"])
def test_the_folder_is_read_back_to_the_bit(name: str, tmp_path: Path) -> None:
    adapter = lora(targets=["gate_proj", "o_proj"]) if name == "mixtral" else lora()
    model = written(name, adapter, tmp_path)
    found = read_adapter(tmp_path, model.config, adapter, places(model.config, adapter))
    for place, factors in factors_of(model.state_dict(), model.config, adapter).items():
        assert torch.equal(found[place].a, factors.a) and torch.equal(found[place].b, factors.b), place


def test_another_adapter_than_the_configs_is_refused(tmp_path: Path) -> None:
    model = written("llama", lora(), tmp_path)
    with pytest.raises(UserError, match="is not the adapter that the run's config.yaml describes"):
        read_adapter(tmp_path, model.config, lora(rank=4), places(model.config, lora(rank=4)))


def test_merged_weights_are_those_that_peft_merges(tmp_path: Path) -> None:
    model = written("llama", lora(dora=True), tmp_path)
    merged = loaded(tmp_path).merge_and_unload().state_dict()
    ours = plain_weights(model)["blocks.1.ffn.up_proj.weight"]
    torch.testing.assert_close(ours, merged["model.layers.1.mlp.up_proj.weight"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", ["dora", "dropout"])
def test_what_peft_cannot_do_on_experts_is_refused(key: str) -> None:
    config, adapter = CONFIGS["deepseek_v3"], lora(**{key: 0.5})
    with pytest.raises(UserError, match=rf"adapter.{key} cannot be used .* adapter.targets=\[attention\]"):
        check_adapter(config, adapter)
    check_adapter(config, lora(**{key: 0.5}, targets=["attention"]))
    check_adapter(CONFIGS["llama"], adapter)
    assert is_parameter("blocks.0.ffn.up_proj", config) and "blocks.0.ffn.up_proj" in matrices(config)
