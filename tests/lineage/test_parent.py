"""What `init_from` can name, what is read at once and what only when asked for, and the words for what is not there."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.model.huggingface.families import CONFIGS, DEEPSEEK, LLAMA, made
from tests.model.huggingface.test_gguf import head_of, tensors_of, write_gguf

from lifecycle import config
from lifecycle.checkpoint import mark_best
from lifecycle.checkpoint.io import CommittedCheckpointIO
from lifecycle.errors import UserError
from lifecycle.lineage import inherit
from lifecycle.lineage.inherit import adopted, optimizer_checkpoint, settled
from lifecycle.lineage.parent import find_parent, history, parent
from lifecycle.lineage.run_folder import RunFolder
from lifecycle.model import ModelConfig
from lifecycle.model.huggingface import export
from lifecycle.system import say_once

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def finished_run(name: str, model: ModelConfig = LLAMA, **lineage: Any) -> Path:
    folder = Path("outputs") / name
    export(made(model), folder / "model")
    RunFolder(folder).update(status="finished", stage="pretrain", parent=None, ancestors=[], **lineage)
    return folder


@pytest.mark.parametrize("word", ["demo", "outputs/demo", "outputs/demo/model"])
def test_a_run_is_named_by_its_name_or_its_folder(word: str) -> None:
    finished_run("demo")
    found = find_parent(word)
    assert found.model == LLAMA and found.folder == Path("outputs/demo/model")
    assert torch.equal(found.weights["norm.weight"], made(LLAMA).norm.weight)


def test_a_run_may_be_named_from_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    finished_run("demo")
    assert find_parent("~/outputs/demo").folder == here / "outputs/demo/model"


def test_weights_are_read_when_they_are_asked_for_and_not_before() -> None:
    folder = finished_run("demo")
    (folder / "model/model.safetensors").unlink()
    found = find_parent("demo")
    assert found.model == LLAMA
    with pytest.raises(UserError, match=r"neither model.safetensors nor"):
        _ = found.weights


def test_a_run_that_was_started_again_does_not_hand_out_its_older_model() -> None:
    folder = finished_run("demo")
    RunFolder(folder).update(status="running")
    found = find_parent("demo")  # for a run that goes on, which asks for no weights
    assert found.model == LLAMA
    with pytest.raises(UserError, match="started again and is running.*or type init_from=outputs/demo/model"):
        _ = found.weights
    assert torch.equal(find_parent("outputs/demo/model").weights["norm.weight"], made(LLAMA).norm.weight)


def test_the_generation_settings_are_those_beside_the_weights_or_of_the_run() -> None:
    folder = finished_run("demo")
    (folder / "model/generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert find_parent("demo").generation == {"eos_token_id": [1, 2]}
    checkpoint = replace(find_parent("demo"), folder=folder / "checkpoints/step-00000004")
    assert checkpoint.generation == {"eos_token_id": [1, 2]}
    assert replace(checkpoint, run=None).generation == {}


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3_yarn"])
def test_the_config_takes_over_every_part_of_the_parents_architecture(name: str) -> None:
    finished_run("demo", CONFIGS[name])
    cfg = config.compose(["init_from=demo"])
    parent = adopted(cfg)
    assert parent is not None and parent.tokenizer is None
    made = settled(cfg, parent)
    config.check(made)
    assert config.build(made.model) == CONFIGS[name]


def test_lineage_goes_back_to_the_first_stage() -> None:
    first = finished_run("first", data={"sources": {"books": {"tokens": 5}}})
    second = finished_run("second")
    RunFolder(second).update(**find_parent("first").lineage(), stage="sft")
    third = finished_run("third")
    RunFolder(third).update(**find_parent("second").lineage(), stage="dpo")
    lineage = RunFolder(third).lineage()
    assert lineage["parent"]["path"] == str(second.resolve())
    assert [entry["path"] for entry in lineage["ancestors"]] == [str(first.resolve())]
    assert [run.get("stage") for run in history(RunFolder(third))] == ["pretrain", "sft", "dpo"]
    assert history(RunFolder(third))[0]["data"]["sources"]["books"]["tokens"] == 5
    shutil.rmtree(first)
    assert history(RunFolder(third))[0]["path"] == str(first.resolve())


def test_the_hash_of_a_parent_is_that_of_its_weights() -> None:
    finished_run("one"), finished_run("two")
    hashes = [find_parent(name).lineage()["parent"]["sha256"] for name in ("one", "two")]
    assert hashes[0] == hashes[1]
    export(made(LLAMA, seed=7), Path("outputs/two/model"))
    assert find_parent("two").lineage()["parent"]["sha256"] != hashes[0]


PADDED = replace(LLAMA, vocab_size=128)
"""What a model without a stated vocabulary becomes with a tokenizer of 100 words."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped: checkpoints of two steps, the earlier of which is the best, and no model/."""
    folder = Path("outputs/stopped")
    cfg = config.compose(["init_from=null"])
    sizes = {key: getattr(LLAMA, key) for key in LLAMA.__dataclass_fields__} | {"vocab_size": None}
    node = {"_target_": "lifecycle.model.ModelConfig", **sizes}
    RunFolder(folder).write_config(config.resolved(cfg) | {"model": node})
    RunFolder(folder).update(status="stopped", stage="pretrain", parent=None, ancestors=[])
    (folder / "tokenizer").mkdir()
    monkeypatch.setattr(parent, "load", lambda place: Words())
    for step, seed in ((4, 4), (8, 8)):
        state = {f"model.{name}": value for name, value in made(PADDED, seed=seed).state_dict().items()}
        if step == 4:
            mark_best(folder / "checkpoints", step, 1.0)
        saved = {"state_dict": state, "global_step": step}
        CommittedCheckpointIO(async_save=False).save_checkpoint(saved, folder / f"checkpoints/step-{step:08d}")
    return folder


