"""Laws of rows of samples: every token once, shared prompts change no number, and rows are as wide as is cheapest."""

import random
from collections.abc import Sequence

import pytest
import torch
from tests.stages.reinforcement.made import LONG, Letters
from torch import Tensor

from lifecycle.batch import IGNORED, Kept, Places, Rollout
from lifecycle.losses import token_logprobs
from lifecycle.model import Decoder, DocumentMask, build
from lifecycle.stages.reinforcement.learning.rows import laid, row_width


def rollout(groups: Sequence[tuple[list[int], list[list[int]]]]) -> Rollout:
    """Of each prompt and its completions."""
    whole = [(number, prompt, one) for number, (prompt, said) in enumerate(groups) for one in said]
    longest = max(len(one) for *_, one in whole)
    token_ids = torch.zeros(len(whole), longest, dtype=torch.long)
    for n, (*_, one) in enumerate(whole):
        token_ids[n, : len(one)] = torch.tensor(one)
    length = torch.tensor([len(one) for *_, one in whole])
    zeros = torch.zeros(len(whole), longest)
    return Rollout(
        prompt_id=torch.tensor([number for number, *_ in whole]),
        sample=torch.arange(len(whole)),
        seed=torch.arange(len(whole)),
        prompts=[prompt for _, prompt, _ in whole],
        token_ids=token_ids,
        length=length,
        sampled=torch.arange(longest) < length[:, None],
        text=[Letters().decode(one) for *_, one in whole],
        logprobs=zeros,
        full_logprobs=zeros,
        entropy=zeros,
        kept=Kept.whole(len(whole) * longest),
        stop_reason=["length"] * len(whole),
        weights_version=0,
    )


def made(seed: int) -> Rollout:
    draw = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [draw.randrange(1, 62) for _ in range(draw.randint(1, most))]

    return rollout([(ids(20), [ids(12) for _ in range(draw.randint(1, 7))]) for _ in range(draw.randint(1, 6))])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_every_trained_token_has_its_label_position_and_place(seed: int, shared: bool) -> None:
    given = made(seed)
    trained = given.sampled & (torch.rand(given.sampled.shape, generator=torch.Generator().manual_seed(seed)) < 0.8)
    longest = max(len(p) - 1 + int(c) for p, c in zip(given.prompts, given.length, strict=True))
    rows = laid(given, trained, [n % 3 for n in range(len(given))], width=longest + seed, shared=shared)
    at = Places.of(rows.tokens)
    assert sorted(rows.order) == trained.any(1).nonzero()[:, 0].tolist()
    labels = rows.tokens.labels.flatten()[at.places]
    assert torch.equal(labels, given.token_ids.flatten()[rows.place_of_token])
    T = given.token_ids.shape[1]
    sample, token = rows.place_of_token // T, rows.place_of_token % T
    assert [rows.order[q] for q in at.sequence.tolist()] == sample.tolist()
    before = torch.tensor([len(given.prompts[n]) - 1 for n in sample.tolist()])
    assert torch.equal(rows.tokens.position_ids.flatten()[at.places], before + token)
    assert rows.tokens.source_ids.flatten()[at.places].tolist() == [n % 3 for n in sample.tolist()]
    assert (rows.tokens.labels != IGNORED).sum() == trained.sum()


def alone(model: Decoder, given: Rollout) -> list[Tensor]:
    """The log-probabilities of every completion, each in a forward pass of its own."""
    out = []
    for n, prompt in enumerate(given.prompts):
        ids = torch.tensor([*prompt, *given.completion(n)])
        hidden = model(ids[None, :-1], torch.arange(len(ids) - 1)[None])[0, len(prompt) - 1 :]
        out.append(token_logprobs(hidden, model.head_weight, ids[len(prompt) :])[0])
    return out


@pytest.mark.parametrize("seed", range(4))
def test_shared_prompts_give_the_values_and_gradients_of_each_sample_alone(seed: int) -> None:
    given = made(seed)
    model = build(LONG, seed=1).double()
    rows = laid(given, given.sampled, [0] * len(given), width=96, shared=True)
    tokens, at = rows.tokens, Places.of(rows.tokens)
    documents = DocumentMask.from_ids(tokens.document_ids, kernel="sdpa", shared_BT=tokens.shared)
    hidden = model(tokens.input_ids, tokens.position_ids, documents).flatten(0, 1)[at.places]
    logp, _ = token_logprobs(hidden, model.head_weight, tokens.labels.flatten()[at.places])
    flat = torch.zeros(given.token_ids.numel(), dtype=torch.float64)
    factor = torch.rand(flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flat = flat.index_copy(0, rows.place_of_token, logp)
    (flat * factor).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    each, T = alone(model, given), given.token_ids.shape[1]
    for n, values in enumerate(each):
        torch.testing.assert_close(flat[n * T : n * T + len(values)], values, rtol=1e-10, atol=1e-10)
    sum((v * factor[n * T : n * T + len(v)]).sum() for n, v in enumerate(each)).backward()  # type: ignore[union-attr]
    for mine, other in zip(grads, (p.grad for p in model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-9)


def test_prompts_are_computed_once_where_they_are_long() -> None:
    given = rollout([([5] * 50, [[7, 8, 9]] * 16)])
    rows = laid(given, given.sampled, [0] * 16, width=128, shared=True)
    assert rows.tokens.labels.shape == (1, 128) and int((rows.tokens.document_ids > 0).sum()) == 49 + 48


def positions_and_cost(given: Rollout, width: int, of_row: int) -> tuple[int, int]:
    """Of the rows that are at most so wide. width: of the model."""
    B, W = laid(given, given.sampled, [0] * len(given), width=of_row, shared=True).tokens.labels.shape
    return B * W, B * W * (6 * width + W)


@pytest.mark.parametrize(
    ("P", "C", "samples", "prompts", "width"),
    [(64, 63, 8, 4, 384), (100, 24, 8, 32, 256), (64, 64, 64, 1, 384), (300, 40, 4, 3, 64), (9, 20, 5, 7, 64)],
)
def test_rows_cost_hardly_more_than_those_of_the_best_width(
    P: int, C: int, samples: int, prompts: int, width: int
) -> None:
    given = rollout([([5] * P, [[7] * C] * samples)] * prompts)
    found = row_width(given, [True] * len(given), shared=True, width=width, most=2048)
    best = min(positions_and_cost(given, width, one)[1] for one in range(-(-(P + C) // 64) * 64, 2048, 64))
    assert positions_and_cost(given, width, found)[1] <= 1.1 * best
    assert positions_and_cost(given, width, found)[0] < prompts * samples * (P - 1 + C)


def test_a_sample_is_never_cut_and_what_is_not_wanted_has_no_say() -> None:
    given = rollout([([5] * 4, [[7] * 300, [7] * 4])])
    assert row_width(given, [True, True], shared=True, width=64, most=128) == 303
    assert row_width(given, [False, True], shared=True, width=64, most=128) <= 64
    assert row_width(given, [False, False], shared=True, width=64, most=128) == 128
