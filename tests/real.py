"""Real texts beside the project, where there are any: LIFECYCLE_DATA names their folder."""

import gzip
import json
import os
from pathlib import Path
from typing import Any, TextIO

import pytest

REAL = Path(os.environ.get("LIFECYCLE_DATA") or Path(__file__).parents[2] / "shared" / "data")

needs_real = pytest.mark.skipif(not REAL.exists(), reason="needs real text; set LIFECYCLE_DATA to its folder")


def opened(name: str) -> TextIO:
    """A gzipped text among them; skips the test where it is absent."""
    if not (REAL / name).is_file():
        pytest.skip(f"needs {REAL / name}; set LIFECYCLE_DATA to the folder of the sets")
    return gzip.open(REAL / name, "rt", encoding="utf-8")


def rows(name: str) -> list[dict[str, Any]]:
    """Of the set `name`, as `pretrain/openstax_general.train`."""
    with opened(f"{name}.jsonl.gz") as file:
        return [json.loads(line) for line in file]
