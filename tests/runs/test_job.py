"""The door of jobs: each gets what it asks for and nothing else, and its folder is kept by one rule."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig
from tests.model.huggingface.families import CONFIGS, made

from lifecycle import config
from lifecycle.config import help
from lifecycle.config.targets import TARGETS
from lifecycle.errors import UserError
from lifecycle.lineage.load_model import load_model
from lifecycle.lineage.parent import find_parent
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model.huggingface import export
from lifecycle.run import run
from lifecycle.runs import job
from lifecycle.runs.job import Supplies
from lifecycle.tokenizer.tokenizer import load, train_bpe


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


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DictConfig]:
    """Composes `stage=measure` and `stage=alone`: each is a function of `toy_job.py` and these lines of YAML."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    tokenizer = train_bpe(["some words 1 2 3 of a file"] * 9, vocab_size=300, digits=1)
    export(made(replace(CONFIGS["qwen3"], vocab_size=320)), tmp_path / "given", tokenizer=tokenizer)
    (tmp_path / "texts.jsonl").write_text('{"text": "some words of a file 123"}\n' * 200)
    for name, keys in (("measure", "view: text\ndocuments: 3\n"), ("alone", "view: text\n")):
        file = tmp_path / f"conf/stage/{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"_target_: tests.runs.toy_job.{name}\n{keys}")
        monkeypatch.setitem(TARGETS, "stage", (*TARGETS["stage"], f"tests.runs.toy_job.{name}"))

    def compose(*words: str) -> DictConfig:
        mine = ["data=files", "data.sources.mine.path=texts.jsonl", *words]
        return config.compose(mine, config_dirs=[tmp_path / "conf"])

    return compose


def test_a_job_gets_model_and_data_together_by_one_function_and_one_yaml(toy: Callable[..., DictConfig]) -> None:
    with pytest.raises(UserError, match="stage=measure works with a finished model, and init_from is null"):
        run(toy("stage=measure", "run=measured"))
    done = run(toy("stage=measure", "init_from=given", "run=measured", "seed=7", "stage.documents=2"))
    model, tokenizer = made(replace(CONFIGS["qwen3"], vocab_size=320)), load("given")
    tokens = sum(len(ids) for ids in tokenizer.documents(["some words of a file 123"] * 2))
    assert done.status == "finished"
    assert done.result == {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "tokens": {"mine": tokens},
    }
    told = RunFolder(done.folder).lineage()
    assert told["status"] == "finished" and told["stage"] == "measure" and told["tokenizer"] == tokenizer.sha256
    assert told["parent"]["path"] == str(Path("given").resolve()) and "mine" in told["files"]
    assert (done.folder / "found.txt").read_text().startswith("7: ")


def test_what_a_job_does_not_ask_for_is_not_made(
    toy: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open_corpus", "load_model", "load"):
        monkeypatch.setattr(job, name, None)  # a call of it would fail
    assert run(toy("stage=alone", "seed=5")).result == 5
    assert run(toy("stage=alone", "init_from=given", "seed=6")).result == 6  # nobody has named it: in the same folder


def test_a_job_that_reads_no_data_leaves_the_last_result_where_it_fails(toy: Callable[..., DictConfig]) -> None:
    done = run(toy("stage=alone", "seed=5"))
    before = (done.folder / "run.json").read_bytes()
    with pytest.raises(RuntimeError, match="bad luck"):
        run(toy("stage=alone", "seed=13"))
    assert (done.folder / "run.json").read_bytes() == before
    with pytest.raises(UserError, match="was started with other values of: seed"):
        run(toy("stage=alone", "seed=6", f"run={done.folder.name}"))  # now it has a name


def test_every_name_that_a_job_may_ask_for_is_supplied() -> None:
    for name in set(config.SUPPLIED["stage"]) - {"setup"}:  # which a stage asks for
        assert name in {*vars(Supplies), "folder", "seed", "deterministic", "compiled"}, name


@pytest.mark.parametrize("choice", help.choices("stage", config.conf_dir()))
def test_a_stage_or_job_stands_in_the_file_of_its_name(choice: str) -> None:
    module = str(config.compose([f"stage={choice}"]).stage._target_).rpartition(".")[0]
    made = yaml.safe_load((config.conf_dir() / f"stage/{choice}.yaml").read_text())
    names = [name for name in made.get("defaults", []) if isinstance(name, str)]
    like = [name for name in names if not name.startswith("_")]  # a preset begins with its stage
    assert module in [f"lifecycle.{room}.{name}" for room in ("stages", "jobs") for name in (choice, *like)]
    assert len(like) <= 1
