"""The library is built once, whole or not at all, and a machine that cannot build it says so and goes on."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lifecycle.rollout import native

fresh = native.library.__wrapped__
needs_compiler = pytest.mark.skipif(native.library("fused") is None, reason="needs a C compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path))
    return tmp_path / "native"


@needs_compiler
def test_it_is_built_once(folder: Path) -> None:
    with ThreadPoolExecutor(3) as pool:  # several processes of one machine begin at once
        assert all(pool.map(fresh, ["fused"] * 3))
    (built,) = folder.iterdir()
    made = built.stat().st_mtime_ns
    assert fresh("fused") is not None
    assert [p.stat().st_mtime_ns for p in folder.iterdir()] == [made]


@needs_compiler
def test_another_processor_builds_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh("fused")
    monkeypatch.setattr(native, "_processor", lambda: "flags: of another one")
    fresh("fused")
    assert len(list(folder.iterdir())) == 2


def test_no_compiler_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.WARNING):
        assert fresh("fused") is None
    assert "no C compiler (looked for cc, gcc, clang)" in caplog.text


def test_a_compiler_that_fails_is_quoted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'unknown option -fopenmp' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert fresh("fused") is None
    assert "broken could not build fused.c" in caplog.text and "unknown option -fopenmp" in caplog.text
    assert list(folder.iterdir()) == []
