"""A config.json whose values are of other types than its keys is refused by its place, never by a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.model.huggingface.families import CONFIGS, LLAMA, made
from tests.model.huggingface.test_load import rewrite

from lifecycle.errors import UserError
from lifecycle.model.huggingface import export, load_pretrained
from lifecycle.model.huggingface.config_json import from_hf_config

ODD = (None, "x", -1, float("nan"), ["x"], {"a": 1})
BESIDE = ("final_logit_softcapping", "lifecycle", "head_dim", "quantization_config", "num_local_experts", "num_experts")


@pytest.mark.parametrize("name", ["llama_yarn", "qwen3_moe", "deepseek_v3"])
def test_no_value_of_another_type_ends_in_a_traceback(name: str, tmp_path: Path) -> None:
    export(made(CONFIGS[name]), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    rope = written["rope_parameters"]
    changed: list[dict[str, Any]] = [{key: odd} for key in (*written, *BESIDE) for odd in ODD]
    changed += [
        {"rope_parameters": rope | {key: odd}, "rope_scaling": None}
        for key in {*rope, "factor", "mscale_all_dim", "partial_rotary_factor"}
        for odd in ODD
    ]
    changed += [{"lifecycle": {key: odd}} for key in ("bias_rate", "unknown") for odd in ODD]
    for changes in changed:
        try:
            from_hf_config(written | changes, place="here")
        except UserError as error:
            assert str(error).startswith("here"), changes


@pytest.mark.parametrize("sizes", ["x", [128], [128, "x"], [0, 128]])
def test_blocks_of_8_bit_floats_have_two_sizes(sizes: Any, tmp_path: Path) -> None:
    export(made(LLAMA), tmp_path)
    rewrite(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": sizes})
    with pytest.raises(UserError, match=r"quantization_config.weight_block_size is .*; two whole numbers above 0"):
        load_pretrained(tmp_path)
