"""Laws of prompts that both answers of a pair share: fewer positions, equal values, gradients and sequences."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.batch.test_micro_batches import example, packed, pair
from tests.model.variants import VARIANTS

from lifecycle.batch import IGNORED, Pair, PairBatch, TokenBatch, with_shared_prompts
from lifecycle.losses import token_logprobs
from lifecycle.model import DocumentMask, ModelConfig, build

MODELS = {
    name: replace(config, vocab_size=64, init_std=0.05)
    for name, config in VARIANTS.items()
    if config.sliding_window is None  # which counts distances in a row
}


@pytest.fixture(autouse=True)
def widths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as wide as they have to be."""
    monkeypatch.setattr("lifecycle.batch.shared_prompts.WIDTHS", 1)


def whole_sequences(tokens: TokenBatch, ends: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and labels of the sequences that end there, with the prompt that they share."""
    shared = torch.zeros_like(tokens.labels) if tokens.shared is None else tokens.shared
    out = []
    for row, last in (divmod(end, tokens.labels.shape[1]) for end in ends.tolist()):
        mine = tokens.document_ids[row] == tokens.document_ids[row, last]
        if shared[row, last] < 0:
            mine |= shared[row] == -shared[row, last]
        out.append((tokens.input_ids[row, mine], tokens.labels[row, mine]))
    return out


def logprobs(config: ModelConfig, batch: PairBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(P,) chosen minus rejected, and the gradient of their weighted sum."""
    model, tokens = build(config, seed=0).double(), batch.tokens
    mask = DocumentMask.from_ids(tokens.document_ids, kernel="sdpa", shared_BT=tokens.shared)
    hidden_BTD = model(tokens.input_ids, tokens.position_ids, mask, counted=tokens.trained)
    hidden = hidden_BTD.flatten(0, 1)[batch.places]
    cap = config.logit_softcap
    logp_N, _ = token_logprobs(hidden, model.head_weight, tokens.labels.flatten()[batch.places], softcap=cap)
    chosen, rejected = batch.sums(logp_N)
    difference = chosen - rejected
    loss = (difference * batch.margin).sum()
    if model.routing is not None:
        assert config.moe is not None and model.routing.loads.sum() == len(batch.places) * config.moe.active * len(
            model.routing.loads
        )
    loss.backward()
    return difference.detach(), [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_prompts_that_stand_twice(name: str) -> None:
    rng = np.random.default_rng(1)
    for row_length in (20, 33):
        _, batch = packed("preference", [pair(rng, margin=1 + n / 7) for n in range(11)], row_length)
        folded = with_shared_prompts(batch)
        assert folded.tokens.labels.numel() < batch.tokens.labels.numel()
        (ours, gradients), (plain, wanted) = (logprobs(MODELS[name], one) for one in (folded, batch))
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients, wanted, rtol=1e-8, atol=1e-12)


def test_the_pairs_are_there_in_their_order_with_its_margin_source_and_labels() -> None:
    rng = np.random.default_rng(2)
    _, batch = packed("preference", [pair(rng, margin=float(n)) for n in range(23)], 40)
    folded = with_shared_prompts(batch)

    def pairs(one: PairBatch) -> list[tuple[object, ...]]:
        sides = [(ids.tolist(), labels.tolist()) for ids, labels in whole_sequences(one.tokens, one.at.ends)]
        sources = one.tokens.source_ids.flatten()[one.ends[0]].tolist()
        return list(zip(one.margin.tolist(), sources, sides[0::2], sides[1::2], strict=True))

    assert pairs(folded) == pairs(batch)
    assert folded.weight_by_source(2).tolist() == batch.weight_by_source(2).tolist()
    assert folded.tokens_by_source(2).tolist() == batch.tokens_by_source(2).tolist()


def sides(asked: list[int], chosen: list[int], rejected: list[int], trained_from: tuple[int, int]) -> Pair:
    made = [
        example(np.random.default_rng(0), len(asked) + len(answer), start)
        for answer, start in zip((chosen, rejected), trained_from, strict=True)
    ]
    for one, answer in zip(made, (chosen, rejected), strict=True):
        one.ids[:] = [*asked, *answer]
    return Pair(prompt=made[0].ids[: len(asked)], chosen=made[0], rejected=made[1], margin=None)


def test_by_hand_the_last_token_of_the_prompt_stands_in_both() -> None:
    _, batch = packed("preference", [sides([1, 2, 3], [4, 5], [6], (3, 3))], 12)
    tokens = with_shared_prompts(batch).tokens
    assert tokens.input_ids.tolist() == [[1, 2, 3, 4, 3]]  # the last token of each side is a label alone
    assert tokens.labels.tolist() == [[IGNORED, IGNORED, 4, 5, 6]]
    assert tokens.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert tokens.document_ids.tolist() == [[1, 1, 1, 1, 2]]
    assert tokens.shared is not None and tokens.shared.tolist() == [[1, 1, -1, -1, -1]]
    mask = DocumentMask.from_ids(tokens.document_ids, kernel="sdpa", shared_BT=tokens.shared).mask_B1TT
    assert mask is not None and mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


CASES: dict[str, tuple[Callable[[], Pair], int]] = {
    "answers that begin alike are not shared, for they are trained": (
        lambda: sides([1, 2, 3], [4, 5, 6], [4, 5, 7], (3, 3)),
        2,
    ),
    "other prompts": (lambda: sides([], [1, 2, 3, 4], [5, 2, 3, 4], (2, 2)), 0),
    "another place of the first trained token": (lambda: sides([1, 2, 3, 4], [5], [6], (2, 4)), 1),
    "trained from the first label": (lambda: sides([1], [4, 5], [6, 7], (1, 1)), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_shared(case: str) -> None:
    make, shared = CASES[case]
    tokens = with_shared_prompts(packed("preference", [make()], 16)[1]).tokens
    assert tokens.shared is not None and int((tokens.shared > 0).sum()) == shared


def test_rows_of_padding_alone_stay_a_batch() -> None:
    _, batch = packed("preference", [pair(np.random.default_rng(0), margin=1.0)], 32)
    empty = PairBatch.of(batch.rows(0, 0).tokens, torch.zeros(0, 32))
    assert len(with_shared_prompts(empty)) == 0 and with_shared_prompts(empty).tokens.labels.shape == (1, 1)


def test_rows_have_few_widths_and_never_more_than_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lifecycle.batch.shared_prompts.WIDTHS", 8)
    rng = np.random.default_rng(3)
    for row_length in (20, 64):
        _, batch = packed("preference", [pair(rng, margin=1.0) for _ in range(3)], row_length)
        width = with_shared_prompts(batch).tokens.labels.shape[1]
        assert width % 8 == 0 or width == row_length
        assert width <= row_length
