"""Laws of the analysis: numbers by hand, overlaps as plain sets give them, the same for any number of processes."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.made import make_corpus

from lifecycle.data.clean import scan
from lifecycle.data.clean.source import BadRows
from lifecycle.data.corpus import Corpus
from lifecycle.data.quality.rules import FilterSpec
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.data.survey.mixture import amounts, clusters, histogram, measure, overlaps
from lifecycle.data.survey.row_stats import Measured
from lifecycle.errors import UserError
from lifecycle.jobs.analyze import analyze
from lifecycle.report.analysis import write_analysis
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

WORDS = [f"word{n}" for n in range(2000)]


def document(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=60))


def write(path: Path, texts: list[str], broken: int = 0) -> None:
    path.write_text("\n".join([json.dumps({"text": text}) for text in texts] + ["{broken"] * broken))


def corpus(folder: Path, sources: dict[str, SourceSpec], view: str = "text") -> Corpus:
    arguments: dict[str, Any] = {
        "sources": sources,
        "tokenizer": TokenizerRecipe(vocab_size=300, max_bytes=20_000, digits=1),
        "root": str(folder),
        "shuffle_buffer": 50,
        "exhausted": "drop",
        "bad_rows": BadRows(max_share=0.5, min_rows=100),
        "view": view,
        "folder": folder / "run",
    }
    return make_corpus(arguments)


@pytest.fixture
def data(tmp_path: Path) -> Corpus:
    """Source a: 40 documents, 2 of them copies, 10 too short, 1 broken; source b: 20 documents, 5 of them of a."""
    write(tmp_path / "a.jsonl", [document(n % 38) for n in range(40)] + ["mail me: x@y.org"] * 10, broken=1)
    write(tmp_path / "b.jsonl", [document(n) for n in range(33, 53)])
    filters = FilterSpec(near_duplicates=True, min_chars=100)
    sources = {
        "a": SourceSpec(path="a.jsonl", weight=3.0, filters=filters, validation=ValidationRatio(ratio=0.2)),
        "b": SourceSpec(path="b.jsonl", filters=filters, validation=None),
    }
    return corpus(tmp_path, sources)


def test_rows_are_counted_by_what_becomes_of_them(data: Corpus) -> None:
    found = measure(data, budget_tokens=1000, processes=1, samples=2)["sources"]
    a, b = found["a"], found["b"]
    assert a["rows"].pop("kept:") + a["rows"].pop("held:out") == 38
    assert a["rows"] == {"bad:bad json": 1, "dropped:near duplicate": 2, "dropped:too short": 10}
    assert b["rows"] == {"dropped:near duplicate": 5, "kept:": 15}
    assert b["documents"] == 15
    samples = [(sample["verdict"], sample["text"][:8]) for sample in a["samples"]]
    assert [verdict for verdict, _ in samples].count("dropped:too short") == 2
    assert ("dropped:too short", "mail me:") in samples and ("bad:bad json", "{broken") in samples
    assert {sample["row"] for sample in a["samples"] if sample["verdict"] == "dropped:near duplicate"} == {38, 39}


def test_tokens_bytes_and_epochs_are_those_of_the_training_documents(data: Corpus) -> None:
    b = measure(data, budget_tokens=10_000, processes=1, samples=0)["sources"]["b"]
    texts = [document(n) for n in range(38, 53)]
    lengths = [len(ids) for ids in data.tokenizer.documents(texts)]
    assert b["tokens"] == sum(lengths)
    assert b["bytes"] == sum(map(len, texts))
    assert b["planned_tokens"] == 2500  # weight 1 of 4
    assert b["epochs"] == pytest.approx(2500 / (sum(lengths) - 15))
    assert b["length"]["50"] == sorted(lengths)[7] and b["length"]["100"] == max(lengths)
    assert sum(b["histogram"].values()) == 15
    assert b["samples"] == []


def test_any_number_of_processes_gives_the_same(data: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    one = measure(data, budget_tokens=1000, processes=1, samples=3)
    monkeypatch.setattr(scan, "ROWS_AT_ONCE", 4)
    assert measure(data, budget_tokens=1000, processes=2, samples=3) == one


def test_overlaps_are_shares_of_documents_before_any_was_left_out(data: Corpus) -> None:
    found = overlaps(data.sources, cache=data.cache, processes=1)
    # a keeps 40 documents of 38 texts; 5 of its texts (none of the 2 repeated ones) are in b.
    assert found["a"] == {"a": 2 / 40, "b": 5 / 40}
    assert found["b"] == {"a": 5 / 20, "b": 0.0}


def test_clusters_are_connected_components() -> None:
    assert clusters(np.array([[0, 3], [3, 4], [1, 2], [2, 5], [4, 6]]), 8).tolist() == [0, 1, 1, 0, 0, 1, 0, 7]
    assert clusters(np.zeros((0, 2), np.int64), 3).tolist() == [0, 1, 2]
    rng = np.random.default_rng(0)
    pairs = np.sort(rng.integers(0, 300, (200, 2)), axis=1)
    known = list(range(300))
    for _ in range(300):  # the slow way: pass the least number on until nothing changes
        for i, j in pairs.tolist():
            known[i] = known[j] = min(known[i], known[j])
    assert clusters(pairs, 300).tolist() == known


def test_bins_are_half_doublings_named_by_their_least_length() -> None:
    # Edges 1, 1.41, 2, 2.83, 4, 5.66, 8: lengths 4 and 5 share a bin that begins at 4, 6 and 7 one that begins at 6.
    assert histogram(np.array([1, 4, 5, 6, 7, 8], np.int32)) == {"1": 1, "4": 2, "6": 2, "8": 1}
    assert histogram(np.zeros(0, np.int32)) == {}


def test_a_source_without_a_training_document_has_no_epochs() -> None:
    empty = amounts(np.zeros(0, np.int32), Measured(), 100.0)
    assert (empty["documents"], empty["epochs"], empty["length"]) == (0, None, {})


def test_the_page_says_what_was_found(data: Corpus, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    result = analyze(data, folder, budget_tokens=80_000, processes=1, samples=2)
    assert result["b"]["documents"] == 15
    assert json.loads((folder / "analysis.json").read_text())["sources"]["b"]["documents"] == 15
    text = (folder / "analysis.md").read_text()
    for words in ("| dropped: near duplicate | 2 |", "a is read", "| dropped: too short |", "mail me: x@y.org"):
        assert words in text
    html = (folder / "analysis.html").read_text()
    assert html.count("<picture>") == 4 and "<script" not in html
    said = capsys.readouterr().out
    assert "15 documents" in said and "10 left out, dropped: too short\n" in said


def test_without_a_planned_run_no_passes_are_counted(data: Corpus, tmp_path: Path, capsys: Any) -> None:
    result = analyze(data, tmp_path / "run", budget_tokens=None, processes=1, samples=1)
    assert result["b"].keys() == {"documents", "tokens"}
    text = (tmp_path / "run" / "analysis.md").read_text()
    assert "No run is planned: stage.budget_tokens=2e9" in text
    assert "| source | share | documents | tokens | trained | bytes a token |" in text
    for words in (text, capsys.readouterr().out):
        assert "epochs" not in words and "is read" not in words and "–" not in words


@pytest.mark.parametrize(("budget", "samples"), [(0, 1), (10, -1)])
def test_budgets_that_cannot_be_meant_are_refused(data: Corpus, tmp_path: Path, budget: int, samples: int) -> None:
    with pytest.raises(UserError, match=f"stage.budget_tokens is {budget} and stage.samples {samples}"):
        analyze(data, tmp_path, budget_tokens=budget, processes=1, samples=samples)


def test_under_another_view_its_items_are_counted_and_shown(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}.", "output": "It is " + "so " * n} for n in range(30)]
    rows.append({"instruction": "Say nothing.", "output": "<|end|>"})
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"instruction": "Say."}]))
    source = SourceSpec(path="chat.jsonl", format="auto", validation=None)
    found = measure(corpus(tmp_path, {"chat": source}, view="chat"), budget_tokens=1000, processes=1, samples=40)
    chat = found["sources"]["chat"]
    assert found["view"] == "chat" and chat["documents"] == 31 and chat["rows"]["bad:missing field output"] == 1
    shown = [sample["item"] for sample in chat["samples"] if sample["item"]]
    tokens = [token for item in shown for part in item["parts"] for token in part["tokens"]]
    assert len(shown) == 31 and sum(trained for _, trained in tokens) == chat["trained"] < chat["tokens"] == len(tokens)
    assert all(item["parts"][0]["tokens"][-1] == ["<|end|>", True] for item in shown)
    assert "31 conversations, " in write_analysis(tmp_path, found)
