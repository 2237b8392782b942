"""A language model becomes the beginning of a reward model; a reward model is none of what predicts tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.toy import toy

from lifecycle.errors import UserError
from lifecycle.lineage.parent import Parent, find_parent
from lifecycle.lineage.score_head import refuse_score, with_score
from lifecycle.model import Decoder, build
from lifecycle.model.huggingface import export
from lifecycle.model.layers.initial import SCORE


def parent_in(folder: Path, *, tied: bool = False) -> Parent:
    export(build(toy(tied_head=tied), seed=1), folder)
    return find_parent(str(folder))


@pytest.mark.parametrize("tied", [False, True])
def test_all_but_the_head_is_the_parents_and_the_score_is_of_the_seed(tmp_path: Path, tied: bool) -> None:
    before = parent_in(tmp_path, tied=tied)
    after = with_score(before, seed=5)
    assert after.model == replace(before.model, score_head=True) and after.stated()["score_head"] is True
    network = Decoder(after.model)
    network.load_state_dict(after.weights)  # strict: no name too many
    assert all(
        torch.equal(value, after.weights[name]) for name, value in before.weights.items() if name != "head.weight"
    )
    assert torch.equal(after.weights[SCORE], with_score(before, seed=5).weights[SCORE])
    assert not torch.equal(after.weights[SCORE], with_score(before, seed=6).weights[SCORE])
    assert after.sha256() == before.sha256()


def test_a_reward_model_goes_on_with_its_own_score(tmp_path: Path) -> None:
    model = build(toy(score_head=True), seed=3)
    export(model, tmp_path)
    after = with_score(find_parent(str(tmp_path)), seed=5)
    assert torch.equal(after.weights[SCORE], model.state_dict()[SCORE])
    with pytest.raises(UserError, match=r"is a reward model: .* stage=pretrain needs"):
        refuse_score(after, "pretrain")


def test_a_family_without_such_a_class_is_refused(tmp_path: Path) -> None:
    before = parent_in(tmp_path)
    other = replace(before, model=replace(before.model, family="glm4_moe"))
    with pytest.raises(UserError, match="no class of family glm4_moe"):
        with_score(other, seed=1)
