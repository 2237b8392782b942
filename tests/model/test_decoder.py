"""The network: documents keep to themselves, and weights come from the seed and their names alone."""

from dataclasses import replace

import pytest
import torch
from tests.model.variants import VARIANTS
from tests.toy import toy
from torch import Tensor

from lifecycle.losses import linear_cross_entropy
from lifecycle.model import Decoder, DocumentMask, build, compile_model

TINY = toy(family="qwen3", qk_norm=True)
LENGTHS = (5, 1, 7, 3)  # documents of the row; what is left of it is padding
T = 20


def packed(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One row: input ids, position ids, document ids."""
    ids = torch.randint(1, 96, (1, T), generator=torch.Generator().manual_seed(seed))
    positions, documents = torch.zeros(1, T, dtype=torch.long), torch.zeros(1, T, dtype=torch.long)
    start = 0
    for number, length in enumerate(LENGTHS, start=1):
        positions[0, start : start + length] = torch.arange(length)
        documents[0, start : start + length] = number
        start += length
    return ids, positions, documents


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build(TINY, seed=1)


def logits(model: Decoder, ids: Tensor, positions: Tensor, documents: Tensor | None) -> Tensor:
    seen = None if documents is None else DocumentMask.from_ids(documents, kernel="sdpa")
    with torch.no_grad():
        return model.logits(model(ids, positions, seen))


def test_what_happens_in_one_document_leaves_no_bit_in_another(model: Decoder) -> None:
    ids, positions, documents = packed()
    before = logits(model, ids, positions, documents)
    for number in range(len(LENGTHS) + 1):
        here = documents == number
        changed = torch.where(here, (ids + 7) % 96, ids)
        after = logits(model, changed, positions, documents)
        assert torch.equal(after[~here], before[~here])
        assert not torch.equal(after[here], before[here])


def test_later_tokens_leave_no_bit_in_earlier_ones(model: Decoder) -> None:
    ids, positions, documents = packed()
    changed = ids.clone()
    changed[0, 10] += 1  # the fifth of seven in its document
    before, after = (logits(model, x, positions, documents) for x in (ids, changed))
    assert torch.equal(before[0, :10], after[0, :10])
    assert not torch.equal(before[0, 10:13], after[0, 10:13])


def test_a_document_packed_is_a_document_alone(model: Decoder) -> None:
    ids, positions, documents = packed()
    together = logits(model, ids, positions, documents)
    start = 0
    for length in LENGTHS:
        alone = logits(model, ids[:, start : start + length], torch.arange(length)[None], None)
        torch.testing.assert_close(together[:, start : start + length], alone, rtol=1e-5, atol=1e-5)
        start += length


def test_the_order_of_documents_and_padding_never_change_the_loss(model: Decoder) -> None:
    ids, positions, documents = packed()
    labels = torch.where(documents > 0, (ids * 5 + 1) % 96, -100)
    order = torch.cat([torch.nonzero(documents[0] == number)[:, 0] for number in (3, 1, 4, 2)])
    narrow = [x[:, order] for x in (ids, positions, documents, labels)]
    losses = []
    for i, p, d, y in ((ids, positions, documents, labels), narrow):
        hidden = model(i, p, DocumentMask.from_ids(d, kernel="sdpa"))
        losses.append(linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, y.flatten())[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_only_distances_between_positions_matter(model: Decoder) -> None:
    ids, _, _ = packed()
    here, there = (logits(model, ids, torch.arange(T)[None] + shift, None) for shift in (0, 31))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_weights_follow_from_the_seed_and_their_names() -> None:
    one, two, other = (build(TINY, seed=seed).state_dict() for seed in (3, 3, 4))
    deeper = build(replace(TINY, layers=3), seed=3).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])
    # residual writers are scaled by depth; everything else of a deeper model is the same
    for name in one:
        scale = (2 / 3) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        torch.testing.assert_close(deeper[name], one[name] * scale)


def test_initial_weights_have_the_stated_spread() -> None:
    weights = build(replace(TINY, width=256, ffn_width=256, vocab_size=1024), seed=0).state_dict()
    assert weights["embedding.weight"].std().item() == pytest.approx(0.2, rel=0.01)
    assert weights["blocks.1.ffn.up_proj.weight"].std().item() == pytest.approx(0.2, rel=0.02)
    assert weights["blocks.1.ffn.down_proj.weight"].std().item() == pytest.approx(0.2 / 2, rel=0.02)
    assert bool((weights["blocks.0.attention.q_norm.weight"] == 1).all())


@pytest.mark.parametrize("name", ["qwen3", "qwen3_moe", "deepseek_v3"])
def test_a_residual_init_of_zero_makes_every_block_the_identity_and_leaves_the_other_weights(name: str) -> None:
    scaled, zero = (build(replace(VARIANTS[name], residual_init=kind), seed=0) for kind in ("scaled", "zero"))
    for (label, was), now in zip(scaled.named_parameters(), zero.parameters(), strict=True):
        writes = any(part in label for part in ("o_proj", "down_proj"))
        assert torch.equal(now, torch.zeros_like(was) if writes else was), label
    ids, positions, _ = packed()
    torch.testing.assert_close(zero(ids, positions, None), zero.norm(zero.embedding(ids)))


def gradients(model: Decoder) -> dict[str, Tensor]:
    ids, positions, documents = packed()
    model.zero_grad(set_to_none=True)
    hidden = model(ids, positions, DocumentMask.from_ids(documents, kernel="sdpa"))
    linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, ids.flatten().roll(-1))[0].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_gradient(model: Decoder) -> None:
    lean = Decoder(TINY, activation_checkpointing=True)
    lean.load_state_dict(model.state_dict())
    kept, recomputed = gradients(model), gradients(lean)
    assert kept.keys() == recomputed.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_autocast_keeps_the_stream_in_bf16_and_the_answer_near(model: Decoder) -> None:
    ids, positions, documents = packed()
    exact = logits(model, ids, positions, documents)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(ids, positions, DocumentMask.from_ids(documents, kernel="sdpa"))
        near = model.logits(hidden)
    assert hidden.dtype == near.dtype == torch.bfloat16
    assert (near.float() - exact).norm() / exact.norm() < 3e-2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch imports it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # and looks at it
@pytest.mark.parametrize("unit", ["model", "block"])
def test_compiling_keeps_names_and_answers(model: Decoder, unit: str) -> None:
    compiled = build(TINY, seed=1)
    compile_model(compiled, unit=unit)  # type: ignore[arg-type]
    assert compiled.state_dict().keys() == model.state_dict().keys()
    wanted = gradients(model)
    for name, found in gradients(compiled).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-4)
