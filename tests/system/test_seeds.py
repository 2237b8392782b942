"""One scheme for every seed, which no later version may change: the data of a run that goes on hangs on it."""

import torch

from lifecycle.rollout.sampling.parameters import sequence_seed
from lifecycle.system.seeds import derive


def test_a_seed_is_the_same_in_every_version_and_process() -> None:
    assert derive(42, "rows", 3, 7) == 1340336235844125551
    assert derive(0, "held out", 5) == 3525021258180418506


def test_seed_purpose_and_every_number_count_and_where_one_ends() -> None:
    found = [derive(1, "rows", 1, 23), derive(2, "rows", 1, 23), derive(1, "rows", 12, 3), derive(1, "phase", 1, 23)]
    assert len(set(found)) == 4 and all(0 <= seed < 2**63 for seed in found)
    torch.Generator().manual_seed(max(found))  # which takes 63 bits


def test_samples_are_seeded_by_it() -> None:
    assert sequence_seed(1, 2, 3, 4) == derive(1, "rollout", 2, 3, 4)
