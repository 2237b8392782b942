"""Hidden states of sequences that are scored together are those of each alone."""

import numpy as np
import pytest
import torch
from tests.stages.test_step import MODEL

from lifecycle.model import build, scoring
from lifecycle.model.scoring import hidden_states


@pytest.mark.parametrize("positions", [16_384, 20, 1])
def test_each_is_as_alone_whatever_it_is_padded_with(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "POSITIONS", positions)
    model, rng = build(MODEL, seed=1), np.random.default_rng(0)
    given = [rng.integers(0, MODEL.vocab, n).astype(np.int32) for n in (7, 2, 19, 1, 7, 12)]
    met = []
    for numbers, hidden_BTD in hidden_states(model, given):
        assert not hidden_BTD.requires_grad and hidden_BTD.shape[0] * hidden_BTD.shape[1] <= max(positions, 18)
        for number, hidden_TD in zip(numbers, hidden_BTD, strict=True):
            met.append(number)
            inputs = torch.from_numpy(given[number][:-1].astype(np.int64))[None]
            if len(given[number]) > 1:
                with torch.no_grad():
                    alone_TD = model(inputs, torch.arange(inputs.shape[1])[None])[0]
                torch.testing.assert_close(hidden_TD[: len(alone_TD)], alone_TD, rtol=1e-4, atol=1e-5)
    assert sorted(met) == list(range(6)) and met[0] == 2


def test_of_nothing_there_is_nothing() -> None:
    assert list(hidden_states(build(MODEL, seed=1), [])) == []
