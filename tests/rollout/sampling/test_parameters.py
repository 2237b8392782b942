"""Settings of a generation are checked at once, and the uniform numbers of its draws depend on seed and place alone."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.rollout.sampling.test_draw import settings

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.rollout.sampling.parameters import Sampling, sequence_seed, uniforms


def test_uniforms_are_those_of_the_published_generator() -> None:
    # SplitMix64 started from 1234567: the first three outputs, as its authors' code prints them
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    found = uniforms(torch.full((3,), 1234567), torch.arange(3))
    assert found.tolist() == [(x >> 11) * 2.0**-53 for x in outputs]


def test_uniforms_are_even_and_depend_on_seed_and_number() -> None:
    seeds = torch.tensor([sequence_seed(5, 2, n, 1) for n in range(4000)])
    u = torch.stack([uniforms(seeds, torch.full_like(seeds, n)) for n in range(3)])
    assert bool(((u >= 0) & (u < 1)).all())
    counts = torch.histc(u.float(), bins=20, min=0, max=1)
    assert ((counts - 600).square() / 600).sum() < 43.8  # 99.9th percentile for 19 degrees of freedom
    assert abs(torch.corrcoef(u)[0, 1].item()) < 0.06
    assert (
        len({sequence_seed(*key) for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]})
        == 5
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stop_ids": (5, -1)}, "stop_ids holds -1; the model draws from 0 to 299"),
        ({"banned_ids": (300,)}, "banned_ids holds 300"),
        ({"banned_ids": tuple(range(300))}, "banned_ids holds all 300 tokens"),
    ],
    ids=str,
)
def test_ids_that_no_model_draws_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(**changes).check_ids(300)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(UserError) as caught:
        Sampling(
            max_new_tokens=0,
            temperature=-1,
            top_k=0,
            top_p=1.5,
            min_p=0,
            repetition_penalty=0,
            stop_strings=("",),
            samples=4,
            best_of=2,
            best_by="best",  # type: ignore[arg-type]
        )
    names = "max_new_tokens temperature top_k top_p min_p repetition_penalty stop_strings best_of best_by".split()
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("key", ["max_new_tokens", "top_k", "samples", "best_of", "temperature", "top_p", "min_p"])
@pytest.mark.parametrize("value", [True, False, "5"])
def test_true_and_text_are_no_numbers(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{key} is {value!r}; it must be a (whole )?number"):
        Sampling(**{"max_new_tokens": 5, key: value})
    if value != "5" and key != "best_of":
        with pytest.raises(UserError, match=f"stage.{key} is {str(value).lower()}; wanted a (whole )?number"):
            config.check(config.compose(["stage=generate", f"stage.{key}={str(value).lower()}"]))


def test_a_share_may_be_the_whole_number_1_and_a_count_one_of_numpy() -> None:
    assert Sampling(max_new_tokens=5, top_p=1, temperature=1, top_k=np.int64(3)).top_k == 3  # type: ignore[arg-type]
    with pytest.raises(UserError, match="top_k is 1.5; it must be a whole number .None is off."):
        Sampling(max_new_tokens=5, top_k=1.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="temperature is None; it must be a number$"):
        Sampling(max_new_tokens=5, temperature=None)  # type: ignore[arg-type]
