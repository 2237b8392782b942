"""Laws of broken input: a broken row, an empty one and a damaged file are three things, the same in every stage."""

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.data.made import make_corpus

from lifecycle.data.clean.bad_rows import EMPTY, refuse_broken
from lifecycle.data.clean.source import BadRows, Source
from lifecycle.data.corpus import Corpus
from lifecycle.data.quality.rules import FilterSpec
from lifecycle.data.read.quarantine import quarantine
from lifecycle.data.read.row import Position, RawRow
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.survey.mixture import measure
from lifecycle.errors import UserError
from lifecycle.jobs.prepare import prepare
from lifecycle.tokenizer.tokenizer import TokenizerRecipe

GOOD = [json.dumps({"text": f"a text of some words, number {n}"}) for n in range(300)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    write(folder, GOOD)
    module(folder, TokenizerRecipe(vocab_size=300, max_bytes=50_000, digits=1)).tokenizer.save(folder / "made")
    return str(folder / "made")


def write(folder: Path, lines: list[str], name: str = "a.jsonl") -> None:
    (folder / name).write_text("\n".join(lines))


def module(folder: Path, tokenizer: str | TokenizerRecipe, bad_rows: BadRows | None = None, **spec: Any) -> Corpus:
    arguments: dict[str, Any] = {
        "sources": {"mine": SourceSpec(path="*.jsonl*", validation=None, max_epochs=1, **spec)},
        "tokenizer": tokenizer,
        "root": str(folder),
        "folder": folder / "run",
    }
    return make_corpus(arguments | ({"bad_rows": bad_rows} if bad_rows else {}))


def passed(data: Corpus) -> dict[str, Any]:
    """Read all that training reads, and say what became of the rows."""
    documents = data.documents("mine")
    for _ in documents.texts():  # type: ignore[attr-defined]
        pass
    counts: dict[str, Any] = documents.totals()["counts"]
    return counts


def listed(folder: Path) -> list[int]:
    path = folder / "run" / "quarantine" / "mine.jsonl"
    return sorted({json.loads(line)["line"] for line in path.read_text().splitlines()}) if path.exists() else []


@pytest.mark.parametrize("broken", [2, 40])
def test_preparing_bears_as_many_broken_rows_as_training_and_lists_them(
    broken: int, tmp_path: Path, tokenizer: str
) -> None:
    lines = [*GOOD]
    for n in range(broken):
        lines[5 + 7 * n] = '{"texts": "another name"}'
    for form in ("raw", "prepared"):
        (tmp_path / form).mkdir()
        write(tmp_path / form, lines)
        data = module(tmp_path / form, tokenizer)
        read: Callable[[Corpus], dict[str, Any]] = passed
        if form == "prepared":
            read = partial(prepare, folder=tmp_path / form / "run", processes=1)
        if broken == 2:
            found = read(data)
            counts = found if form == "raw" else found["mine"]["training"]["counts"]
            assert counts == {"kept:": 298, "bad:missing field text": 2}
            assert listed(tmp_path / form) == [6, 13]
        else:
            with pytest.raises(UserError, match=r"rows are broken \(missing field text .*max_share=0\.01.*map the fie"):
                read(data)
            assert len(listed(tmp_path / form)) >= 1


def test_too_many_broken_rows_are_refused_with_one_of_them(tmp_path: Path, tokenizer: str) -> None:
    rows = [json.dumps({"title": f"\x1b[2J a, {n}", "body": "語"}, ensure_ascii=False) for n in range(9)]
    write(tmp_path, ['{"text": "of words"}', *rows])
    with pytest.raises(UserError, match=r'a\.jsonl, line 2: {"title": ".u001b\[2J a, 0", "body": "語"} \.\.\.; map'):
        prepare(module(tmp_path, tokenizer), tmp_path / "run", 1)
    source = Source(
        name="s",
        index=0,
        spec=SourceSpec(path="a"),
        files=(),
        quarantine=tmp_path / "s.jsonl",
        bad_rows=BadRows(max_share=0.01, min_rows=9),
    )
    quarantine(tmp_path / "s.jsonl", RawRow(0, "b", 1, b"\x1b[2J\n", Position(0, 0, 1)), "bad json")
    for reason, words in {"bad json": r"such as b, line 1:  \[2J ", "another": r"listed in \S*s\.jsonl; mend"}.items():
        with pytest.raises(UserError, match=words):
            refuse_broken(source, {"kept:": 50, f"bad:{reason}": 50}, before=100, at_end=True)


def test_empty_rows_are_counted_and_are_not_broken(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, [line for good in GOOD for line in (good, "", '{"text": "  "}')])
    assert passed(module(tmp_path, tokenizer)) == {"kept:": 300, EMPTY: 599 + 1}
    assert prepare(module(tmp_path, tokenizer), tmp_path / "run", 1)["mine"]["training"]["counts"][EMPTY] == 600
    assert listed(tmp_path) == []


def test_empty_rows_hide_no_broken_ones(tmp_path: Path) -> None:
    source = Source(
        name="s", index=0, spec=SourceSpec(path="a"), files=(), bad_rows=BadRows(max_share=0.01, min_rows=9)
    )
    with pytest.raises(UserError, match="50 of 100 rows"):
        refuse_broken(source, {"kept:": 50, "bad:bad json": 50, EMPTY: 10**6}, before=10**6, at_end=True)
    refuse_broken(source, {"kept:": 50, EMPTY: 10**6}, before=10**6, at_end=True)


def test_a_damaged_file_ends_whatever_reads_it_or_is_counted(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path, GOOD)
    packed = gzip.compress("\n".join(GOOD * 30).encode())
    (tmp_path / "b.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    data = module(tmp_path, tokenizer)
    message = r"b\.jsonl\.gz is cut off.*, after line \d.*damaged_files=skip"
    for read in (
        lambda: passed(data),
        lambda: prepare(data, tmp_path / "run", 1),
        lambda: measure(data, budget_tokens=1000, processes=0, samples=1),
        lambda: module(tmp_path, TokenizerRecipe(vocab_size=300, max_bytes=10**9, digits=1)),
        lambda: module(tmp_path, tokenizer, filters=FilterSpec(exact_duplicates=True)),
        lambda: data.epoch_positions(64),
    ):
        with pytest.raises(UserError, match=message):
            read()
    data = module(tmp_path, tokenizer, BadRows(max_share=0.01, min_rows=100, damaged_files="skip"))
    counts = passed(data)
    assert counts["bad:damaged file"] == 1 and counts["kept:"] > 300
    assert prepare(data, tmp_path / "run", 1)["mine"]["training"]["counts"] == counts
    [entry] = [json.loads(line) for line in (tmp_path / "run/quarantine/mine.jsonl").read_text().splitlines()][-1:]
    assert entry["reason"] == "damaged file" and "is cut off" in entry["content"]
