"""Laws of what counting alone reaches, and of the bytes of bits per byte: both are of trained tokens alone."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.data.every_view import module, write

from lifecycle.batch import Example
from lifecycle.data.read.spec import ValidationRatio
from lifecycle.data.survey.ngram_baselines import baselines

HELD: dict[str, Any] = {
    "spec": {"validation": ValidationRatio(ratio=0.3)},
    "validation_tokens": 100_000,
    "sequence_length": 128,  # longer than any row
    "global_batch_tokens": 512,
    "micro_batch_tokens": 256,
}


@pytest.mark.parametrize("view", ["text", "chat"])
def test_bytes_are_of_the_text_whose_tokens_are_trained(tmp_path: Path, view: str) -> None:
    write(tmp_path, view, "a", [3 + n % 20 for n in range(60)])
    data = module(tmp_path, view, {"a": None}, **HELD)
    held = data.held_out["a"]
    rows = [json.loads(line) for line in (tmp_path / "a0.jsonl").read_text().splitlines()]
    said = []  # what each row has the model learn, read off the file
    for row in rows:
        turns = row.get("messages", [])
        # `Assistant:` is the prompt of the plain template, and the space behind it belongs to the answer
        said.append(row.get("text", "".join(f" {t['content']}" for t in turns if t["role"] == "assistant")))
    expected = Counter(len(text.encode()) for text in said)
    found = Counter[int]()
    for item in data.corpus.held_out(data.corpus.whole[0], 100_000):
        assert isinstance(item, Example)
        trained = item.ids if item.trained is None else item.ids[item.trained]
        found[len(data.tokenizer.decode(trained).encode())] += 1
    assert held.bytes == sum(size * n for size, n in found.items()) and held.documents == found.total() > 5
    assert not found - expected  # each is what a row says, whole


@pytest.mark.parametrize("view", ["text", "chat"])
def test_bits_per_byte_of_a_unigram_model_equal_an_independent_count(tmp_path: Path, view: str) -> None:
    write(tmp_path, view, "a", [3 + n % 20 for n in range(60)])
    data = module(tmp_path, view, {"a": None}, **HELD)
    once = data.corpus.documents("a")
    words = Counter[int]()
    while once.totals()["epochs"] < 1:
        item = once.next()
        assert isinstance(item, Example)
        trained = [True] * len(item.ids) if item.trained is None else item.trained.tolist()
        ids = item.ids.tolist()
        for word, is_trained in zip(ids[1:], trained[1:], strict=True):
            words[word] += is_trained
    nats = 0.0
    tokens = size = 0
    for item in data.corpus.held_out(data.corpus.whole[0], 100_000):
        assert isinstance(item, Example)
        trained = [True] * len(item.ids) if item.trained is None else item.trained.tolist()
        for word in item.ids[1:][trained[1:]].tolist():
            nats -= math.log((words[word] + 1) / (words.total() + data.tokenizer.vocab_size))
            tokens += 1
            size += data.tokenizer.bytes_of([word])
    found = baselines(data)["a"]
    bits = nats / math.log(2) / size
    assert math.log2(found["unigram"]) / found["bytes_per_token"] == pytest.approx(bits)
    assert found["unigram"] == pytest.approx(math.exp(nats / tokens)) and found["bigram"] < found["unigram"]


@pytest.mark.parametrize("view", ["preference", "unpaired", "prompt"])
def test_what_is_no_text_has_no_baseline_and_no_bytes(tmp_path: Path, view: str) -> None:
    write(tmp_path, view, "a", [3 + n % 20 for n in range(40)])
    data = module(tmp_path, view, {"a": None}, **HELD)
    assert baselines(data) == {} and data.held_out["a"].bytes is None and data.domains["a"] == (1.0, None)
