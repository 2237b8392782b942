"""The loss under a parent: each document's own, whatever it was batched with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.model.huggingface.families import LLAMA, made
from torch.nn import functional as F

from lifecycle import config
from lifecycle.errors import UserError
from lifecycle.lineage.parent import find_parent
from lifecycle.lineage.parent_loss import ParentLoss
from lifecycle.model import scoring
from lifecycle.model.huggingface import export


@pytest.fixture
def scorer(tmp_path: Path) -> ParentLoss:
    export(made(LLAMA), tmp_path / "model")
    return of(tmp_path / "model")


def of(folder: Path) -> ParentLoss:
    return ParentLoss(find_parent(str(folder)), config.build(config.compose(["hardware.precision=fp32"]).hardware))


def documents(*lengths: int) -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, LLAMA.vocab, length).astype(np.int32) for length in lengths]


def test_it_is_the_mean_cross_entropy_of_the_document_alone(
    scorer: ParentLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = documents(7, 2, 19, 1, 12)
    model = made(LLAMA).eval()
    wanted = []
    for ids in given:
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            logits = model.logits(model(tokens[:, :-1], torch.arange(len(ids) - 1)[None])) if len(ids) > 1 else None
        wanted.append(float("nan") if logits is None else float(F.cross_entropy(logits[0], tokens[0, 1:])))
    for positions in (16_384, 20):  # one batch, and several
        monkeypatch.setattr(scoring, "POSITIONS", positions)
        np.testing.assert_allclose(scorer(given), wanted, rtol=1e-5)


def test_a_document_longer_than_the_model_is_judged_by_its_beginning(scorer: ParentLoss) -> None:
    (long,) = documents(LLAMA.max_positions + 30)
    assert scorer([long]) == pytest.approx(scorer([long[: LLAMA.max_positions + 1]]))


def test_tokens_that_the_parent_lacks_are_refused(scorer: ParentLoss) -> None:
    with pytest.raises(UserError, match=f"vocabulary ends at {LLAMA.vocab}"):
        scorer([np.array([1, LLAMA.vocab], np.int32)])


def test_the_key_names_the_weights(scorer: ParentLoss, tmp_path: Path) -> None:
    before = scorer.key
    weights = next((tmp_path / "model").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert of(tmp_path / "model").key != before
