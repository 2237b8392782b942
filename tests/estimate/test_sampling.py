"""What a dry run says of a run that draws samples: how many, in which time, in which memory."""

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.estimate.test_estimate import of

from lifecycle.estimate.sampling import SamplingPlan, sampling_of
from lifecycle.estimate.table import plain, warnings


def drawn(**changes: Any) -> SamplingPlan:
    """256 samples a step of up to 512 tokens behind prompts of 512, 32 at a time, on 2 TB/s."""
    given = {"prompts": 16, "samples": {256: 100}, "tokens": 512, "longest": 1024, "slots": 32, "devices": 1}
    return sampling_of(**{**given, "weights": 1e9, "position": 30_000.0, "bandwidth": 2.0, **changes})


def test_sampling_reads_weights_and_cache_once_a_decode_step() -> None:
    found = drawn()
    read = 1e9 + 32 * 768 * 30_000  # a token stands at position 768 in the mean
    assert found.hours is not None and found.hours[0.1] == pytest.approx(100 * 8 * 512 * read / 0.2e12 / 3600)
    assert (found.total, found.rows, found.cache) == (25_600, 32, 32 * 1024 * 30_000)


def test_phases_with_other_numbers_of_samples_are_added_up() -> None:
    """100 steps of 256 make 8 turns each, 50 of 80 make 3."""
    once, found = drawn(), drawn(samples={256: 100, 80: 50})
    assert once.hours is not None and found.hours is not None
    assert found.hours[0.1] == pytest.approx(once.hours[0.1] * (800 + 150) / 800)
    assert (found.samples, found.total, found.rows) == (256, 25_600 + 4_000, 32)


def test_more_at_a_time_read_the_weights_less_often_and_devices_share_the_samples() -> None:
    few, many, two = (drawn(**words) for words in ({}, {"slots": 1000}, {"slots": 1000, "devices": 2}))
    assert few.hours is not None and many.hours is not None and two.hours is not None
    assert many.rows == 256 and two.rows == 128  # no more than there are
    assert two.hours[0.1] < many.hours[0.1] < few.hours[0.1]


def test_its_cache_is_not_held_beside_activations() -> None:
    held = of().memory
    assert replace(held, cache=1.0).total == held.total
    assert replace(held, cache=1e12).total == held.state + 1e12


def test_it_is_told_and_what_is_not_known_is_said() -> None:
    said = plain(replace(of(), sampling=drawn()))
    assert re.search(r"samples a step +256 = 16 x 16", said) and "Time of the updates on" in said
    assert re.search(r"time at 10% of 2 TB/s +59.3 min, besides that of the updates", said)
    lines = warnings(replace(of(), sampling=drawn(bandwidth=None)))
    assert sum("the hours of sampling are not known" in line for line in lines) == 1


def test_what_is_trained_on_twice_takes_twice_the_time() -> None:
    once, again = of().hours, of(repeats=2 + 1 / 3).hours
    assert once is not None and again is not None and again[0.5] == pytest.approx(once[0.5] * 7 / 3)
