"""The schedule of a curriculum: its table, its pacing functions, its scale, and what is refused."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from lifecycle.data.curriculum.curriculum import Curriculum, CurriculumStage, quantile_scale
from lifecycle.errors import UserError

STAGES = [(0.3, (1.0, 2.0)), (0.6, (2.0, 3.5)), (1.0, (3.5, 5.0))]


def stages(*lines: tuple[float, tuple[float, float]]) -> list[CurriculumStage]:
    return [CurriculumStage(until=until, levels=levels) for until, levels in lines]


def curriculum(**changes: Any) -> Curriculum:
    values: dict[str, Any] = {
        "by": "length",
        "sources": None,
        "scale": "quantile",
        "stages": None if changes.get("pacing") else stages(*STAGES),
        "pacing": None,
        "start": 0.1,
        "full_at": 0.7,
        "older_share": 0.0,
    }
    return Curriculum(**(values | changes))


def test_a_table_reads_its_levels_in_turn() -> None:
    made = curriculum()
    assert made.buckets == ["1-2", "2-3.5", "3.5-5"]
    assert made.schedule([1, 2, 3], "s") == {0.0: [1, 0, 0], 0.3: [0, 1, 0], 0.6: [0, 0, 1]}


def test_easier_levels_stay_in_with_their_share_divided_by_size() -> None:
    made = curriculum(older_share=0.1)
    assert made.schedule([10, 30, 60], "s") == {
        0.0: [1, 0, 0],
        0.3: [0.1, 0.9, 0],
        0.6: [pytest.approx(0.1 * 0.25), pytest.approx(0.1 * 0.75), 0.9],
    }


def test_levels_that_are_read_together_are_read_in_proportion_to_their_size() -> None:
    made = curriculum(stages=stages((0.5, (1.0, 2.0)), (0.7, (1.0, 3.0)), (1.0, (1.0, 5.0))))
    found = made.schedule([10, 30, 60], "s")
    assert found[0.5] == [0.25, 0.75, 0.0]
    assert found[0.7] == [0.1, 0.3, 0.6]


@pytest.mark.parametrize(
    ("pacing", "competence"),
    [
        ("linear", lambda p: 0.1 + 0.9 * p),
        ("sqrt", lambda p: math.sqrt(0.01 + 0.99 * p)),
        ("exponential", lambda p: 0.1 * 2 ** (-math.log2(0.1) * p)),  # as arXiv 1912.08555 writes it
    ],
)
def test_a_pacing_function_opens_the_easiest_share_of_the_rows(pacing: Any, competence: Any) -> None:
    made = curriculum(pacing=pacing, full_at=0.5)
    widths = np.diff(made.bounds) / 4
    assert widths.sum() == pytest.approx(1)
    found = made.schedule(widths.tolist(), "s")
    assert min(found) == 0 and max(found) == pytest.approx(0.5)
    for progress, shares in found.items():
        opened = widths[np.array(shares) > 0].sum()
        assert opened == pytest.approx(competence(progress / 0.5))
        assert np.array(shares)[np.array(shares) > 0] == pytest.approx(widths[np.array(shares) > 0] / opened)


def test_pacing_over_many_rows_of_one_score_begins_with_the_easiest_there_are() -> None:
    made = curriculum(pacing="linear")
    found = made.schedule([0, 0, 0, 5, 0, 0, 0, 0, 0, 5], "s")
    assert found[0.0] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert found[0.7][3] == found[0.7][9] == 0.5


def test_a_row_on_an_edge_is_of_the_easier_band_and_the_outermost_are_open() -> None:
    scores = np.array([-9, 1, 2, 2.001, 3.5, 4, 5, 99, np.nan])
    assert curriculum(scale="none").bucket_of(scores).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_the_quantile_scale_is_the_rank() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, 500).astype(np.float32)
    low, high = (pc.rank(pa.array(scores), tiebreaker=ties).to_numpy() for ties in ("min", "max"))
    np.testing.assert_allclose(quantile_scale(scores), 1 + 4 * ((low + high) / 2 - 0.5) / 500)
    assert np.isnan(quantile_scale(np.array([1, np.nan, 2], np.float32))).tolist() == [False, True, False]
    assert quantile_scale(np.array([3, 9, 5], np.float32)) == pytest.approx([1 + 4 / 6, 1 + 20 / 6, 3])
    assert quantile_scale(np.array([2, 2], np.float32)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": None}, "neither of stages and pacing"),
        ({"pacing": "sqrt", "stages": stages(*STAGES)}, "both of stages and pacing"),
        ({"stages": stages((0.5, (1.0, 5.0)))}, r"end at \[0.5\]"),
        ({"stages": stages((0.6, (1.0, 5.0)), (0.5, (1.0, 5.0)), (1.0, (1.0, 5.0)))}, "ascends"),
        ({"stages": stages((1.0, (5.0, 1.0)))}, "the easier end comes first"),
        ({"stages": stages((1.0, (0.0, 5.0)))}, "lie between 1 and 5"),
        ({"stages": stages((0.5, (1.0, 2.0)), (1.0, (3.0, 5.0)))}, "reads the levels 2 to 3"),
        ({"pacing": "sqrt", "older_share": 0.1}, "older_share=0"),
        ({"pacing": "sqrt", "scale": "none"}, "scale=quantile"),
    ],
)
def test_what_no_run_could_follow_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        curriculum(**changes)


def test_a_stage_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match=r"levels 2 to 3.5 from 30% of the run on, and data.sources.maths has no row"):
        curriculum().schedule([5, 0, 5], "maths")
