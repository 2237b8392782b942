"""Shards are read as what `stage=prepare` writes, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from lifecycle.data.stream.prepared import open_shards
from lifecycle.errors import UserError


@pytest.mark.parametrize(
    "change", [{"parts": ["../../other/0"]}, {"parts": ["/etc/0"]}, {"dtype": "O"}, {"dtype": "f8"}]
)
def test_shards_are_whole_numbers_in_files_of_their_own_folder(tmp_path: Path, change: dict[str, Any]) -> None:
    meta = {"parts": ["0"], "dtype": "uint16", "documents": 1, "tokens": 3}
    assert open_shards(tmp_path, meta).documents == 1
    with pytest.raises(UserError, match=r"meta.json names .* shards are files of uint16 or uint32 beside it"):
        open_shards(tmp_path, {**meta, **change})
