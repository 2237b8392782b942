"""Completions of `stage=generate` go where they are sent, and are kept whatever shows them."""

import io
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
from tests.jobs.test_generate import generate, place, rows

__all__ = ["place"]


def test_completions_go_where_they_are_sent(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate("stage.prompt=return")
    capsys.readouterr()
    (place / "asked.jsonl").write_text('{"id": "a", "prompt": "return"}\n{"id": "b", "prompt": "the"}\n')
    generate("stage.file=asked.jsonl", "stage.output=there/answers.jsonl")
    found = rows(place / "there/answers.jsonl")
    assert [row["id"] for row in found] == ["a", "b"]
    assert not (place / "outputs/generate/completions.jsonl").exists()  # that of the call before
    assert "return" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO((place / "asked.jsonl").read_text()))
    generate("stage.file=-", "stage.output=-")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found


def test_completions_are_kept_where_showing_them_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.rollout.display.CompletionDisplay.rest", Mock(side_effect=BrokenPipeError))
    with pytest.raises(BrokenPipeError):
        generate("stage.prompt=return")
    assert len(rows(place / "outputs/generate/completions.jsonl")) == 1


def test_an_output_without_unicode_is_sent_escapes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "asked.jsonl").write_text('{"prompt": "é日\\ud800"}\n', encoding="utf-8")
    held = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(held, encoding="ascii", write_through=True))
    generate("stage.file=asked.jsonl", "stage.output=-")
    generate("stage.file=asked.jsonl")
    sent = held.getvalue().decode("ascii").splitlines()
    assert json.loads(sent[0])["prompt"] == "é日\ufffd" and sent[1].startswith("???")
    assert rows(place / "outputs/generate/completions.jsonl")[0]["prompt"] == "é日\ufffd"
