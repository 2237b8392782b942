"""A stage that adds to its parent's vocabulary, end to end: trained, killed in between, exported, and gone on from."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.run.cli import assert_same_run, facts, lifecycle, make_texts, step_folder, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from lifecycle.lineage.run_folder import RunFolder
from lifecycle.tokenizer.tokenizer import load

MORE = ("stage.new_tokens=['<think>','</think>']", "stage.split_digits=true")
MID = (
    "stage=midtrain",
    "data=thoughts",
    "stage.max_steps=8",
    "checkpoint.every_steps=4",
    "stage.optimizer.lr=1e-3",
    "validation.every_steps=8",
)


@pytest.fixture(scope="module")
def grown(place: Path, whole: Path) -> Path:
    """A run with two more tokens and its digits apart."""
    texts = [f"<think>{text}</think> 1234" for text in make_texts("thoughts", 300, 80)]
    write_rows(place / "thoughts.jsonl", texts)
    source = {"path": "thoughts.jsonl", "validation": {"ratio": 0.1, "seed": 1}}
    node = {"defaults": ["_engine", "_self_"], "tokenizer": "unused", "shuffle_buffer": 64, "sources": {"new": source}}
    (place / "conf/data/thoughts.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    lifecycle(place, "run=grown", "init_from=whole", *MID, *MORE)
    return place / "outputs/grown"


def test_the_export_is_what_transformers_reads(grown: Path, whole: Path) -> None:
    ours, theirs = load(str(grown / "tokenizer")), AutoTokenizer.from_pretrained(grown / "model")
    before = load(str(whole / "tokenizer"))
    assert ours.vocab_size == before.vocab_size + 2
    ids = ours.encode_batch(["<think>12</think>"])[0].tolist()
    assert ids == theirs.encode("<think>12</think>", add_special_tokens=False) and len(ids) == 4
    assert (
        json.loads((grown / "model/tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"][0]["type"]
        == "Digits"
    )
    model = AutoModelForCausalLM.from_pretrained(grown / "model")
    rows = load_file(grown / "model/model.safetensors")["model.embed_tokens.weight"]
    assert model.config.vocab_size == len(rows) >= ours.vocab_size
    first, second = rows[before.vocab_size], rows[before.vocab_size + 1]
    assert not torch.equal(first, second)  # both began as the mean, and each has learned its own


def test_killed_it_goes_on_to_the_same_weights(place: Path, grown: Path) -> None:
    again = place / "outputs/again"
    shutil.copytree(grown, again)
    shutil.rmtree(again / "model")
    shutil.rmtree(step_folder(again, 8))
    RunFolder(again).update(status="running")
    lifecycle(place, "run=again", "init_from=whole", *MID, *MORE)
    assert_same_run(again, grown)


def test_the_next_stage_has_them_already(place: Path, grown: Path) -> None:
    lifecycle(place, "run=next", "init_from=grown", *MID, *MORE, "stage.max_steps=2")
    following = place / "outputs/next"
    assert facts(following)["tokenizer"] == facts(grown)["tokenizer"]


def test_moments_of_the_parent_go_on_beside_new_rows(place: Path, whole: Path, grown: Path) -> None:
    lifecycle(place, "run=moved", "init_from=whole", *MID, *MORE, "stage.optimizer_state=parent", "stage.max_steps=2")
    assert facts(place / "outputs/moved")["status"] == "finished"


def test_an_old_name_is_refused_before_anything_is_built(place: Path, grown: Path) -> None:
    said = lifecycle(place, "run=bad", "init_from=whole", *MID, "stage.new_tokens=['<|eos|>']", code=2).err
    assert "stage.new_tokens: '<|eos|>' marks documents or turns" in said
    assert not (place / "outputs/bad").exists()
