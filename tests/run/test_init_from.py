"""A run that starts from another one, end to end: weights, tokenizer, lineage, model card; and its resumption."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from tests.run.cli import assert_same_run, cut_back, facts, lifecycle, step_folder

from lifecycle.checkpoint import read_best


def test_a_run_goes_on_from_any_checkpoint_of_another_and_is_resumed_without_it(place: Path, whole: Path) -> None:
    best = read_best(whole / "checkpoints")
    assert best is not None
    small = ("stage.max_steps=4", "checkpoint.every_steps=2", "validation.every_steps=4")
    for word in ("whole", "whole@best", "whole@16"):
        lifecycle(place, f"run=from-{word.replace('@', '-')}", f"init_from={word}", *small, "stage.optimizer.lr=1e-30")
        step = {"whole": 40, "whole@best": best["step"], "whole@16": 16}[word]
        run = place / "outputs" / f"from-{word.replace('@', '-')}"
        assert facts(run)["parent"]["path"] == str(whole)
        assert facts(run)["parent"].get("step") == (None if word == "whole" else step)
        begun = load_file(step_folder(whole, step) / "weights.safetensors")["model.embedding.weight"]
        ended = load_file(run / "model/model.safetensors")["model.embed_tokens.weight"]
        torch.testing.assert_close(ended, begun, rtol=0, atol=1e-20)
        assert facts(run)["tokenizer"] == facts(whole)["tokenizer"]
        assert facts(run)["parent"]["data_fingerprint"] == facts(whole)["data"]["fingerprint"]
    card = (place / "outputs/from-whole-16/model/README.md").read_text()
    assert "| 1. pretrain | long |" in card and "| 2. pretrain | long |" in card


def test_a_resumed_run_does_not_read_its_parents_weights_again(place: Path, whole: Path) -> None:
    words = ("init_from=parent", "stage.max_steps=6", "checkpoint.every_steps=2", "validation.every_steps=6")
    shutil.copytree(whole, place / "outputs/parent")
    lifecycle(place, "run=child", *words)
    cut_back(place / "outputs/child", place / "outputs/resumed", 2)
    (place / "outputs/parent/model/model.safetensors").unlink()
    lifecycle(place, "run=resumed", *words)
    assert_same_run(place / "outputs/resumed", place / "outputs/child")
    assert facts(place / "outputs/resumed")["resumed"] == 1
    assert facts(place / "outputs/resumed")["parent"] == facts(place / "outputs/child")["parent"]
    done = lifecycle(place, "run=dry", *words, "dry_run=true")
    assert "parameters" in done.out + done.err
