import inspect
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lifecycle.errors import UserError
from lifecycle.loggers import read_metrics, tensorboard, wandb
from lifecycle.loggers.csv_logger import CsvLogger

LOGGERS = Path(__file__).parents[1] / "conf" / "logger"


def held(folder: Path) -> CsvLogger:
    """A logger that writes when told, not by the clock."""
    return CsvLogger(folder=folder, flush_rows=10**9, flush_seconds=1e9)


def test_every_number_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    draw = random.Random(0)
    values = [draw.uniform(-1e9, 1e9) * 10 ** draw.randint(-300, 200) for _ in range(200)]
    logger = held(tmp_path)
    for step, value in enumerate(values):
        logger.log_metrics({"train/loss": value}, step)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv")["train/loss"] == values


def test_values_that_are_not_finite_survive(tmp_path: Path) -> None:
    logger = held(tmp_path)
    logger.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf}, 1)
    logger.save()
    row = read_metrics(tmp_path / "metrics.csv")
    assert math.isnan(row["a"][0])  # type: ignore[arg-type]
    assert (row["b"], row["c"]) == ([math.inf], [-math.inf])


def test_columns_are_step_tokens_then_names_in_order_of_appearance(tmp_path: Path) -> None:
    logger = held(tmp_path)
    logger.log_metrics({"train/loss": 1.0, "train/tokens": 10.0, "epoch": 0}, 1)
    logger.log_metrics({"a/first": 2.0}, 2)
    logger.save()
    assert (tmp_path / "metrics.csv").read_text() == "step,tokens,train/loss,a/first\n1,10.0,1.0,\n2,,,2.0\n"


def test_metrics_of_one_step_make_one_row_also_after_it_was_written(tmp_path: Path) -> None:
    logger = held(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 5)
    logger.log_metrics({"train/lr": 0.1}, 5)
    logger.save()
    logger.log_metrics({"valid/loss": 2.0, "train/lr": 0.2}, 5)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv") == {
        "step": [5], "tokens": [None], "train/loss": [1.0], "train/lr": [0.2], "valid/loss": [2.0]
    }  # fmt: skip


def test_a_tensor_on_the_host_is_a_number(tmp_path: Path) -> None:
    logger = held(tmp_path)
    logger.log_metrics({"a": torch.tensor(0.5, dtype=torch.float64)}, 0)
    logger.save()
    assert read_metrics(tmp_path / "metrics.csv")["a"] == [0.5]


def test_a_resumed_run_leaves_the_file_of_the_uninterrupted_one(tmp_path: Path) -> None:
    def log(logger: CsvLogger, steps: range) -> None:
        for step in steps:
            row = {"train/loss": 1 / step, "train/tokens": step * 8.0} | ({"valid/loss": step} if step % 3 == 0 else {})
            logger.log_metrics(row, step)

    whole, parts = held(tmp_path / "whole"), held(tmp_path / "parts")
    log(whole, range(1, 11))
    whole.finalize("success")
    log(parts, range(1, 9))
    parts.save()
    again = held(tmp_path / "parts")
    again.cut(4)
    log(again, range(5, 11))
    again.finalize("success")
    assert (tmp_path / "parts/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


@pytest.mark.parametrize("lost", range(1, 12))
def test_a_half_written_last_line_is_dropped(tmp_path: Path, lost: int) -> None:
    logger = held(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 0.125}, step)
    logger.save()
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[:-lost])
    steps = read_metrics(path)["step"]
    assert steps == ([1, 2] if lost < 10 else [1])
    again = held(tmp_path)
    again.log_metrics({"train/loss": 0.125}, 4)
    again.save()
    assert read_metrics(path)["step"] == [*steps, 4]
    assert read_metrics(path)["train/loss"] == [0.125] * (len(steps) + 1)


def test_cutting_before_the_first_step_keeps_only_the_head(tmp_path: Path) -> None:
    logger = held(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.save()
    logger.cut(0)
    assert read_metrics(tmp_path / "metrics.csv")["step"] == []


def test_rows_are_held_back_until_enough_have_come(tmp_path: Path) -> None:
    logger = CsvLogger(folder=tmp_path, flush_rows=3, flush_seconds=1e9)
    for step in (1, 2):
        logger.log_metrics({"a": 1}, step)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"a": 1}, 3)
    assert read_metrics(tmp_path / "metrics.csv")["step"] == [1, 2]  # the newest row may still grow


def test_a_metric_without_a_step_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs step="):
        held(tmp_path).log_metrics({"a": 1.0})


def test_no_file_has_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") == {}


def test_tensorboard_writes_into_the_runs_folder(tmp_path: Path) -> None:
    logger = tensorboard(folder=tmp_path)
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.finalize("success")
    assert list((tmp_path / "tensorboard").glob("events.out.*"))


def test_wandb_knows_a_run_by_its_folder(tmp_path: Path) -> None:
    def identity(name: str) -> str | None:
        folder = tmp_path / name
        return wandb(folder=folder, project="p", entity=None, offline=True, tags=["a"], notes=None).version

    assert identity("one") == identity("one")
    assert identity("one") != identity("two")


def test_wandb_without_a_login_is_refused_with_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    online: dict[str, Any] = {"folder": tmp_path, "project": "p", "entity": None, "tags": [], "notes": None}
    with pytest.raises(UserError, match="no login at Weights & Biases .*type `wandb login`.*logger.offline=true"):
        wandb(offline=False, **online)
    monkeypatch.setattr("wandb.login", lambda: False)
    with pytest.raises(UserError, match="no login at Weights & Biases; type `wandb login`"):
        wandb(offline=False, **online)
    monkeypatch.setattr("wandb.login", lambda: pytest.fail("asked"))
    wandb(offline=True, **online)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb(offline=False, **online)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr("wandb.login", lambda: True)
    wandb(offline=False, **online)


@pytest.mark.parametrize(("name", "function"), [("tensorboard", tensorboard), ("wandb", wandb)])
def test_every_logger_config_names_the_arguments_of_its_function(name: str, function: Callable[..., Any]) -> None:
    node = yaml.safe_load((LOGGERS / f"{name}.yaml").read_text())
    assert node.pop("_target_") == f"lifecycle.loggers.{name}"
    assert {"folder", *node} == set(inspect.signature(function).parameters)
