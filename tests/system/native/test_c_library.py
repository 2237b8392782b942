"""The library is built once, whole or not at all, and a machine that cannot build it says so and goes on."""

import ctypes
import logging
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lifecycle.errors import UserError
from lifecycle.rollout.decoder.fused import SLOWER, SOURCE
from lifecycle.system.cache import cache_folder
from lifecycle.system.native import c_library

fresh: Any = c_library.library.__wrapped__
needs_compiler = pytest.mark.skipif(c_library.library(SOURCE, SLOWER) is None, reason="needs a C compiler")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path))
    return tmp_path / "native"


@needs_compiler
def test_it_is_built_once(folder: Path) -> None:
    with ThreadPoolExecutor(3) as pool:  # several processes of one machine begin at once
        assert all(pool.map(fresh, [SOURCE] * 3, [SLOWER] * 3))
    (built,) = folder.glob("*.so")
    made = built.stat().st_mtime_ns
    assert fresh(SOURCE, SLOWER) is not None
    assert built.stat().st_mtime_ns == made
    assert sorted(p.suffix for p in folder.iterdir()) == ["", ".sha256", ".so"]  # and the lock
    assert [oct(p.stat().st_mode & 0o077) for p in (folder, *folder.iterdir())] == ["0o0"] * 4


@needs_compiler
def test_another_processor_builds_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(SOURCE, SLOWER)
    monkeypatch.setattr(c_library, "_processor", lambda: "flags: of another one")
    fresh(SOURCE, SLOWER)
    assert len(list(folder.glob("*.so"))) == 2


def test_no_compiler_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.WARNING):
        assert fresh(SOURCE, SLOWER) is None
    assert "no C compiler (looked for cc, gcc, clang)" in caplog.text


def test_a_compiler_that_fails_is_quoted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'unknown option -fopenmp' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with caplog.at_level(logging.WARNING):
        assert fresh(SOURCE, SLOWER) is None
    assert "broken could not build fused.c" in caplog.text and "unknown option -fopenmp" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["lock"]


# -- what is loaded is what this user built


@pytest.fixture
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that is there already; what stands in for the compiler makes another one in no time."""
    made = folder.parent / "made.so"
    source = folder.parent / "nothing.c"
    source.write_text("int nothing(void) { return 7; }\n")
    subprocess.run([*(c_library._compiler() or []), "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    compiler = folder.parent / "compiler"
    compiler.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp {made} "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -m64")  # options of $CC reach the compiler
    with monkeypatch.context() as patched:  # not loaded: this process would die of one cut short under it
        patched.setattr(ctypes, "CDLL", lambda path: path)
        (library,) = folder.glob(Path(fresh(SOURCE, SLOWER)).name)
    return library


def damage_nothing(library: Path) -> None: ...
def damage_empty(library: Path) -> None:
    library.write_bytes(b"")


def damage_cut(library: Path) -> None:
    os.truncate(library, 9000)


def damage_one_bit(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def damage_no_hash(library: Path) -> None:
    library.with_suffix(".sha256").unlink()


def damage_odd_hash(library: Path) -> None:
    library.with_suffix(".sha256").write_bytes(b"\xff\xfe")


def damage_link(library: Path) -> None:
    library.rename(library.with_name("elsewhere"))
    library.symlink_to("elsewhere")


def damage_mode(library: Path) -> None:
    library.chmod(0o777)


DAMAGES = {name: value for name, value in list(globals().items()) if name.startswith("damage_")}


@needs_compiler
@pytest.mark.parametrize("name", DAMAGES)
def test_only_the_library_that_was_written_is_loaded(name: str, built: Path) -> None:
    before = built.stat().st_ino
    DAMAGES[name](built)
    assert fresh(SOURCE, SLOWER).nothing() == 7
    assert built.stat().st_size > 9000 and not built.is_symlink()
    assert (built.stat().st_ino == before) is (name == "damage_nothing")
    assert oct(built.stat().st_mode & 0o777) == "0o700"


@needs_compiler
def test_a_library_of_another_owner_is_not_loaded(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = built.stat().st_ino
    private = c_library._is_private
    monkeypatch.setattr(c_library, "_is_private", lambda path: path.suffix != ".so" and private(path))
    assert fresh(SOURCE, SLOWER).nothing() == 7
    assert built.stat().st_ino != ours


@needs_compiler
def test_a_folder_that_was_open_to_others_is_closed(built: Path) -> None:
    built.parent.chmod(0o777)
    assert fresh(SOURCE, SLOWER).nothing() == 7
    assert oct(built.parent.stat().st_mode & 0o777) == "0o700"


@needs_compiler
@pytest.mark.parametrize("kind", ["a file", "a link", "another's", "no home", "no room"])
def test_where_it_cannot_be_kept_it_is_built_aside(
    kind: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "other"
    base.mkdir()
    monkeypatch.setenv("LIFECYCLE_CACHE", str(base))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    if kind == "a file":
        (base / "native").write_text("")
    elif kind == "a link":
        (base / "native").symlink_to(built.parent)
    elif kind == "another's":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elif kind == "no home":
        monkeypatch.setenv("LIFECYCLE_CACHE", "~nobody-of-this-name/cache")
    else:
        monkeypatch.setattr(c_library, "_write_private", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
    with caplog.at_level(logging.WARNING):
        assert fresh(SOURCE, SLOWER).nothing() == 7
    assert "compiled anew in every process" in caplog.text and "$LIFECYCLE_CACHE names another" in caplog.text
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UserError, match="set LIFECYCLE_CACHE"):
        cache_folder()


@needs_compiler
def test_one_that_holds_the_lock_for_ever_is_not_waited_for(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_library, "BUILD_S", 0.1)
    with c_library._locked(built.parent / "lock"), pytest.raises(TimeoutError, match="held by another process"):
        with c_library._locked(built.parent / "lock"):
            raise AssertionError
