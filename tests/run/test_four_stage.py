"""The four-stage recipe: the numbers it states, and its test form from the first command to the last."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lifecycle import config
from lifecycle.loggers import read_metrics
from lifecycle.report.comparison import compare
from lifecycle.run import run
from lifecycle.tokenizer.tokenizer import load

STAGES = ("1_wikipedia", "2_reasoning", "3_mathematics", "4_code")
DOMAINS = ("prose", "reasoning", "mathematics", "code")


def recipe(name: str) -> DictConfig:
    return config.compose([f"experiment=four_stage/{name}"])


def ledger(folder: Path) -> dict[str, dict[str, float]]:
    sources: dict[str, dict[str, float]] = json.loads((folder / "ledger.json").read_text())["sources"]
    return sources


def phases(cfg: DictConfig, *keys: str) -> list[tuple[float, ...]]:
    return [tuple(line[key] for key in keys) for line in cfg.stage.phases]


@pytest.mark.parametrize(
    ("name", "stage", "passes", "short", "lr", "decay"),
    [
        ("1_wikipedia", "Pretrain", 15, 5, 6e-4, 0.1),
        ("2_reasoning", "Midtrain", 20, 10, 1e-4, 0.1),
        ("3_mathematics", "Midtrain", 30, 20, 5e-5, 0.01),
        ("4_code", "Midtrain", 10, 10, 2e-5, 0.001),
    ],
)
def test_each_stage_is_what_the_recipe_says(
    name: str, stage: str, passes: int, short: int, lr: float, decay: float
) -> None:
    cfg = recipe(name)
    assert cfg.stage._target_.endswith(stage)
    assert (cfg.stage.max_epochs, cfg.stage.max_tokens, cfg.stage.max_steps) == (passes, None, None)
    assert (cfg.stage.optimizer.lr, cfg.stage.optimizer.weight_decay) == (lr, decay)
    assert recipe(f"short/{name}").stage == {**cfg.stage, "max_epochs": short}
    if stage == "Midtrain":
        assert (cfg.stage.replay.share, cfg.stage.replay.ancestors) == (0.1, "all")


@pytest.mark.parametrize("form", ["", "short/", "test/"])
def test_each_stage_starts_from_the_one_before(form: str) -> None:
    runs = [recipe(form + name) for name in STAGES]
    assert [cfg.init_from for cfg in runs] == [None, *(cfg.run for cfg in runs[:-1])]


def test_rows_of_the_first_stage_grow_within_its_first_pass() -> None:
    cfg = recipe("1_wikipedia")
    assert [line.sequence_length for line in cfg.stage.phases] == [64, 128, 256, 512, 1024, 2048]
    assert cfg.stage.phases[-1].at_tokens < cfg.data.sources.wikipedia.tokens == 960_000_000


def test_rows_and_rates_of_the_second_stage() -> None:
    cfg = recipe("2_reasoning")
    lengths, rows, rates = (1024, 2048, 3072, 4096), (16, 8, 5, 4), (1.0, 0.8, 0.6, 0.5)
    wanted = list(zip((0, 5_000, 10_000, 20_000), lengths, (8 * r for r in rows), rates, strict=True))
    assert phases(cfg, "at_steps", "sequence_length", "rows", "rate") == wanted
    assert cfg.hardware.activation_checkpointing
    assert [cfg.hardware.micro_batch_tokens // length for length in lengths] == list(rows)  # so eight at a time


def test_the_third_stage_brings_tokens_and_looks_often() -> None:
    cfg = recipe("3_mathematics")
    assert set(cfg.stage.new_tokens) == {
        f"<{end}{name}>" for end in ("", "/") for name in ("step", "calculation", "think")
    }
    assert cfg.validation.every_steps == 500
    assert set(cfg.data.sources) == {"gsm8k", "competition_math", "khan_academy"}


def test_interleaved_begins_with_three_passes_and_goes_on_with_all() -> None:
    cfg = recipe("interleaved")
    first, then = cfg.stage.phases
    assert first.weights == {"wikipedia": 1.0} and then.at_tokens == 3 * cfg.data.sources.wikipedia.tokens
    assert dict(then.weights) == {name: source.weight for name, source in cfg.data.sources.items()}
    shares: dict[str, float] = {}
    for name, source in cfg.data.sources.items():
        domain = source.get("domain") or name
        shares[domain] = shares.get(domain, 0) + source.weight
    assert shares == pytest.approx({"wikipedia": 0.4, "reasoning": 0.3, "mathematics": 0.2, "code": 0.1})


@pytest.mark.parametrize("data", ["default", "test"])
def test_the_default_mixture_is_thirty_forty_thirty(data: str) -> None:
    cfg = config.compose(["stage=midtrain", f"data=midtrain/{data}"])
    weights = {name: source.weight for name, source in cfg.data.sources.items()}
    replay = cfg.stage.replay.share
    code = sum(w for name, w in weights.items() if name != "thoughts") / sum(weights.values()) * (1 - replay)
    assert (replay, code) == (0.3, pytest.approx(0.4))
    assert all(source.get("max_rows") == (1000 if data == "test" else None) for source in cfg.data.sources.values())


def test_what_is_typed_wins_over_what_a_mixture_asks_for() -> None:
    words = ["stage=midtrain", "data=midtrain/code_heavy"]
    assert (config.compose(words).stage.peak_ratio, config.compose(words).stage.replay.share) == (0.4, 0.2)
    assert config.compose([*words, "stage.replay.share=0.5"]).stage.replay.share == 0.5
    assert "replay" not in config.compose(["data=midtrain/code_heavy"]).stage


@pytest.mark.slow
def test_the_test_form_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(STAGES):
        run(config.compose([f"experiment=four_stage/test/{name}", "logger=csv", "callbacks.progress=false"]))
        folder = tmp_path / "outputs" / f"four_stage_test_{name}"
        told = json.loads((folder / "run.json").read_text())
        assert told["status"] == "finished" and len(told["ancestors"]) == max(0, number - 1)
        rows = read_metrics(folder / "metrics.csv")
        measured = {column.split("/")[1] for column in rows if column.endswith("/perplexity")}
        assert measured == set(DOMAINS)  # what came before, and what is still to come
        trained = {source.removeprefix("replay.") for source, row in ledger(folder).items() if row["seen_tokens"]}
        assert len(trained) == (1 if not number else 1 + number)
        losses = [loss for loss in rows[f"valid/{DOMAINS[number]}/loss"] if loss is not None]
        assert losses[-1] < losses[0]
        if number:
            seen = {source: row["seen_tokens"] for source, row in ledger(folder).items()}
            again = sum(tokens for source, tokens in seen.items() if source.startswith("replay"))
            assert again / sum(seen.values()) == pytest.approx(0.1, abs=0.02)
    folders = [tmp_path / "outputs" / f"four_stage_test_{name}" for name in STAGES]
    compared = compare(folders)
    assert [row.name for row in compared] == [folder.name for folder in folders]
    assert all(set(row.held_out) == set(DOMAINS) for row in compared)
    ids = load(str(folder)).encode_batch(["<think><step><calculation>"])[0]
    assert len(ids) == 3


@pytest.mark.slow
def test_interleaved_runs_in_its_test_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(config.compose(["experiment=four_stage/test/interleaved", "logger=csv", "callbacks.progress=false"]))
    told = json.loads((tmp_path / "outputs/four_stage_test_interleaved/ledger.json").read_text())
    shares = {name: row["seen_tokens"] / told["tokens"] for name, row in told["sources"].items()}
    assert shares == pytest.approx(
        {"prose": 0.25 + 0.75 * 0.4, "thoughts": 0.225, "sums": 0.15, "code": 0.075}, abs=0.03
    )
