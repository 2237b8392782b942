"""Laws of stage=prepare: the same shards whatever the processes, a source read once by each, finished parts kept."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.data.made import make_corpus

from lifecycle.data.corpus import Corpus
from lifecycle.data.read.files.retrying import RetryingFile
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.errors import UserError
from lifecycle.jobs import prepare as job
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

WORDS = "the cat sat on a mat and then it ran far away from that old grey house near some river bank".split()


RNG = np.random.default_rng(0)
LINES = [json.dumps({"text": f"{number} " + " ".join(RNG.choice(WORDS, 30))}) for number in range(400)]


def module(folder: Path, lines: Sequence[str] = LINES, tokenizer: str | None = None) -> Corpus:
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.writelines(f"{line}\n" for line in lines)
    arguments: dict[str, Any] = {
        "sources": {"a": SourceSpec(path=str(folder / "a.jsonl.gz"), validation=ValidationRatio(ratio=0.2))},
        "tokenizer": tokenizer or TokenizerRecipe(vocab_size=300, max_bytes=20_000, digits=1),
    }
    return make_corpus(arguments)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))
    return module(tmp_path)


def digests(folder: Path) -> dict[str, str]:
    """Of every file of the shards."""
    files = [path for path in sorted((folder / "prepared").rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_shards_are_the_same_whatever_the_processes_and_made_again_where_they_are_missing(
    data: Corpus, tmp_path: Path
) -> None:
    for processes in (1, 3):
        job.prepare(data, tmp_path / str(processes), processes)
    whole = digests(tmp_path / "1")
    assert whole == digests(tmp_path / "3") and len(whole) > 16 * 4
    side = tmp_path / "1/prepared/a"
    kept = (side / "training/03.tokens").stat().st_mtime_ns
    (side / "part-05.json").unlink()
    (tmp_path / "1/prepared/of-another-start").mkdir()
    (side / "training/05.tokens").unlink()
    job.prepare(data, tmp_path / "1", 1)
    assert digests(tmp_path / "1") == whole
    assert (side / "training/03.tokens").stat().st_mtime_ns == kept


def test_a_process_reads_a_source_once_for_all_its_parts(
    data: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = 0
    part = RetryingFile._part

    def counting(self: RetryingFile, wanted: int) -> bytes:
        nonlocal fetched
        fetched += len(given := part(self, wanted))
        return given

    monkeypatch.setattr(RetryingFile, "_part", counting)
    task = job._Task(data.sources[0], data.maker(data.sources[0]), tmp_path / "made", tuple(range(job.PARTS)))
    job._write_parts(task)
    assert fetched <= 2.5 * (tmp_path / "a.jsonl.gz").stat().st_size  # once, and a look at its beginning
    fetched = 0
    job._write_parts(task)
    assert not fetched


def test_the_job_says_what_the_shards_hold_and_how_they_are_read(
    data: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metas = job.prepare(data, tmp_path / "made", 1)["a"]
    words = capsys.readouterr().out
    for side in ("training", "validation"):
        assert f"{metas[side]['documents']:,} documents, {metas[side]['tokens']:,} tokens" in words
    assert "left out" not in words and f"data.prepared={tmp_path / 'made'}" in words
    metas["training"]["counts"] |= {"dropped:empty": 1_200, "bad:missing field text": 3}
    assert "; left out: missing field text 3, empty 1,200\n" in job.said({"a": metas}, tmp_path, "documents")


def test_a_source_without_a_document_to_train_on_is_refused(data: Corpus, tmp_path: Path) -> None:
    data.tokenizer.save(tmp_path / "tokenizer")
    nothing = module(tmp_path, lines=["", " "], tokenizer=str(tmp_path / "tokenizer"))
    with pytest.raises(UserError, match=r"data.sources.a has no document to train on in 1 file \(empty 2\)"):
        job.prepare(nothing, tmp_path / "made", 1)
