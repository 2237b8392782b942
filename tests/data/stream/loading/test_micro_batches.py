"""A rank's rows are cut into as few micro-batches as fit, of one size or two."""

import pytest

from lifecycle.data.stream.loading.loader import micro_batch_rows
from lifecycle.errors import UserError


def test_micro_batches_are_few_and_even() -> None:
    for limit in range(1, 40):
        cut = micro_batch_rows(limit * 16 + 15)
        for rows in range(1, 130):
            sizes = cut(16, rows)
            assert sum(sizes) == rows and len(sizes) == -(-rows // limit)
            assert max(sizes) <= limit and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_a_prime_number_of_rows_is_not_taken_row_by_row() -> None:
    assert micro_batch_rows(32 * 128)(128, 61) == [31, 30]
    assert micro_batch_rows(32 * 128)(128, 64) == [32, 32]
    assert micro_batch_rows(32 * 128)(128, 0) == []


def test_a_row_must_fit() -> None:
    with pytest.raises(UserError, match="less than one row of 128 tokens"):
        micro_batch_rows(127)(128, 1)