class Words:
    """Of a tokenizer, what a checkpoint's model wants to know."""

    vocab_size = 100


@pytest.mark.parametrize(("word", "step"), [("stopped@best", 4), ("outputs/stopped@8", 8), ("stopped@00000004", 4)])
def test_a_checkpoint_is_named_by_its_step_or_as_the_best(stopped: Path, word: str, step: int) -> None:
    found = find_parent(word)
    assert found.model == PADDED
    wanted = made(PADDED, seed=step).state_dict()
    assert found.weights.keys() == wanted.keys()
    assert all(torch.equal(found.weights[name], value) for name, value in wanted.items())
    lineage = found.lineage()["parent"]
    assert lineage["path"] == str(stopped.resolve()) and lineage["step"] == step


@pytest.mark.parametrize(("begun", "said"), [("0.5", True), ("1.0", True), ("2.0", False)])
def test_the_best_checkpoint_of_a_run_that_made_nothing_better_is_said_to_be_so(
    begun: str, said: bool, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say_once.begin_anew()
    (stopped / "metrics.csv").write_text(f"step,valid/loss\n0,{begun}\n4,1.0\n8,1.5\n")
    assert find_parent("stopped@best").lineage()["parent"]["step"] == 4
    words = capsys.readouterr().err
    assert ("no step of this run was better than the model that it began with" in words) == said
    assert ("this is step 4, the best that it has" in words) == said
    find_parent("stopped@8")
    assert capsys.readouterr().err == ""


def test_a_checkpoint_has_the_base_of_the_positions_that_its_phase_had(stopped: Path) -> None:
    saved = {"state_dict": {}, "global_step": 9, "stage": {"rope_theta": 5e4}}
    CommittedCheckpointIO(async_save=False).save_checkpoint(saved, stopped / "checkpoints/step-00000009")
    assert [find_parent(f"stopped@{step}").model.rope_theta for step in (8, 9)] == [LLAMA.rope_theta, 5e4]


def test_an_optimizer_in_shards_is_refused_with_what_to_type(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_parent("stopped@4")
    assert optimizer_checkpoint(found) == found.folder
    monkeypatch.setattr(inherit, "is_sharded", lambda path: True)
    with pytest.raises(UserError, match=r"saved by hardware.strategy=fsdp.*type stage.optimizer_state=fresh"):
        optimizer_checkpoint(found)


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(stopped: Path) -> None:
    for word in ("stopped@5", "stopped@last"):
        with pytest.raises(UserError, match=r"run outputs/stopped has stopped@4, stopped@8, stopped@best"):
            find_parent(word)
    with pytest.raises(UserError, match=r"no model/ yet \(it is stopped\).*stopped@4, stopped@8, stopped@best"):
        find_parent("stopped")


def test_a_gguf_file_brings_its_model_and_its_tokenizer(here: Path) -> None:
    tokens = [*"abcdefgh", "ab", "<|end|>"]
    head: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 9 + [3],
    }
    head |= {"tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 9}
    model = CONFIGS["qwen3"]
    Path("downloads").mkdir()
    write_gguf(Path("downloads/model.gguf"), head_of(model, "qwen3") | head, tensors_of(made(model), "qwen3"))
    for word in ("downloads", "downloads/model.gguf"):
        cfg = config.compose([f"init_from={word}"])
        found = adopted(cfg)
        assert found is not None and found.model.layers == model.layers
        cfg = settled(cfg, found)
        assert torch.equal(found.weights["norm.weight"], made(model).norm.weight)
        assert cfg.data.tokenizer == found.tokenizer and (Path(cfg.data.tokenizer) / "tokenizer.json").is_file()
        assert here in Path(cfg.data.tokenizer).parents


def test_a_hub_id_is_fetched_in_two_parts_of_one_commit(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(made(DEEPSEEK), here / "abc123")
    asked = []

    def fetch(name: str, *, allow_patterns: list[str], revision: str | None) -> str:
        asked.append((name, "*.safetensors" in allow_patterns, revision))
        return str(here / "abc123")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = find_parent("owner/model")
    assert found.model == DEEPSEEK and asked == [("owner/model", False, None)]
    assert torch.equal(found.weights["norm.weight"], made(DEEPSEEK).norm.weight)
    assert asked[1:] == [("owner/model", True, "abc123")]
    assert found.lineage()["parent"]["path"] == "owner/model"
    before = found.sha256()
    (here / "abc123/model.safetensors").unlink()  # not fetched yet, on another machine: it is the same commit
    assert found.sha256() == before != replace(found, commit="other").sha256()


def test_without_a_network_the_words_say_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        find_parent("owner/never-fetched")
    for words in ("init_from=owner/never-fetched", "not found on the Hugging Face hub", "hf download"):
        assert words in str(caught.value)


def test_an_adapter_alone_is_no_model(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="init_from=mine holds an adapter: name the run that trained it, or merge it"):
        find_parent("mine")


def test_generation_settings_that_cannot_be_read_are_named() -> None:
    folder = finished_run("demo")
    (folder / "model/generation_config.json").write_text('{"eos_token_id": 2,}')
    with pytest.raises(UserError, match=r"generation_config.json is not JSON: the comma before line 1, column 20"):
        find_parent("demo").generation  # noqa: B018


def test_an_adapter_whose_parent_is_gone_is_said_to_be_one() -> None:
    folder = Path("outputs/tuned")
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter/adapter_config.json").write_text("{}")
    written = {"adapter": yaml.safe_load((CONF / "adapter/lora.yaml").read_text())}
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    RunFolder(folder).update(status="finished", stage="sft", parent={"path": "outputs/gone", "sha256": "0"})
    with pytest.raises(
        UserError, match="the adapter of run outputs/tuned is .*: init_from=outputs/gone is neither a run"
    ):
        find_parent("tuned")


def test_a_parent_that_is_nowhere_is_answered_with_those_that_are() -> None:
    with pytest.raises(UserError, match="there is no finished run under outputs/ here"):
        find_parent("nowhere")
    finished_run("demo")
    for word in ("nowhere", "outputs/dmeo", "./dmeo", "folder/of/mine"):
        with pytest.raises(UserError, match="finished runs here: demo"):
            find_parent(word)
    Path("outputs/tuned/adapter").mkdir(parents=True)
    Path("outputs/tuned/adapter/adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="finished runs here: demo, tuned$"):
        find_parent("nowhere")


def test_the_parents_own_architecture_may_be_named_beside_it(here: Path) -> None:
    (here / "mine/model").mkdir(parents=True)
    stated = {key: value for key, value in asdict(LLAMA).items() if value is not None}
    text = yaml.safe_dump({"_target_": "lifecycle.model.ModelConfig", **stated, "vocab_size": 50_304})
    (here / "mine/model/mine.yaml").write_text(text)
    finished_run("demo")
    found = adopted(config.compose(["init_from=demo", "model=mine"], config_dirs=[here / "mine"]))
    assert found is not None and found.model == LLAMA  # how many tokens it has is the tokenizer's


def test_a_model_that_is_not_the_parents_is_refused() -> None:
    finished_run("demo")
    with pytest.raises(UserError, match=r"but model.layers=4 asks for another"):
        adopted(config.compose(["init_from=demo", "model.layers=4"]))
    with pytest.raises(UserError, match=r"but data.tokenizer.vocab_size=300 asks for another"):
        adopted(config.compose(["init_from=demo", "data.tokenizer.vocab_size=300"]))
    assert json.loads(Path("outputs/demo/run.json").read_text())["status"] == "finished"
