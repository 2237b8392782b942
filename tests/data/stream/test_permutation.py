"""A permutation names every element once, differs by key, and looks shuffled."""

import numpy as np
import pytest

from lifecycle.data.stream.permutation import permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_every_element_once(size: int) -> None:
    out = permute(np.arange(size), size, key=7)
    assert sorted(out.tolist()) == list(range(size))


def test_elements_do_not_depend_on_what_is_asked_with_them() -> None:
    whole = permute(np.arange(1000), 1000, key=3)
    assert permute(np.array([5, 17, 999]), 1000, key=3).tolist() == whole[[5, 17, 999]].tolist()


def test_keys_give_different_orders_and_the_order_is_mixed() -> None:
    a, b = permute(np.arange(5000), 5000, key=1), permute(np.arange(5000), 5000, key=2)
    assert (a == b).mean() < 0.01
    assert abs(np.corrcoef(np.arange(5000), a)[0, 1]) < 0.05
