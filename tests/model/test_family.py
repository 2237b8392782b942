"""A family is one file: nothing else knows its name, and every one of them is compared with `transformers`."""

import re
from pathlib import Path

import pytest
from tests.model.huggingface.families import CONFIGS

import lifecycle.model
from lifecycle.model.families import FAMILIES, family_of

ROOM = Path(lifecycle.model.__file__).parent
DOCS = Path(__file__).parents[2] / "docs/models.md"


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_known_to_its_own_file_alone(name: str) -> None:
    assert family_of(name).architecture.endswith("ForCausalLM")
    elsewhere = [
        path for path in ROOM.rglob("*.py") if not path.name.startswith("gguf") and path.parent.name != "families"
    ]
    assert [path.name for path in elsewhere if re.search(rf"['\"]{name}['\"]", path.read_text())] == []


def test_every_family_is_compared_with_theirs_and_described() -> None:
    assert {config.family for config in CONFIGS.values()} == set(FAMILIES)
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", DOCS.read_text(), re.MULTILINE)) >= set(FAMILIES)
