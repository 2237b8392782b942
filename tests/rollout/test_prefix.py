"""Samples of one prompt read it together, and nobody can tell from what they draw."""

from typing import Any

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.rollout.sampled import CONFIG, completions, mismatch, prompts, settings

from lifecycle.model import Cache, build
from lifecycle.model.attention import cached_attention
from lifecycle.rollout import Engine, prefix, step
from lifecycle.rollout.prefix import attend, places_of, prefix_of, shared_length
from lifecycle.rollout.schedule import Schedule

CPU = torch.device("cpu")


def test_it_is_shared_where_enough_is_not_read_again() -> None:
    assert shared_length([[0, 1, 2], [3, 4]], [200, 171]) == 171  # 3 rows of 5 need not read it: 513 positions
    assert shared_length([[0, 1, 2], [3, 4]], [200, 170]) == 0
    assert shared_length([[0], [1]], [9999, 9999]) == 0
    assert shared_length([], []) == 0


def test_places_by_hand() -> None:
    queries, places = places_of([[0, 3], [2]], 2)  # row 1 is at rest
    # rows 0 and 3 of head 0, of head 1; then row 2 (twice: filled up) of head 0, of head 1
    assert queries.tolist() == [0, 6, 1, 7, 4, 4, 5, 5]
    assert places.tolist() == [0, 2, 0, 0, 4, 6, 1, 3]


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_it_is_plain_attention(name: str) -> None:
    generator, config = torch.Generator().manual_seed(0), VARIANTS[name]
    cache = Cache.empty(config, rows=6, capacity=20, device=CPU, dtype=torch.float64)
    for stored in (*cache.keys, *cache.values):
        stored.normal_(generator=generator)
        stored[[2, 4], :, :7], stored[5, :, :7] = stored[0, :, :7].clone(), stored[1, :, :7].clone()
    cache.limit = 15
    positions = torch.tensor([7, 9, 14, -1, 8, 12])
    mask = cache.place(positions[:, None], None).layer(1).mask_B1TL
    shared = prefix_of([[0, 2, 4], [1, 5]], 7, cache, None)
    q = torch.randn(6, config.heads, config.head_dim, dtype=torch.float64, generator=generator)
    k, v = cache.keys[1][:, :, :15], cache.values[1][:, :, :15]
    found = attend(q, k, v, mask[:, 0], shared, 1)
    wanted = cached_attention(q[:, None], k, v, mask)[:, 0]
    at_work = positions >= 0
    torch.testing.assert_close(found[at_work], wanted[at_work])
    assert found.isfinite().all()


def test_groups_are_the_rows_of_a_prompt() -> None:
    schedule = Schedule([[1], [2], [3]], samples=2, seeds=range(6), slots=5, prefill_tokens=8)
    schedule.admit()
    assert schedule.groups() == {0: [0, 1], 1: [2, 3], 2: [4]}
    schedule.finish([0])
    schedule.admit()
    assert schedule.groups() == {0: [1], 1: [2, 3], 2: [0, 4]}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the prefixes made, in a house where sharing pays from the first position on."""
    made: list[int] = []

    def noted(groups: Any, length: int, *rest: Any) -> Any:
        made.append(length)
        return prefix_of(groups, length, *rest)

    monkeypatch.setattr(prefix, "LEAST_SAVED", 1)
    monkeypatch.setattr(step, "prefix_of", noted)
    return made


KINDS = {"plain": CONFIG, **{name: VARIANTS[name] for name in ("mistral", "qwen2", "qwen3")}}


@pytest.mark.parametrize("name", KINDS)
def test_samples_agree_with_the_scoring_pass(name: str, counted: list[int]) -> None:
    kind, sampling = build(KINDS[name], seed=1), settings(samples=4, top_k=20, stop_ids=(1, 2, 3, 4))
    engine = Engine(kind, slots=7)
    rollout = engine.generate(prompts(9), sampling, seed=0)
    assert counted
    assert mismatch(kind, rollout, sampling) < 1e-5
    counted.clear()
    alone = Engine(kind, slots=1).generate(prompts(9), sampling, seed=0)
    assert not counted
    assert completions(rollout) == completions(alone)
    # another call with other prompts and other weights finds nothing of this one
    with torch.no_grad():
        for parameter in kind.parameters():
            parameter.mul_(1.1)
    again = engine.generate(prompts(9, seed=5), sampling, seed=0)
    assert mismatch(kind, again, sampling) < 1e-5


def test_deterministic_sampling_shares_nothing(counted: list[int]) -> None:
    engine = Engine(build(CONFIG, seed=1), slots=8, deterministic=True)
    engine.generate(prompts(3), settings(samples=4), seed=0)
    assert not counted
