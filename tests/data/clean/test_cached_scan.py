"""What is kept of a source is whole, or made again."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lifecycle.data.clean.cached_scan import kept_array


@pytest.mark.parametrize("left", [b"", b"\0" * 144, None], ids=["empty", "zeros", "half"])
def test_a_damaged_file_is_said_and_made_again(
    left: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = tmp_path / "kept" / "one.npy", list[int]()

    def make() -> NDArray[np.int64]:
        made.append(1)
        return np.arange(5)

    assert kept_array(path, make).tolist() == kept_array(path, make).tolist() == [0, 1, 2, 3, 4]
    assert len(made) == 1 and not capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:140] if left is None else left)
    assert kept_array(path, make).tolist() == [0, 1, 2, 3, 4]
    assert len(made) == 2 and f"{path} is damaged" in capsys.readouterr().err
    kept_array(path, make)
    assert len(made) == 2 and not list(path.parent.glob("*.part"))
