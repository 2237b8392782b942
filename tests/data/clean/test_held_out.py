"""Laws of what is measured: a fair sample of all held-out documents, by their text alone, from rows and from shards."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.batch import Example, Item
from lifecycle.data.clean import held_out
from lifecycle.data.clean.held_out import ORDER, first, held_out_items, share_read
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.read.files.listing import resolve
from lifecycle.data.read.spec import SourceSpec, ValidationRatio
from lifecycle.data.stream.packing import TEXT, Packing
from lifecycle.data.validation import HeldOutSet, held_out_sets
from lifecycle.data.views import Maker
from lifecycle.errors import UserError
from lifecycle.system import say_once
from lifecycle.tokenizer.tokenizer import Tokenizer, train_bpe

BAD = BadRows(max_share=0.01, min_rows=10)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["file 0 1 2 3 4 5 6 7 8 9 number"] * 5, vocab_size=290, digits=1)


def write(folder: Path, files: int, documents: int) -> None:
    for file in range(files):
        lines = [json.dumps({"text": f"file {file:02d} number {n}"}) + "\n" for n in range(documents)]
        (folder / f"{file:02d}.jsonl").write_text("".join(lines))


def opened(folder: Path, pattern: str = "*.jsonl", **spec: Any) -> Source:
    made = SourceSpec(path=pattern, **{"validation": ValidationRatio(ratio=0.2), **spec})
    files = resolve(made, name="s", root=str(folder), cache=folder / "cache")
    return Source(name="s", index=0, spec=made, files=files, bad_rows=BAD, held_out=HeldOut.of(made))


def maker(tokenizer: Tokenizer) -> Maker:
    return Maker(view="text", tokenizer=tokenizer)


def texts(found: list[Item], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(one.ids[1:-1]) for one in found if isinstance(one, Example)]


def chosen(source: Source, tokenizer: Tokenizer, tokens: int, *, processes: int = 1) -> list[str]:
    cache = Path(source.files[0].url).parent / "cache"
    return texts(held_out_items(source, maker(tokenizer), tokens=tokens, cache=cache, processes=processes), tokenizer)


def test_every_file_is_met_in_its_share(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, files=20, documents=200)
    source = opened(tmp_path)
    found = chosen(source, tokenizer, 4000)
    assert all(source.held_out.holds(text) for text in found)  # type: ignore[union-attr]
    assert len({text[:7] for text in found}) == 20
    everything = chosen(source, tokenizer, 10**9)
    assert len(everything) == sum(
        source.held_out.holds(f"file {f:02d} number {n}")  # type: ignore[union-attr]
        for f in range(20)
        for n in range(200)
    )
    assert everything[: len(found)] == found  # more tokens: the same documents, and more


def test_the_choice_depends_on_neither_processes_nor_the_order_of_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, files=3, documents=400)
    before = chosen(opened(tmp_path), tokenizer, 600)
    (tmp_path / "00.jsonl").rename(tmp_path / "zz.jsonl")
    assert chosen(opened(tmp_path), tokenizer, 600, processes=2) == before


def test_it_is_found_once_and_then_read(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, files=2, documents=50)
    before = chosen(opened(tmp_path), tokenizer, 300)
    monkeypatch.setattr(held_out, "scan", None)
    assert chosen(opened(tmp_path), tokenizer, 300) == before
    assert chosen(opened(tmp_path), tokenizer, 0) == []


def test_as_many_documents_as_the_positions_take() -> None:
    order = np.array([(5, 0.9), (1, 0.1), (3, 0.2), (1, 0.3)], ORDER)
    positions = np.array([10, 10, 10, 10])
    assert first(order, positions, 15, math.inf).tolist() == [1, 3]
    assert first(order, positions, 20, math.inf).tolist() == [1, 3]
    assert first(order, positions, 21, math.inf).tolist() == [1, 3, 2]
    assert first(order, positions, 10**6, 0.3).tolist() == [1, 2]  # those of the first part of every file
    assert first(order, positions, 0, math.inf).tolist() == []


def test_a_large_source_is_looked_at_in_the_same_share_of_every_file(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, files=4, documents=300)
    rows = [f"file 99 number {n}" for n in range(300)]
    pq.write_table(pa.table({"text": rows}), tmp_path / "99.parquet", row_group_size=50)
    source = opened(tmp_path, "*.[jp]*")
    stored = sum(file.size for file in source.files)
    monkeypatch.setattr(held_out, "LOCAL_BYTES", stored // 3)
    monkeypatch.setattr(held_out, "BYTES_A_TOKEN", 0.0)
    assert share_read([(file.url, file.size) for file in source.files], source.spec, 9) == pytest.approx(
        1 / 3, rel=0.01
    )
    found = chosen(source, tokenizer, 10**9)
    assert {text[:7] for text in found} == {f"file {n:02d}" for n in (0, 1, 2, 3, 99)}
    assert all(int(text.split()[-1]) < 102 for text in found)
    assert any(int(text.split()[-1]) > 80 for text in found)


def test_many_small_documents_are_looked_at_by_the_file(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(100):
        (tmp_path / f"{n:03d}.txt").write_text(f"file {n}")
    source = opened(tmp_path, "*.txt", validation=ValidationRatio(ratio=0.5))
    whole = chosen(source, tokenizer, 10**9)
    monkeypatch.setattr(held_out, "LOCAL_BYTES", sum(file.size for file in source.files) // 2)
    monkeypatch.setattr(held_out, "BYTES_A_TOKEN", 0.0)
    part = chosen(source, tokenizer, 10**9)
    assert 0.3 * len(whole) < len(part) < 0.7 * len(whole) and set(part) < set(whole)
    numbers = [int(text.split()[-1]) for text in part]
    assert min(numbers) < 20 and max(numbers) > 80


def test_what_so_many_tokens_take_is_looked_at_in_any_case() -> None:
    spec = SourceSpec(path="x", validation=ValidationRatio(ratio=0.001))
    sizes = [("https://example.org/a.jsonl", 10**12)]
    assert share_read(sizes, spec, 100_000) == pytest.approx(100_000 * 12 / 0.001 / 10**12)
    assert share_read(sizes, spec, 10) == pytest.approx(2**28 / 10**12)
    assert share_read([("/a.jsonl", 2**30)], spec, 10) == math.inf
    assert share_read(sizes, SourceSpec(path="x", max_rows=10), 10) == math.inf


def test_a_validation_file_that_is_broken_is_refused_every_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' * 20 + "{broken\n" * 20)
    source = opened(tmp_path, validation=None)
    for _ in range(2):
        with pytest.raises(UserError, match="20 of 40 rows are broken"):
            chosen(source, tokenizer, 100)


def test_one_text_under_two_names_is_measured_once_and_as_its_parent_did(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path, files=3, documents=100)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", files=1, documents=50)
    mine = replace(opened(tmp_path, domain="d"), name="mine")
    again = replace(opened(tmp_path, domain="d", validation_tokens=200), name="replay.mine", index=1)
    other = replace(opened(tmp_path / "other", domain="d"), name="other", index=2)

    def read(source: Source, wanted: int) -> list[Item]:
        return held_out_items(source, maker(tokenizer), tokens=wanted, cache=tmp_path / "cache", processes=1)

    def measured(*sources: Source) -> tuple[list[int], dict[str, int]]:
        found = held_out_sets(
            sources,
            {source.name: 1.0 for source in sources},
            read,
            tokens=900,
            row_length=64,
            packing=TEXT,
            byte_count=len,
        )["d"]
        return sorted(found.rows["input_ids"].ravel().tolist()), dict(found.wanted)

    alone, both = measured(again), measured(mine, again)
    assert both[0] == alone[0] and both[1] == {"mine": 200, "replay.mine": 200}
    assert measured(mine, again, other)[1] == {"mine": 200, "replay.mine": 200, "other": 300}
    assert measured(mine, other)[1] == {"mine": 450, "other": 450}


def test_a_domain_of_which_nothing_can_be_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, files=1, documents=20)
    source, long = opened(tmp_path, domain="d"), np.arange(90, dtype=np.int32)

    def measured(*items: Item, tokens: int = 900) -> tuple[dict[str, HeldOutSet], str]:
        say_once.begin_anew()
        found = held_out_sets(
            [source],
            {source.name: 1.0},
            lambda source, wanted: items,
            tokens=tokens,
            row_length=64,
            packing=Packing(view="chat", long_examples="drop"),
            byte_count=len,
        )
        return found, capsys.readouterr().err

    example = Example(ids=long, trained=long > 50)
    found, said = measured(example, example)
    assert found == {} and "warning: nothing is measured of 'd': none of its 2 held-out items fits into a row" in said
    assert "stage.sequence_length=64" in said
    found, said = measured()
    assert found == {} and f"no row of {source.name} is held out" in said and "validation.ratio" in said
    assert measured(tokens=0) == ({}, "")  # none was asked for
    short = Example(ids=long[:60], trained=long[:60] > 50)
    found, said = measured(short)
    assert list(found) == ["d"] and said == ""
    say_once.begin_anew()
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", files=1, documents=10)
    found = held_out_sets(
        [source, replace(opened(tmp_path / "other", domain="d"), name="other", index=1)],
        {source.name: 1.0, "other": 1.0},
        lambda source, wanted: [example] if source.name == "other" else [short],
        tokens=900,
        row_length=64,
        packing=Packing(view="chat", long_examples="drop"),
        byte_count=len,
    )
    said = capsys.readouterr().err
    assert list(found) == ["d"] and "nothing is measured of 'other': none of its 1 held-out items fits" in said
