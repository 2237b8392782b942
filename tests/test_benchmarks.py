"""The arithmetic of the benchmarks' command line."""

from __future__ import annotations

from benchmarks.common import merge


def test_rounds_are_merged_into_medians_and_the_widest_spread() -> None:
    rounds = [
        {"rate": {"median": 10.0, "min": 8.0, "max": 11.0}, "peak_rss_mb": 100},
        {"rate": {"median": 14.0, "min": 9.0, "max": 15.0}, "peak_rss_mb": 120},
        {"rate": {"median": 11.0, "min": 7.0, "max": 12.0}, "peak_rss_mb": 90},
    ]
    assert merge(rounds) == {"rate": {"median": 11.0, "min": 7.0, "max": 15.0}, "peak_rss_mb": 100}


def test_one_failed_round_is_a_failure() -> None:
    assert merge([{"peak_rss_mb": 100}, {"error": "killed"}]) == {"error": "killed"}
    assert merge([{"error": "killed"}]) == {"error": "killed"}


def test_one_round_stays_as_it_is() -> None:
    assert merge([{"note": "text", "peak_rss_mb": 100}]) == {"note": "text", "peak_rss_mb": 100}
