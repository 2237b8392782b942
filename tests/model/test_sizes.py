"""The shipped models: what their files promise is what is built here, and by `transformers` from the export."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lifecycle.config import build, compose
from lifecycle.model import ModelConfig
from lifecycle.model.huggingface.config_json import from_hf_config, to_hf_config

FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
NAMES = (
    "tiny small medium medium_large minimind_26m minimind_104m minimind_145m_moe llama_1b llama_3b llama_7b qwen2_0.5b "
    "qwen2_1.5b qwen2_7b qwen3_0.6b deepseek_60m deepseek_7b_moe smollm2_135m smollm2_360m"
)


@pytest.fixture(scope="module", params=FILES, ids=lambda file: str(file.stem))
def shipped(request: pytest.FixtureRequest) -> tuple[ModelConfig, str]:
    """A model with the vocabulary that its file counts with, and the comment that the file opens with."""
    lines = request.param.read_text().splitlines()
    head = " ".join(line.removeprefix("# ") for line in lines[: lines.index("_target_: lifecycle.model.ModelConfig")])
    config: ModelConfig = build(compose([f"model={request.param.stem}"]).model)
    stated = re.search(r"vocabulary of ([\d,]+)", head)
    return config.with_vocab(int(stated[1].replace(",", "")) if stated else 1), head


def test_every_promised_size_is_shipped() -> None:
    assert {file.stem for file in FILES} == set(NAMES.split())


def test_the_file_says_how_many_parameters(shipped: tuple[ModelConfig, str]) -> None:
    config, head = shipped
    assert f"{config.parameters():,} parameters" in head
    if config.moe is not None:
        assert f"{config.active_parameters():,} active" in head


def test_the_exported_model_has_as_many_parameters(shipped: tuple[ModelConfig, str]) -> None:
    config, _ = shipped
    network = their_network(config)
    total = sum(parameter.numel() for parameter in network.parameters())
    experts = sum(p.numel() for name, p in network.named_parameters() if ".experts." in name)
    moe = config.moe
    active = total if moe is None else total - experts * (moe.experts - moe.active) // moe.experts
    assert config.parameters() == pytest.approx(total, rel=1e-3)
    assert config.active_parameters() == pytest.approx(active, rel=1e-3)


def test_the_export_says_all_that_the_file_says(shipped: tuple[ModelConfig, str]) -> None:
    config, _ = shipped
    assert from_hf_config(to_hf_config(config)) == config


def their_network(config: ModelConfig) -> Any:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    hf_config = to_hf_config(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[config.family].from_dict(hf_config))
