"""A run as a function: of its config alone, with a result, any number of them in one process, as a notebook does."""

import gc
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lifecycle import config
from lifecycle.callbacks.saving import SaveOnEvents
from lifecycle.errors import Terminated, UserError
from lifecycle.model.huggingface import load_pretrained
from lifecycle.run import run
from lifecycle.system.ranks import LAUNCH

TOY = [
    *("data=files", "data.sources.mine.path=texts.jsonl", "data.shuffle_buffer=50", "logger=csv"),
    "data.tokenizer={vocab_size: 300, digits: 1, max_bytes: 50000}",
    *(
        "model.layers=1",
        "model.width=16",
        "model.heads=1",
        "model.kv_heads=1",
        "model.head_dim=16",
        "model.ffn_width=32",
    ),
    *("stage.max_steps=4", "stage.global_batch_tokens=256", "stage.sequence_length=64", "hardware.workers=0"),
    *("hardware.compile=false", "hardware.peak_tflops=1", "validation.every_steps=2", "validation.tokens=500"),
    *("checkpoint.every_steps=2", "callbacks.progress=false"),
]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("lifecycle.runs.results.write_report", lambda folder: None)
    rows = [json.dumps({"text": f"row {number} of a file " * 9}) for number in range(300)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    return tmp_path


def composed(*words: str) -> DictConfig:
    """A config, and nothing of Hydra left in the process."""
    cfg = config.compose([*TOY, *words])
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    return cfg


def told(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def test_runs_one_after_the_other_in_one_process_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    words = (["run=first", "seed=1"], ["run=second", "seed=2", "optimizer=muon"], ["run=third", "seed=1"])
    first, second, third = (run(cfg) for cfg in [composed(*one) for one in words])  # composed before any has run
    for result, given in zip((first, second, third), words, strict=True):
        assert result.status == told(result.folder)["status"] == "finished"
        assert result.folder == Path("outputs", given[0].removeprefix("run=")).resolve()
        assert (
            sorted(told(result.folder)["overrides"]) == sorted([*TOY, *given])
            and told(result.folder)["stage"] == "pretrain"
        )
        assert result.metrics["step"] == 4 and result.result == {"valid/loss": result.metrics["valid/loss"], "step": 4}
    assert capsys.readouterr().err.count("data.sources.mine: 1 file read") == 3  # each says what it reads
    assert first.metrics["train/loss"] == third.metrics["train/loss"] != second.metrics["train/loss"]


def test_what_a_notebook_does_with_a_run() -> None:
    cfg = composed("run=mine")
    given, handlers = config.resolved(cfg), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    result = run(cfg)
    assert config.resolved(cfg) == given  # the cell may be run again
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert result.model is not None and load_pretrained(result.model)[0].layers == 1
    before = (result.folder / "run.json").read_bytes()
    assert run(cfg) == run(composed("run=mine")) == result  # it is finished, and says so again
    read = OmegaConf.load(result.folder / "config.yaml")
    assert isinstance(read, DictConfig) and run(read) == result  # a config.yaml is a config
    assert (result.folder / "run.json").read_bytes() == before
    cfg.stage.max_steps = 6
    longer = run(cfg)
    assert longer.status == "finished" and longer.metrics["step"] == 6 and told(longer.folder)["resumed"] == 1
    words = ["stage=generate", "init_from=mine", "stage.prompt=row", "stage.max_new_tokens=2", "run=said"]
    done = run(config.compose(words))
    assert done.status == "finished" and done.model is None and done.result["completions"] == 1


def test_data_of_no_use_to_a_stage_is_refused_before_a_hub_is_asked() -> None:
    run(composed("run=mine"))
    with pytest.raises(UserError, match=r"view 'preference', but data.sources.medqa \(format 'multiple_choice'\)"):
        run(config.compose(["stage=dpo", "data=usmle", "init_from=mine", "run=pairs", "stage.sequence_length=16"]))
    assert not Path("outputs/pairs").exists()


def test_a_dry_run_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    planned = run(composed("run=mine", "dry_run=true"))
    assert planned.status == "planned" and planned.model is None and not planned.metrics
    assert not planned.folder.exists() and "parameters" in capsys.readouterr().out


def test_threads_run_what_the_main_thread_does_each_for_itself() -> None:
    """A notebook's server, or a pipeline, does not call from the main thread, which alone may handle signals."""
    chats = [{"role": "user", "content": "row?"}, {"role": "assistant", "content": "yes"}]
    Path("chats.jsonl").write_text("\n".join(json.dumps({"messages": chats, "id": n}) for n in range(300)))
    words = ["data.sources.mine.path=chats.jsonl", "data.sources.mine.format=messages", "stage.view=chat"]
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda name: run(config.compose([*TOY, *words, f"run={name}"])), ("one", "two")))
    alone = run(composed(*words, "run=alone"))
    for result in both:
        assert result.status == "finished" and result.metrics["train/loss"] == alone.metrics["train/loss"]
        ledger = json.loads((result.folder / "ledger.json").read_text())
        assert ledger["sources"]["mine"] == json.loads((alone.folder / "ledger.json").read_text())["sources"]["mine"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_the_process_is_as_it_was_after_a_run_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: SaveOnEvents, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("of a callback")

    monkeypatch.setattr(SaveOnEvents, "on_train_batch_end", fail)
    frozen = gc.get_freeze_count()
    with pytest.raises(RuntimeError, match="of a callback"):
        run(composed("run=mine", "deterministic=true"))
    assert gc.isenabled() and gc.get_freeze_count() <= frozen
    assert not torch.are_deterministic_algorithms_enabled()
    assert LAUNCH not in os.environ  # or ranks that torchrun starts from here would look for this process, and end


def test_a_signal_in_training_gives_a_result_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, start = SaveOnEvents.on_train_batch_start, SaveOnEvents.on_train_start

    def met(self: SaveOnEvents, trainer: Any, stage: Any, *args: Any) -> None:
        plain(self, trainer, stage, *args)
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SaveOnEvents, "on_train_batch_start", met)
    stopped = run(composed("run=mine"))
    assert (stopped.status, stopped.metrics["step"], stopped.model) == ("stopped", 2, None)
    assert told(stopped.folder)["status"] == "stopped" and not (stopped.folder / ".lock").exists()
    monkeypatch.setattr(SaveOnEvents, "on_train_batch_start", plain)
    assert SaveOnEvents.on_train_start is start
    again = run(composed("run=mine"))
    assert again.status == "finished"
    assert again.metrics["train/loss"] == run(composed("run=whole")).metrics["train/loss"]


def test_a_signal_before_training_is_an_exception_and_leaves_the_folder_free(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("lifecycle.run.load_data", lambda plan: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated):
        run(composed("run=mine"))
    assert signal.getsignal(signal.SIGTERM) == before and not Path("outputs/mine/.lock").exists()


def test_how_a_config_was_composed_is_no_key_for_users() -> None:
    with pytest.raises(UserError, match="command is said by the command itself"):
        composed("command.folder=elsewhere")
    assert "command" not in config.resolved(composed("run=mine"))
