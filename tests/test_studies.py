"""The study of reinforcement learning: its runs can be composed, and its table says what their answers say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from lifecycle import config

STUDIES = Path(__file__).parents[1] / "benchmarks" / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("reinforcement")


def test_every_run_composes_and_methods_draw_the_same_number_of_samples(study: Any) -> None:
    drawn = {}
    for kind in {name.rsplit("_s", 1)[0] for name in study.runs()}:
        cfg = config.compose([*study.arguments(kind, 42), "init_from=parent"])
        stage = cfg.stage
        if "samples_per_prompt" in stage:
            drawn[kind] = stage.max_steps * stage.prompts_per_step * stage.samples_per_prompt
        elif "chosen_per_step" in stage:
            rows = cfg.data.sources.expressions.max_rows
            drawn[kind] = rows * stage.start_samples + stage.max_steps * stage.chosen_per_step
    assert drawn.pop("grpo") == study.STEPS * 256
    assert set(drawn) == {"shuffled", "grpo_short", "rloo", "ppo", "spo"} and set(drawn.values()) == {25_600}


def test_a_gain_is_of_the_same_questions_and_the_best_measurement_is_named(study: Any, tmp_path: Path) -> None:
    results = importlib.import_module("reinforcement_results")
    for kind, right in (("grpo", ("0011", "0111", "1111")), ("continued", ("0011", "1011", "0001"))):
        run = tmp_path / f"{kind}_s7"
        run.mkdir()
        (run / "run.json").write_text(json.dumps({"status": "finished"}))
        (tmp_path / f"{kind}_s7.cpu.json").write_text("12.5")
        lines = [
            {"step": 10 * step, "domain": domain, "prompt": f"{n}", "right": mark == "1"}
            for step, marks in enumerate(right)
            for n, mark in enumerate(marks)
            for domain in ("expressions", *(["asked"] if mark == "0" else []))
        ]
        (run / "answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = results.found(tmp_path)
    assert found["grpo"]["7"]["right"] == {0: 0.5, 10: 0.75, 20: 1.0} and found["grpo"]["7"]["gain"][0] == 0.5
    assert found["continued"]["7"]["best_step"] == 10 and found["continued"]["7"]["gain"][0] == -0.25
    assert found["grpo"]["7"]["above_continued"][0] == 0.25
    assert "| GRPO | 7 | 20 | 12 | 50.0% | 100.0% | +50.0" in results.table(found)
    assert results.picture(found).startswith(b"\x89PNG")
