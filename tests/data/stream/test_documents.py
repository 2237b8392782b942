"""Laws of reading a source by streams: each row once a pass, the same after a resume, and nothing dropped in
silence.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.items import ids_of

from lifecycle.batch import Example, Item
from lifecycle.data.clean.filter_row import FilteredRow
from lifecycle.data.clean.source import BadRows, HeldOut, Source
from lifecycle.data.read.files.listing import resolve
from lifecycle.data.read.spec import SourceSpec
from lifecycle.data.stream.documents import RawDocuments, place_in
from lifecycle.data.stream.pieces import Exhausted
from lifecycle.data.stream.source_reader import SourceReader
from lifecycle.errors import UserError

ROWS = 203


def source(folder: Path, *, files: int = 3, rows: int = ROWS, broken: int = 0, ratio: float = 0.0) -> Source:
    """Rows whose text is their own number, in several files."""
    parts = np.array_split(np.arange(rows), files)
    for number, part in enumerate(parts):
        lines = [json.dumps({"text": f"row {i}"}) for i in part]
        lines += ["{broken"] * (broken if number == 0 else 0)
        (folder / f"{number:02d}.jsonl").write_text("\n".join(lines) + "\n")
    spec = SourceSpec(path=str(folder / "*.jsonl"), validation=None)
    return Source(
        name="s",
        index=0,
        spec=spec,
        files=resolve(spec, name="s", cache=folder / "cache"),
        bad_rows=BadRows(max_share=0.01, min_rows=100),
        held_out=HeldOut(ratio=ratio, seed=1) if ratio else None,
        quarantine=folder / "quarantine.jsonl",
    )


def make(rows: Sequence[FilteredRow]) -> list[Item | str]:
    return [Example(ids=np.array([int(str(row.text).split()[1])] * 2, np.int32)) for row in rows]


def reader(source: Source, stream: int, streams: int, state: dict | None = None, held: bool = False) -> RawDocuments:
    reader = SourceReader(source, at={stream: place_in(state)}, streams=streams, seed=3, buffer=40)
    return RawDocuments(reader, make, stream=stream, state=state, held=held)


def take(documents: RawDocuments, count: int) -> list[int]:
    return [int(ids_of(documents.next())[0]) for _ in range(count)]


def until_exhausted(documents: RawDocuments) -> list[int]:
    out = []
    while True:
        try:
            out.append(int(ids_of(documents.next())[0]))
        except Exhausted:
            return out


@pytest.mark.parametrize("streams", [1, 2, 5])
@pytest.mark.parametrize("files", [3, 24])
def test_streams_together_give_every_row_once_a_pass(tmp_path: Path, streams: int, files: int) -> None:
    one = source(tmp_path, files=files)
    twice = replace(one, spec=replace(one.spec, max_epochs=2))
    given = [row for stream in range(streams) for row in until_exhausted(reader(twice, stream, streams))]
    assert sorted(given) == sorted([*range(ROWS), *range(ROWS)])


@pytest.mark.parametrize(("words", "at_once"), [(1, 40), (2000, 2), (9000, 1)])
def test_long_texts_are_tokenised_few_at_a_time_so_that_the_first_step_starts_soon(
    tmp_path: Path, words: int, at_once: int
) -> None:
    asked = []

    def counting(rows: Sequence[FilteredRow]) -> list[Item | str]:
        asked.append(len(rows))
        return make(rows)

    one = source(tmp_path)
    for file in tmp_path.glob("*.jsonl"):
        lines = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({"text": line + " a word" * words}) + "\n" for line in lines))
    read = SourceReader(one, at={0: place_in(None)}, streams=1, seed=3, buffer=40)
    documents = RawDocuments(read, counting, stream=0)
    take(documents, ROWS)
    assert asked[0] == at_once == max(asked)


def test_passes_differ_in_order_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    one = source(tmp_path)
    rows = take(reader(one, 0, 1), 2 * ROWS)
    assert sorted(rows[:ROWS]) == sorted(rows[ROWS:])
    assert rows[:ROWS] != rows[ROWS:]
    assert rows == take(reader(one, 0, 1), 2 * ROWS)


@pytest.mark.parametrize("files", [3, 24])
def test_resume_after_any_document_goes_on_as_if_nothing_had_been(tmp_path: Path, files: int) -> None:
    one = source(tmp_path, files=files)
    whole = reader(one, 1, 3)
    rows, states = [], []
    for _ in range(150):  # more than two passes of the stream's share
        rows += take(whole, 1)
        states.append((whole.state(), whole.totals()))
    for stop in range(0, 149, 7):
        again = reader(one, 1, 3, json.loads(json.dumps(states[stop][0])))
        assert take(again, 149 - stop) == rows[stop + 1 :]
    resumed = reader(one, 1, 3, states[60][0])
    take(resumed, 89)
    assert resumed.totals() == states[149][1]


def test_held_out_rows_are_never_trained_on_and_all_are_somewhere(tmp_path: Path) -> None:
    one = source(tmp_path, ratio=0.3)
    once = replace(one, spec=replace(one.spec, max_epochs=1))
    training = until_exhausted(reader(once, 0, 1))
    held = until_exhausted(reader(once, 0, 1, held=True))
    assert sorted(training + held) == list(range(ROWS))
    assert 0.2 * ROWS < len(held) < 0.4 * ROWS


def test_duplicates_and_rows_past_the_limit_are_left_out(tmp_path: Path) -> None:
    one = source(tmp_path)
    fewer = replace(
        one, spec=replace(one.spec, max_epochs=1, max_rows=100), left_out={"exact duplicate": np.array([3, 50, 150])}
    )
    given = [row for stream in range(2) for row in until_exhausted(reader(fewer, stream, 2))]
    assert sorted(given) == [row for row in range(100) if row not in (3, 50)]


def test_counts_of_the_first_pass_say_what_became_of_every_row(tmp_path: Path) -> None:
    one = source(tmp_path, broken=2, ratio=0.1)
    documents = reader(one, 0, 1)
    take(documents, 3 * ROWS)
    counts = documents.totals()["counts"]
    assert counts["bad:bad json"] == 2
    assert counts["kept:"] + counts["held:out"] == ROWS
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2


def test_a_share_of_broken_rows_past_the_limit_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.sources.s: \d+ of \d+ rows are broken \(bad json \d+\).*max_share=0.01"):
        until_exhausted(reader(source(tmp_path, broken=20), 0, 1))


def test_few_broken_rows_in_a_streams_part_of_a_small_source_do_not(tmp_path: Path) -> None:
    one = source(tmp_path, rows=400, broken=2)  # 0.5 % of the source, but 1 of 26 rows of two of its streams
    for stream in range(16):
        take(reader(one, stream, 16), 60)
    many = source(tmp_path, rows=400, broken=60)
    with pytest.raises(UserError, match="rows are broken"):
        for stream in range(16):
            take(reader(many, stream, 16), 60)


def test_a_source_without_a_usable_row_says_so(tmp_path: Path) -> None:
    one = source(tmp_path, rows=40)
    nothing = replace(one, held_out=HeldOut(ratio=1.0, seed=1))
    with pytest.raises(UserError, match="no usable training row"):
        reader(nothing, 0, 2).next()


@pytest.mark.parametrize("passes", [0.5, 1, 3, None])
def test_a_source_without_a_usable_row_says_so_however_often_it_may_be_read(
    passes: float | None, tmp_path: Path
) -> None:
    one = source(tmp_path, rows=40)
    spec = replace(one.spec, max_epochs=passes)
    nothing = replace(one, spec=spec, held_out=HeldOut(ratio=1.0, seed=1))
    with pytest.raises(UserError, match=r"no usable training row in 3 file\(s\) \(held:out"):
        reader(nothing, 0, 2).next()
    assert passes != 1 or list(RawDocuments.alone(nothing, make, seed=0, buffer=10).usable()) == []


def test_a_stream_without_a_usable_row_ends_where_another_one_has_some(tmp_path: Path) -> None:
    one = replace(source(tmp_path, rows=1), spec=replace(source(tmp_path, rows=1).spec, max_epochs=1))
    given = [len(until_exhausted(reader(one, stream, 2))) for stream in range(2)]
    assert sorted(given) == [0, 1]


def some(rows: Sequence[FilteredRow]) -> list[Item | str]:
    """No item of every seventh row."""
    made = make(rows)
    return ["no trained token" if int(ids_of(item)[0]) % 7 == 0 else item for item in made]  # type: ignore[arg-type]


def test_rows_that_give_no_item_are_broken_ones_whenever_they_are_met(tmp_path: Path) -> None:
    one = replace(source(tmp_path), bad_rows=BadRows(max_share=0.2, min_rows=100))
    refused = [n for n in range(ROWS) if n % 7 == 0]

    def opened(state: dict | None = None) -> RawDocuments:
        reader = SourceReader(one, at={0: place_in(state)}, streams=1, seed=3, buffer=40)
        return RawDocuments(reader, some, stream=0, state=state)

    whole = opened()
    rows, states = [], []
    for _ in range(2 * (ROWS - len(refused))):
        rows += take(whole, 1)
        states.append((json.loads(json.dumps(whole.state())), whole.totals()))
    assert sorted(rows) == sorted(2 * [n for n in range(ROWS) if n % 7])
    assert states[-1][1]["counts"] == {"kept:": ROWS - len(refused), "bad:no trained token": len(refused)}
    listed = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert len(listed) == len(refused) and {row["reason"] for row in listed} == {"no trained token"}
    assert all(f"row {n}" in "".join(row["content"] for row in listed) for n in refused)
    for stop in range(0, len(states) - 1, 9):
        again = opened(states[stop][0])
        assert again.totals()["counts"] == states[stop][1]["counts"]
        assert take(again, len(rows) - stop - 1) == rows[stop + 1 :]
        assert again.totals()["counts"] == states[-1][1]["counts"]


def test_a_source_of_which_no_row_gives_an_item_says_so(tmp_path: Path) -> None:
    one = replace(source(tmp_path, rows=30), bad_rows=BadRows(max_share=1.0, min_rows=100))
    documents = RawDocuments.alone(one, lambda rows: ["no trained token"] * len(rows), seed=0, buffer=10)
    with pytest.raises(UserError, match=r"data.sources.s has no usable training row.*bad:no trained token 30"):
        documents.next()
    (tmp_path / "other").mkdir()
    strict = source(tmp_path / "other")
    with pytest.raises(UserError, match=r"rows are broken \(no trained token"):
        until_exhausted(RawDocuments.alone(strict, some, seed=0, buffer=40))
