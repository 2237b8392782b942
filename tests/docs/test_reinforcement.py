"""docs/reinforcement.md has a line for every name that a formula can be chosen by, and for no other."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from lifecycle.losses.policy.advantages import AdvantageName
from lifecycle.losses.policy.kl import KlName
from lifecycle.losses.policy.masks import SamplerMasks
from lifecycle.losses.policy.normalisers import NormaliserName
from lifecycle.losses.policy.objectives import RatioName

PAGE = (Path(__file__).parents[2] / "docs" / "reinforcement.md").read_text()
TABLES = {
    "Advantages": get_args(AdvantageName),
    "Ratios": get_args(RatioName),
    "Normalisers": get_args(NormaliserName),
    "KL": get_args(KlName),
    "Against the sampler": tuple(field.name for field in fields(SamplerMasks)),
}


@pytest.mark.parametrize("title", TABLES)
def test_every_name_has_a_line(title: str) -> None:
    section = PAGE.split(f"\n### {title}")[1].split("\n### ")[0]
    assert sorted(re.findall(r"^\| `(\w+)` ", section, re.MULTILINE)) == sorted(TABLES[title])
