"""The rank of a process before Lightning is imported is the one that Lightning will find."""

import pytest
from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

from lifecycle.system.ranks import RANKS, rank


@pytest.mark.parametrize(
    "given",
    [{}, {"RANK": "0"}, {"LOCAL_RANK": "1"}, {"SLURM_PROCID": "2", "LOCAL_RANK": "1"}, {"JSM_NAMESPACE_RANK": "3"}],
    ids=str,
)
def test_the_rank_is_lightnings_before_it_is_imported(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delattr(rank_zero_only, "rank")
    assert rank() == (_get_rank() or 0)


def test_the_rank_that_lightning_has_set_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert rank() == 1
