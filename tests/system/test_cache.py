"""Where derived data is kept, and what is said where it cannot be."""

from pathlib import Path

import pytest

from lifecycle.errors import UserError
from lifecycle.system.cache import made_cache_folder


def test_the_cache_folder_is_made_where_the_user_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_CACHE", str(tmp_path / "a" / "b"))
    assert made_cache_folder() == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_home_that_cannot_be_written_is_said_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIFECYCLE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match=r"home/.cache/lifecycle cannot be written .*set LIFECYCLE_CACHE"):
        made_cache_folder()
