"""Laws of finding files: what a path, a pattern or a hub name stands for, always in the same order."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lifecycle.data.read.files import content_hash, remote
from lifecycle.data.read.files.listing import File, fingerprint, resolve
from lifecycle.data.read.spec import SampleBy, SourceSpec, ValidationRatio
from lifecycle.errors import UserError

Path_ = str | list[str] | dict[str, str | list[str]]


def find(folder: Path, path: Path_, split: str | None = None, sample_by: SampleBy = "document") -> tuple[File, ...]:
    spec = SourceSpec(path=path, sample_by=sample_by)
    return resolve(spec, name="mine", root=str(folder), cache=folder / "cache", split=split)


def names(files: tuple[File, ...]) -> list[str]:
    return [os.path.basename(file.url) for file in files]


def make(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(path.encode())


def test_a_path_is_a_file_a_folder_a_glob_or_a_list_of_them(tmp_path: Path) -> None:
    make(tmp_path, "b.jsonl", "a.jsonl", "deep/er/c.jsonl.gz", "deep/d.txt", "deep/picture.png")
    assert names(find(tmp_path, "b.jsonl")) == ["b.jsonl"]
    assert names(find(tmp_path, "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert names(find(tmp_path, "deep")) == ["d.txt", "c.jsonl.gz"]
    assert names(find(tmp_path, "**/*.jsonl*")) == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
    assert names(find(tmp_path, ["b.jsonl", "*.jsonl", str(tmp_path / "a.jsonl")])) == ["a.jsonl", "b.jsonl"]


def test_names_with_the_characters_of_patterns_are_found(tmp_path: Path) -> None:
    make(tmp_path, "a[1].jsonl", "odd [x]/b.jsonl")
    assert names(find(tmp_path, "a[1].jsonl")) == ["a[1].jsonl"]
    assert names(find(tmp_path, "odd [x]")) == ["b.jsonl"]


def test_the_kind_is_told_by_the_suffix_and_everything_unknown_is_text(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "a.ndjson.gz", "a.JSONL.ZST", "a.parquet", "a.txt", "a.md.gz", "a.py", "LICENSE")
    kinds = {os.path.basename(file.url): (file.kind, file.compression) for file in find(tmp_path, "*", None, "line")}
    assert kinds == {
        "a.jsonl": ("jsonl", None),
        "a.ndjson.gz": ("jsonl", ".gz"),
        "a.JSONL.ZST": ("jsonl", ".zst"),
        "a.parquet": ("parquet", None),
        "a.txt": ("line", None),
        "a.md.gz": ("line", ".gz"),
        "a.py": ("line", None),
        "LICENSE": ("line", None),
    }


def test_a_path_per_split(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl", "c.jsonl")
    path: Path_ = {"train": ["a.jsonl", "b.jsonl"], "valid": "c.jsonl"}
    assert names(find(tmp_path, path)) == ["a.jsonl", "b.jsonl"]
    assert names(find(tmp_path, path, split="valid")) == ["c.jsonl"]
    with pytest.raises(UserError, match=r"data\.sources\.mine\.path has no split 'test'; it has train, valid"):
        find(tmp_path, path, split="test")


def test_without_a_root_a_relative_path_that_matches_nothing_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "texts/stories.jsonl")
    monkeypatch.chdir(tmp_path)
    fault = r"nothing matches .*none\.jsonl; .* has texts"
    with pytest.raises(UserError, match=rf"{fault}\. Relative paths start .*: data\.root=FOLDER names another one"):
        resolve(SourceSpec(path="none.jsonl"), name="mine", cache=tmp_path)
    for path, root in (("none.jsonl", str(tmp_path)), (str(tmp_path / "none.jsonl"), None)):
        with pytest.raises(UserError, match=rf"{fault}$"):
            resolve(SourceSpec(path=path), name="mine", root=root, cache=tmp_path)


def test_a_pattern_without_a_match_names_what_is_near(tmp_path: Path) -> None:
    make(tmp_path, "texts/stories.jsonl", "texts/other.bin")
    with pytest.raises(
        UserError, match=r"mine\.path: nothing matches .*/texts/storys\.jsonl; .*/texts has stories\.jsonl"
    ):
        find(tmp_path, "texts/storys.jsonl")
    with pytest.raises(UserError, match=r"nothing matches .*; .* has texts"):
        find(tmp_path, "text/*.jsonl")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="bare is empty"):
        find(tmp_path, "bare/*.jsonl")


def test_what_cannot_be_read_is_refused_with_advice(tmp_path: Path) -> None:
    make(tmp_path, "a.pdf", "a.tar.gz")
    with pytest.raises(UserError, match=r"a\.pdf is a \.pdf file; what is read: JSON .*to_parquet"):
        find(tmp_path, "a.pdf")
    with pytest.raises(UserError, match=r"\.tar file"):
        find(tmp_path, "a.tar.gz")


def test_one_giant_text_as_one_document_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(UserError, match="set sample_by to line or paragraph"):
        find(tmp_path, "a.txt")
    assert len(find(tmp_path, "a.txt", None, "line")) == 1


def test_files_are_known_by_what_they_hold_and_not_by_name_place_or_time(tmp_path: Path) -> None:
    make(tmp_path / "one", "a.jsonl", "b.jsonl")
    first = fingerprint(find(tmp_path / "one", "*.jsonl"))
    os.utime(tmp_path / "one" / "a.jsonl", ns=(10**18, 10**18 + 1))
    assert fingerprint(find(tmp_path / "one", "*.jsonl")) == first
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "two" / "aa.jsonl")
    assert fingerprint(find(tmp_path / "two", "*.jsonl")) == first
    assert fingerprint(find(tmp_path / "one", "a.jsonl")) != first
    (tmp_path / "two" / "aa.jsonl").rename(tmp_path / "two" / "c.jsonl")  # the rows have other numbers now
    assert fingerprint(find(tmp_path / "two", "*.jsonl")) != first
    (tmp_path / "one" / "b.jsonl").rename(tmp_path / "one" / "b.txt")  # its rows are cut out in another way
    assert fingerprint(find(tmp_path / "one", "*")) != first


def test_a_change_that_leaves_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    seen = set()
    for text in (b"first", b"other", b"third"):
        path.write_bytes(text)
        os.utime(path, ns=(10**18, 10**18))
        seen.add(fingerprint(find(tmp_path, "a.jsonl")))
    assert len(seen) == 3


def test_a_file_is_read_once_for_its_hash_and_again_where_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one", "a.jsonl", "b.jsonl")
    monkeypatch.setattr(content_hash, "SETTLED_S", -1.0)
    read = list[str]()
    whole = content_hash._hash

    def hash_and_note(path: str, advance: Callable[[int], None]) -> str:
        read.append(Path(path).name)
        return whole(path, advance)

    monkeypatch.setattr(content_hash, "_hash", hash_and_note)
    first = fingerprint(find(tmp_path / "one", "*.jsonl"))
    assert sorted(read) == ["a.jsonl", "b.jsonl"]
    assert fingerprint(find(tmp_path / "one", "*.jsonl")) == first and len(read) == 2
    (tmp_path / "one" / "b.jsonl").write_bytes(b"more than before")
    assert fingerprint(find(tmp_path / "one", "*.jsonl")) != first and read[2:] == ["b.jsonl"]


def test_a_file_that_may_still_change_unseen_is_read_again(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    find(tmp_path, "a.jsonl")
    [note] = (tmp_path / "cache" / "contents").glob("*.json")
    assert json.loads(note.read_text()) == {}  # written a moment ago: its time stamp may not move with the next write


def test_what_a_store_says_of_a_content_comes_before_its_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert remote._stamp({"mtime": 5, "ETag": '"abc"', "LastModified": "now"}) == 'ETag "abc"'
    assert remote._stamp({"LastModified": "now", "size": 3}) == "LastModified now"
    fsspec.filesystem("memory").pipe_file("/weak/a.jsonl", b"{}")
    find(tmp_path, "memory://weak/a.jsonl")
    assert "gives no hash" in capsys.readouterr().err


def test_remote_places_are_listed_like_local_ones(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        fs.pipe_file(f"/bucket/{name}", name.encode())
    assert [file.url for file in find(tmp_path, "memory://bucket/*.jsonl")] == [
        "memory:///bucket/a.jsonl",
        "memory:///bucket/b.jsonl",
    ]
    assert names(find(tmp_path, "memory://bucket")) == ["a.jsonl", "b.jsonl", "c.txt"]
    assert [file.size for file in find(tmp_path, "memory://bucket/c.txt")] == [5]
    spec = SourceSpec(path="c.txt")
    assert names(resolve(spec, name="mine", root="memory://bucket", cache=tmp_path)) == ["c.txt"]
    with pytest.raises(UserError, match=r"data\.sources\.mine\.path: nothing matches memory://bucket/z\*"):
        find(tmp_path, "memory://bucket/z*")
    with pytest.raises(UserError, match="cannot be reached .* not known"):
        find(tmp_path, "nosuch://bucket/x.jsonl")


def test_a_folder_laid_out_like_a_hub_data_set_has_its_splits(tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "mine"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        for part in range(2):
            pq.write_table(pa.table({"text": [split]}), folder / "data" / f"{split}-{part:05d}-of-00002.parquet")
    spec = SourceSpec(hub="sets/mine", validation="test")
    train = resolve(spec, name="mine", root=str(tmp_path), cache=tmp_path)
    assert names(train) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert {file.kind for file in train} == {"parquet"}
    assert len(resolve(spec, name="mine", root=str(tmp_path), cache=tmp_path, split="test")) == 2
    with pytest.raises(UserError, match=r"data\.sources\.mine: 'sets/mine' has no split 'valid'; it has .*train"):
        resolve(spec, name="mine", root=str(tmp_path), cache=tmp_path, split="valid")


def test_configurations_of_a_hub_data_set_are_those_of_its_page(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    make(folder, "en/a.jsonl", "de/b.jsonl")
    page = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl" for name in ("en", "de")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{page}\n---\n")
    german = resolve(SourceSpec(hub="mine", config="de"), name="mine", root=str(tmp_path), cache=tmp_path)
    assert names(german) == ["b.jsonl"]
    with pytest.raises(UserError, match=r"'mine' cannot be resolved .*(en|de)"):
        resolve(SourceSpec(hub="mine", config="fr"), name="mine", root=str(tmp_path), cache=tmp_path)


def test_parts_of_a_hub_data_set_may_be_its_folders(tmp_path: Path) -> None:
    make(tmp_path / "code", "python/train-0.jsonl", "markdown/train-0.jsonl")
    one = resolve(SourceSpec(hub="code", data_dir="python"), name="mine", root=str(tmp_path), cache=tmp_path)
    assert [Path(file.url).parent.name for file in one] == ["python"]
    with pytest.raises(UserError, match=r"'code' cannot be resolved .*java doesn't contain any data files"):
        resolve(SourceSpec(hub="code", data_dir="java"), name="mine", root=str(tmp_path), cache=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "neither of hub and path given"),
        ({"path": "a", "hub": "b"}, "both of hub and path given"),
        ({"path": []}, "path is empty"),
        ({"path": "a", "config": "en"}, "only a hub data set has configurations"),
        ({"path": "a", "step_tags": True}, "step_tags is for format word_problem; this is text"),
        ({"path": "a", "data_dir": "en"}, "only a hub data set has folders of its own"),
        ({"path": {"valid": "a"}}, "split is 'train'; path has the splits valid"),
        ({"path": "a", "format": "txt"}, r"format is 'txt'; wanted one of .*\(did you mean text\?\)"),
        ({"path": "a", "sample_by": "word"}, "sample_by is 'word'"),
        ({"path": "a", "encoding": "utf-9"}, "encoding is 'utf-9'"),
        ({"path": "a", "encoding": "hex"}, "encoding is 'hex'"),
        ({"path": "a", "fields": {"texts": "b"}}, r"fields\.texts: no such field; .*did you mean text"),
        ({"path": "a", "fields": {"text": ["b"]}}, "only options and columns can be several columns"),
        ({"path": "a", "weight": -1.0}, "weight is -1; weights are positive"),
        (
            {"path": "a", "weight": 0.0, "validation": None},
            "weight is 0, so the source would be measured only",
        ),
        ({"path": "a", "weight": float("nan")}, "weight is nan"),
        ({"path": "a", "validation": {"share": 0.1}}, r"validation\.share: no such key"),
        ({"hub": "a", "validation": "train"}, "validation is 'train', the split that is trained on"),
    ],
)
def test_a_spec_that_cannot_be_meant_is_refused_by_its_key(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=rf"data\.sources\.mine.*{message}"):
        SourceSpec(**wrong).check("mine")  # type: ignore[arg-type]


def test_a_ratio_may_come_as_a_mapping_and_a_name_must_name_a_file() -> None:
    spec = SourceSpec(path="a", validation={"ratio": 0.1, "seed": 3})
    spec.check("mine")
    assert spec.validation == ValidationRatio(ratio=0.1, seed=3)
    with pytest.raises(UserError, match="a source's name is made of letters"):
        spec.check("../mine")
