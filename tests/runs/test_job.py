"""How a job's model is loaded, and what of the hardware it has a use for."""

from pathlib import Path

import pytest
import torch
from tests.model.huggingface.families import CONFIGS, made

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.find_parent import find_parent
from lifecycle.lineage.load_model import load_model
from lifecycle.model.huggingface import export
from lifecycle.run import run


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen2_moe"])
def test_in_bf16_norms_and_routers_keep_every_bit(name: str, tmp_path: Path) -> None:
    model = made(CONFIGS[name])
    export(model, tmp_path)
    hardware = config.build(config.compose(["hardware.precision=bf16"]).hardware)
    half = load_model(find_parent(str(tmp_path)), hardware)
    for ours, weight in half.state_dict().items():
        exact = ours.endswith(("norm.weight", "router.weight", "router.bias"))
        assert weight.dtype == (torch.float32 if exact else torch.bfloat16), ours
        assert torch.equal(weight, model.state_dict()[ours].to(weight.dtype)), ours
    ids = torch.arange(6)[None]
    assert half.logits(half(ids, ids)).dtype == torch.bfloat16


def test_hardware_that_a_job_on_one_device_would_not_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export(made(CONFIGS["qwen3"]), tmp_path / "given")
    words = ["stage=generate", "init_from=given", "stage.prompt=a", "hardware.devices=2", "hardware.strategy=fsdp"]
    with pytest.raises(UserError) as caught:
        run(config.compose([*words, "hardware.attention=sdpa"]))
    assert str(caught.value).splitlines() == [
        "stage=generate runs in one process on one device:",
        "  - hardware.devices is 2; type hardware.devices=1",
        "  - hardware.strategy is fsdp; type hardware.strategy=auto",
        "  - hardware.attention=sdpa is of training alone; leave it out",
    ]
