"""The tokenizer job saves what a run loads, and measures each source on text that it was not trained on."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.data.made import make_corpus

from lifecycle.data.corpus import Corpus
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.jobs.tokenizer import sample
from lifecycle.jobs.tokenizer import tokenizer as tokenizer_job
from lifecycle.tokenizer.tokenizer import TokenizerRecipe, load


def module(folder: Path, sources: dict[str, SourceSpec]) -> Corpus:
    arguments: dict[str, Any] = {
        "sources": sources,
        "tokenizer": TokenizerRecipe(vocab_size=300, max_bytes=50_000, digits=1),
        "root": str(folder),
        "folder": folder,
    }
    return make_corpus(arguments)


def test_the_job_saves_a_tokenizer_and_its_rates_by_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    for name, letters in (("prose", "aeiou "), ("code", "(){};=")):
        rows = [{"text": f"{name} {number} " + "".join(rng.choices(letters, k=80))} for number in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {
        "prose": SourceSpec(path="prose.jsonl", weight=0.6, validation=ValidationRatio(ratio=0.2)),
        "code": SourceSpec(path="code.jsonl", weight=0.4, validation=None),
    }
    data = module(tmp_path, sources)
    result = tokenizer_job(data, tmp_path / "run", sample_bytes=1000, new_tokens=[], split_digits=False)

    assert load(str(tmp_path / "run")).sha256 == data.tokenizer.sha256 == result["sha256"]
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text()) == result
    prose, code = result["sources"]["prose"], result["sources"]["code"]
    assert prose["held_out"] and not code["held_out"]
    for one in (prose, code):
        assert 1000 <= one["bytes"] < 1100
        assert one["tokens_per_byte"] == one["tokens"] / one["bytes"] == pytest.approx(1 / one["bytes_per_token"])
        assert 0 < one["tokens_per_byte"] <= 1

    assert f"  prose                {prose['tokens_per_byte']:.4f}" in capsys.readouterr().out
    held_out = data.sources[0].held_out
    assert held_out is not None
    assert all(held_out.holds(text) for text in sample(data.sources[0], 10**9, seed=1))
    assert len(sample(data.sources[1], 10**9, seed=1)) == 200


def test_a_given_tokenizer_gets_more_and_is_measured_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"{number} the year 2024 <think>2024 </think> {'2024 ' * 20}"} for number in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = module(tmp_path, {"rows": SourceSpec(path="rows.jsonl", validation=None)})
    arguments: dict[str, Any] = {"sample_bytes": 1000, "new_tokens": ["<think>", "</think>"], "split_digits": True}
    result = tokenizer_job(data, tmp_path / "run", **arguments)
    made = load(str(tmp_path / "run"))
    assert made.sha256 == result["sha256"] != data.tokenizer.sha256
    assert result["vocab_size"] == made.vocab_size == data.tokenizer.vocab_size + 2
    assert len(made.encode_batch(["<think>2024"])[0]) == 5
