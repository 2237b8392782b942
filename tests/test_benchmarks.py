"""The benchmarks' command lines, and the items for a GPU at toy size."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import __main__ as every
from benchmarks import common, gpu, gpu_finetune, gpu_shapes, gpu_train
from benchmarks import gpu_finetune_peers as peers
from benchmarks.common import merge
from benchmarks.gpu_sizes import TOY

ROOT = Path(__file__).parents[1]
FINETUNE = [item.name for item in gpu.chosen(["finetune"])]


def test_rounds_are_merged_into_medians_and_the_widest_spread() -> None:
    rounds = [
        {"rate": {"median": 10.0, "min": 8.0, "max": 11.0}, "peak_rss_mb": 100},
        {"rate": {"median": 14.0, "min": 9.0, "max": 15.0}, "peak_rss_mb": 120},
        {"rate": {"median": 11.0, "min": 7.0, "max": 12.0}, "peak_rss_mb": 90},
    ]
    assert merge(rounds) == {"rate": {"median": 11.0, "min": 7.0, "max": 15.0}, "peak_rss_mb": 100}


def test_one_failed_round_is_a_failure() -> None:
    assert merge([{"peak_rss_mb": 100}, {"error": "killed"}]) == {"error": "killed"}
    assert merge([{"error": "killed"}]) == {"error": "killed"}


def test_one_round_stays_as_it_is() -> None:
    assert merge([{"note": "text", "peak_rss_mb": 100}]) == {"note": "text", "peak_rss_mb": 100}


def test_what_an_item_measured_before_it_failed_is_kept_with_the_end_of_its_traceback() -> None:
    said = "\n".join(['RESULT {"a": 1}', "noise", *[f"line {n}" for n in range(20)], 'RESULT {"b": 2}', "OSError: no"])
    found = gpu._read(said, "failed")
    assert found["measured"] == {"a": 1, "b": 2}
    assert found["error"].splitlines() == [*[f"line {n}" for n in range(9, 20)], "OSError: no"]
    assert gpu._read('RESULT {"skipped": "no such package"}', "ok")["status"] == "skipped"
    assert "OSError: no" in gpu._line("train", found) and "a 1  b 2" in gpu._line("train", found)


def test_the_shares_of_a_step_are_those_of_its_kernels_and_of_nothing_twice() -> None:
    micro = {"wall": 10.0, "attention": 2.0, "products": 5.0, "pointwise": 1.0}
    head = {"wall": 3.0, "attention": 0.0, "products": 2.0, "pointwise": 0.5}
    optimizer = {"wall": 5.0, "attention": 0.0, "products": 0.0, "pointwise": 4.0}
    found = gpu_train.shares({"micro": micro, "head": head, "optimizer": optimizer}, 2)
    wanted = {"attention": 4, "products": 6, "pointwise": 1, "head": 5, "optimizer": 4, "idle": 5}  # of 25 ms
    assert found == {kind: pytest.approx(taken / 25) for kind, taken in wanted.items()}
    assert [
        gpu_train.kind_of(name) for name in ("flash_fwd_kernel", "nvjet_tst_128x256", "triton_poi_fused_add_0")
    ] == [
        "attention",
        "products",
        "pointwise",
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # of peft's reading of a model's config
@pytest.mark.parametrize(
    "name",
    [
        *"train_64k train_128k train_hf_64k checkpoint".split(),
        *"decode decode_shares decode_moe decode_latent experts decode_hf".split(),
        *FINETUNE[:2],
        *FINETUNE[3:],
        "grpo_step",
        "sizes_small",
        "sizes_qwen2_moe",
        "sizes_deepseek_v2",
    ],
)
def test_items_for_a_gpu_run_at_toy_size(name: str) -> None:
    item = next(item for item in gpu.ITEMS if item.name == name)
    measure = getattr(importlib.import_module(f"benchmarks.{item.module}"), item.function)
    found: dict[str, Any] = {}
    for part in measure(TOY, *item.arguments):
        found |= part
    assert found and "skipped" not in found


def test_other_losses_than_ours_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(TOY.config(), init_std=gpu_finetune.SPREAD)
    inputs = gpu_finetune.made_inputs(TOY, shape, pairs=False)
    ours = gpu_finetune.ours(TOY, shape, "sft", inputs)["first_loss"]
    assert peers.Loop(TOY, shape, "sft", inputs).first_loss() == pytest.approx(ours, rel=1e-5)
    seen = torch.ones(TOY.row, TOY.row, dtype=torch.bool).tril()[None, None]  # by conversations of one another
    monkeypatch.setattr(
        peers, "DocumentMask", SimpleNamespace(from_ids=lambda *_, **__: SimpleNamespace(mask_B1TT=seen))
    )
    with pytest.raises(RuntimeError, match="not the same step"):
        list(gpu_finetune.finetune(TOY, "sft", None))


def test_a_group_of_items_is_named_by_its_beginning() -> None:
    assert [item.name for item in gpu.chosen(["finetune", "decode"])] == ["decode", *FINETUNE]
    assert gpu.chosen([]) == list(gpu.ITEMS) and len(FINETUNE) == 5
    named = [item.name.removeprefix("sizes_") for item in gpu.chosen(["sizes"])]
    assert sorted(named) == sorted(gpu_shapes.SHAPES)
    with pytest.raises(SystemExit, match="there is no item decod;"):
        gpu.chosen(["decod"])


def test_all_benchmarks_of_a_cpu_are_run_by_the_command_that_runs_them_all() -> None:
    files = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    assert sorted(every.NAMES) == sorted(name for name, code in files.items() if f'main("benchmarks.{name}"' in code)


def test_a_run_of_some_variants_writes_where_it_is_told_and_ours_that_fail_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"ours_good": {"rate": 3.0}, "ours_bad": {"error": "killed"}, "peers_bad": {"error": "no such package"}}
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "_isolated", lambda python, module, name, runs: found[name])
    variants = {name: name.partition("_")[0] for name in found}

    def run(*given: str) -> None:
        monkeypatch.setattr(sys, "argv", ["x", *given])
        common.main("benchmarks.x", variants, lambda name, runs: {}, "")

    run("--only", "ours_good,peers_bad")
    assert not any(tmp_path.iterdir())
    run("--only", "ours_good", "--json", str(tmp_path / "part.json"))
    assert json.loads((tmp_path / "part.json").read_text())["variants"] == {"ours_good": {"rate": 3.0}}
    with pytest.raises(SystemExit, match="failed: ours_bad$"):
        run()
    assert json.loads((tmp_path / "x.json").read_text())["variants"] == found
    with pytest.raises(SystemExit):
        run("--only", "ours_god")
    assert "there is no variant ours_god; there are ours_good, ours_bad, peers_bad" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quality_of_a_small_corpus_is_measured(tmp_path: Path) -> None:
    steps = ("filters", "language", "decontaminate", "near_duplicates")
    command = [sys.executable, "-m", "benchmarks.quality", "--only", ",".join(f"{step}_1x" for step in steps)]
    environment = os.environ | {"BENCHMARK_CACHE": str(tmp_path / "cache"), "BENCHMARK_DOCUMENTS": "600"}
    subprocess.run([*command, "--json", str(tmp_path / "x.json")], cwd=ROOT, env=environment, check=True)
    variants = json.loads((tmp_path / "x.json").read_text())["variants"]
    left_out = {step: variants[f"{step}_1x"]["found"]["median"] for step in steps}
    assert left_out["filters"] == 0 and left_out["decontaminate"] == 1 and left_out["near_duplicates"] == 60


def test_the_command_leaves_a_table_and_a_file_also_when_its_time_runs_out(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--only", "train_64k,decode", "--budget", "11"]
    environment = os.environ | {"PYTHONPATH": "src:."}
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "x.json")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    found = json.loads((tmp_path / "x.json").read_text())["items"]
    assert found["train_64k"]["status"] in ("ok", "killed") and found["decode"]["status"] in ("killed", "no time")
    assert done.stdout.count("\ndecode ") == 2  # as it ended, and in the table


def test_another_version_of_the_code_is_measured_beside_this_one(tmp_path: Path) -> None:
    other = tmp_path / "old/src"
    shutil.copytree(ROOT / "src", other, ignore=shutil.ignore_patterns("__pycache__"))
    engine = other / "lifecycle/rollout/__init__.py"
    engine.write_text(engine.read_text() + "raise RuntimeError('this is the other one')\n")
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--only", "decode", "--beside", str(other)]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "x.json")], cwd=ROOT, env=os.environ | {"PYTHONPATH": "src:."}
    )
    found = json.loads((tmp_path / "x.json").read_text())["items"]
    assert done.returncode == 1 and list(found) == [f"decode ({other})", "decode"]
    assert "this is the other one" in found[f"decode ({other})"]["error"]
    assert found["decode"]["status"] == "ok" and set(found["decode"]["measured"]["4"]) >= {"first_s", "graphs"}
    with pytest.raises(SystemExit, match="has no folder lifecycle"):
        gpu.sources(tmp_path)


@pytest.mark.slow
def test_every_item_for_a_gpu_rehearses(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--budget", "900", "--json", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": "src:."}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert set(json.loads((tmp_path / "x").read_text())["items"]) == {item.name for item in gpu.ITEMS}


def test_training_and_its_benchmarks_need_neither_wandb_nor_this_packages_own_metadata() -> None:
    code = (
        "import sys, importlib.metadata as m; sys.modules['wandb'] = None; real = m.version\n"
        "def version(name):\n    if name == 'lifecycle': raise m.PackageNotFoundError(name)\n    return real(name)\n"
        "m.version = version\n"
        "import lifecycle.run, benchmarks.gpu, benchmarks.gpu_train, benchmarks.gpu_decode, benchmarks.gpu_finetune, "
        "benchmarks.gpu_grpo, benchmarks.gpu_shapes, "
        "benchmarks.gpu_runs"
    )
    environment = os.environ | {"PYTHONPATH": "src:."}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
