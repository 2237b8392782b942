"""Attention by blocks of queries is attention: values and gradients of the formula under any mask."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifecycle.model import DocumentMask
from lifecycle.model.layers.attention import attention, lower_triangle, slide
from lifecycle.model.layers.visible import BLOCK, attend_by_block, visible_blocks

CPU = torch.device("cpu")


def qkv(B: int, T: int, *, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, T, heads, 8), (B, T, kv_heads, 8), (B, T, kv_heads, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def by_formula(q: Tensor, k: Tensor, v: Tensor, mask_B1TT: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k') v with plain products."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhqs,bshk->bqhk", scores.masked_fill(~mask_B1TT, float("-inf")).softmax(-1), v)


def random_mask(B: int, T: int, share: float) -> Tensor:
    """Every query sees itself and a share of the earlier positions, without order."""
    generator = torch.Generator().manual_seed(1)
    seen = (torch.rand(B, 1, T, T, generator=generator) < share) & lower_triangle(T, CPU)
    return seen | torch.eye(T, dtype=torch.bool)


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, found: Tensor, scale: float | None = None) -> None:
    wanted = by_formula(q, k, v, mask, scale)
    torch.testing.assert_close(found, wanted)
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(found, (q, k, v), up), torch.autograd.grad(wanted, (q, k, v), up))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("T", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 37])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_any_mask_gives_the_formula(T: int, share: float, kv_heads: int) -> None:
    q, k, v = qkv(2, T, kv_heads=kv_heads)
    mask = random_mask(2, T, share)
    check(q, k, v, mask, attend_by_block(q, k, v, visible_blocks(mask), scale=0.3), 0.3)


def shared_prompts() -> tuple[Tensor, Tensor]:
    """Two rows of a prompt of 100 with five answers of 90; in the second the prompt is followed by a document of its
    own."""
    ids = torch.tensor([[1] * 100 + sum(([n] * 90 for n in range(1, 6)), [])] * 2)
    shared = torch.tensor([[1] * 100 + [-1] * 450] * 2)
    shared[1, 460:] = 0
    ids[1, 460:] = 9
    return ids, shared


def test_answers_see_their_prompt_and_themselves() -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    assert documents.mask_B1TT is not None
    q, k, v = qkv(*ids.shape)
    check(q, k, v, documents.mask_B1TT, attention(q, k, v, documents))


def test_a_window_has_blocks_of_its_own() -> None:
    ids, shared = shared_prompts()
    near = slide(DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared), 50, ids.shape[1], CPU)
    assert near is not None and near.mask_B1TT is not None and near.blocks
    q, k, v = qkv(*ids.shape)
    check(q, k, v, near.mask_B1TT, attention(q, k, v, near))


def test_a_block_holds_what_its_queries_see_and_nothing_else() -> None:
    ids, shared = shared_prompts()
    blocks = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared).blocks
    assert blocks is not None
    first, *rest = blocks
    assert (first.rows, first.queries, first.keys) == (slice(0, 2), slice(0, 192), slice(0, 192))  # both rows at once
    second = rest[0]  # positions 192 to 383: the prompt, and the answers from the one at 190
    assert isinstance(second.keys, Tensor) and second.keys.tolist() == [*range(100), *range(190, 384)]
    assert second.hidden.shape == (1, 192, 294)
    last = rest[-1]  # from 384 on: an answer from 370 to 459, which sees the prompt, and a document of its own
    assert isinstance(last.keys, Tensor) and last.keys.tolist() == [*range(100), *range(370, 550)]


def test_documents_are_stretches_and_need_no_copy() -> None:
    ids = torch.tensor([[1] * 300 + [2] * 300, [1] * 192 + [2] * 408])
    blocks = DocumentMask.from_ids(ids, kernel="sdpa").blocks
    assert blocks is not None
    assert [(block.rows, block.queries, block.keys) for block in blocks] == [
        (slice(0, 2), slice(0, 192), slice(0, 192)),
        (slice(0, 1), slice(192, 384), slice(0, 384)),
        (slice(1, 2), slice(192, 384), slice(192, 384)),
        (slice(0, 1), slice(384, 576), slice(300, 576)),
        (slice(1, 2), slice(384, 576), slice(192, 576)),
        (slice(0, 1), slice(576, 600), slice(300, 600)),
        (slice(1, 2), slice(576, 600), slice(192, 600)),
    ]


def test_no_rows_have_no_blocks() -> None:
    ids = torch.zeros(0, 300, dtype=torch.long)
    q, k, v = qkv(0, 300)
    assert attention(q, k, v, DocumentMask.from_ids(ids, kernel="sdpa")).shape == (0, 300, 4, 8)


@pytest.mark.parametrize("which", range(3))
def test_numbers_of_a_head_need_not_be_neighbours(which: int) -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    assert documents.mask_B1TT is not None
    given = qkv(*ids.shape)
    given[which] = given[which].detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    q, k, v = given
    check(q, k, v, documents.mask_B1TT, attention(q, k, v, documents))


def test_gradients_by_differences() -> None:
    q, k, v = (x.detach()[..., :3].clone().requires_grad_() for x in qkv(1, 7))
    mask = random_mask(1, 7, 0.5)
    blocks = visible_blocks(mask)
    assert torch.autograd.gradcheck(lambda *x: attend_by_block(x[0], x[1], x[2], blocks, scale=None), (q, k, v))


def test_the_same_as_without_blocks_in_half_precision_and_under_autocast() -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    q, k, v = qkv(*ids.shape, dtype=torch.bfloat16)
    whole = attention(q, k, v, replace(documents, blocks=None))
    found = attention(q, k, v, documents)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, whole, atol=2e-2, rtol=2e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = attention(q.float(), k.float(), v, documents)  # norms of queries and keys leave them in fp32
    assert torch.equal(under, found)


def test_compiled_code_gets_no_blocks() -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared, compiled=True)
    assert documents.blocks is None
    near = slide(documents, 50, ids.shape[1], CPU)
    assert near is not None and near.blocks is None


@pytest.mark.parametrize("window", [50, 10**6])
def test_compiled_code_leaves_the_blocks_of_a_mask_alone(window: int) -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    q, k, v = qkv(*ids.shape)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, slide(documents, window, ids.shape[1], CPU))

    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), attend(q, k, v))


def test_what_autograd_keeps_does_not_grow_with_the_blocks() -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    q, k, v = qkv(*ids.shape)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attention(q, k, v, documents)
    sums = 4 * ids.numel() * 8  # one number a head and query, in the kernel's own precision
    assert sum(kept.values()) <= sum(x.nbytes for x in (q, k, v, out)) + sums
