"""Our own attention for a CPU is attention: values and gradients of the formula under any mask."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.processors import use_build_with
from torch import Tensor

from lifecycle.model import DocumentMask
from lifecycle.model.layers.attention import attention, lower_triangle, slide
from lifecycle.model.layers.cpu import packed_attention as ours
from lifecycle.model.layers.cpu.packed_attention import packed_attention

pytestmark = pytest.mark.skipif(not ours.is_there(), reason="needs a C compiler")

CPU = torch.device("cpu")
TILE = 64

Given = tuple[Tensor, Tensor, Tensor]


def each(made: Callable[[Any], Tensor], of: Sequence[Any]) -> Given:
    q, k, v = of
    return made(q), made(k), made(v)


def qkv(B: int, T: int, *, heads: int = 4, kv_heads: int = 2, width: int = 8, v_width: int | None = None) -> Given:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, T, heads, width), (B, T, kv_heads, width), (B, T, kv_heads, v_width or width))
    return each(lambda shape: torch.randn(shape, generator=generator).requires_grad_(), shapes)


def by_formula(q: Tensor, k: Tensor, v: Tensor, mask_BTT: Tensor, scale: float) -> Tensor:
    """softmax(scale q k') v with plain products in float64."""
    q, k, v = q.double(), *(x.double().repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) * scale
    return torch.einsum("bhqs,bshk->bqhk", scores.masked_fill(~mask_BTT[:, None], float("-inf")).softmax(-1), v)


def random_mask(B: int, T: int, share: float) -> Tensor:
    """Every query sees itself and a share of the earlier positions, without order."""
    generator = torch.Generator().manual_seed(1)
    seen = (torch.rand(B, T, T, generator=generator) < share) & lower_triangle(T, CPU)
    return seen | torch.eye(T, dtype=torch.bool)


def check(given: Given, mask: Tensor, found: Tensor, scale: float, atol: float = 2e-6) -> None:
    wanted = by_formula(*given, mask, scale)
    torch.testing.assert_close(found.double(), wanted, atol=atol, rtol=1e-5)
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)).to(found.dtype)
    found_g = torch.autograd.grad(found, given, up)
    for one, other in zip(found_g, torch.autograd.grad(wanted, given, up.double()), strict=True):
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double(), other.double(), atol=3 * atol * largest, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("T", [1, TILE - 1, TILE, TILE + 1, 2 * TILE + 37])
@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_any_mask_gives_the_formula(T: int, share: float, kv_heads: int) -> None:
    given, mask = qkv(2, T, kv_heads=kv_heads), random_mask(2, T, share)
    check(given, mask, packed_attention(*given, mask, 0.3), 0.3)


@pytest.mark.parametrize(("width", "v_width"), [(1, 1), (16, 16), (20, 24), (64, 32), (33, 128)])
def test_heads_of_any_width(width: int, v_width: int) -> None:
    given, mask = qkv(1, 70, width=width, v_width=v_width), random_mask(1, 70, 0.5)
    check(given, mask, packed_attention(*given, mask, 0.2), 0.2, atol=5e-6)


@pytest.mark.parametrize("T", [1, 63, 64, 65, 200])
def test_without_a_mask_a_query_sees_all_up_to_itself(T: int) -> None:
    given = qkv(2, T)
    check(given, lower_triangle(T, CPU)[None].expand(2, T, T), attention(*given, None), 8**-0.5)
    whole = packed_attention(*given, lower_triangle(T, CPU)[None], 8**-0.5)  # one mask for all rows
    assert torch.equal(attention(*given, None), whole)


def test_by_hand() -> None:
    """Two positions of one number: the second sees scores 0 and ln 3, so a quarter of 4 and three quarters of 8."""
    q, k = torch.ones(1, 2, 1, 1), torch.tensor([1.0, 3.0]).log().view(1, 2, 1, 1)
    v = torch.tensor([4.0, 8.0]).view(1, 2, 1, 1)
    assert packed_attention(q, k, v, None, 1.0).flatten().tolist() == pytest.approx([4.0, 7.0])


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
    given = qkv(*ids.shape)
    check(given, documents.mask_B1TT[:, 0], attention(*given, documents), 8**-0.5)


def test_a_window() -> None:
    ids, shared = shared_prompts()
    near = slide(DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared), 50, ids.shape[1], CPU)
    assert near is not None and near.mask_B1TT is not None
    given = qkv(*ids.shape)
    check(given, near.mask_B1TT[:, 0], attention(*given, near), 8**-0.5)


def test_no_rows() -> None:
    ids = torch.zeros(0, 300, dtype=torch.long)
    assert attention(*qkv(0, 300), DocumentMask.from_ids(ids, kernel="sdpa")).shape == (0, 300, 4, 8)
    assert packed_attention(*qkv(2, 0), None, 1.0).shape == (2, 0, 4, 8)


@pytest.mark.parametrize("which", range(3))
def test_numbers_of_a_head_need_not_be_neighbours(which: int) -> None:
    given, mask = qkv(2, 130), random_mask(2, 130, 0.5)
    apart = given[which].detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    given = each(lambda x: apart if x is given[which] else x, given)
    check(given, mask, packed_attention(*given, mask.repeat_interleave(2, -1)[..., ::2], 0.3), 0.3)


@pytest.mark.parametrize("T", [65, 300])
def test_half_precision_is_the_formula_to_its_digits(T: int) -> None:
    given = each(lambda x: x.detach().bfloat16().requires_grad_(), qkv(2, T, width=64))
    mask = random_mask(2, T, 0.3)
    found = packed_attention(*given, mask, 64**-0.5)
    assert found.dtype == torch.bfloat16
    check(given, mask, found, 64**-0.5, atol=2e-2)


def test_autocast_attends_in_its_dtype() -> None:
    q, k, v = (x.detach() for x in qkv(1, 100))
    half = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = attention(q, k.float(), v.bfloat16(), None)  # norms of queries and keys leave them in fp32
    assert torch.equal(under, half)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_with_any_number_of_threads_and_for_a_row_alone(dtype: torch.dtype) -> None:
    given, mask = each(lambda x: x.detach().to(dtype).requires_grad_(), qkv(3, 150)), random_mask(3, 150, 0.4)

    def made(rows: slice) -> list[Tensor]:
        parts = each(lambda x: x[rows], given)
        out = packed_attention(*parts, mask[rows], 0.3)
        return [out, *torch.autograd.grad(out.float().square().sum(), parts)]

    threads, together = torch.get_num_threads(), made(slice(None))
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        for one, other in zip(made(slice(None)), together, strict=True):
            assert torch.equal(one, other)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(made(slice(1, 2)), together, strict=True):
        assert torch.equal(one, other[1:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_vectors_and_shifts_give_the_formula_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build_with("-mno-avx512f", ours, monkeypatch)
    given = each(lambda x: x.detach().to(dtype).requires_grad_(), qkv(2, 130, width=20))
    mask = random_mask(2, 130, 0.3)
    atol = 2e-6 if dtype == torch.float32 else 2e-2
    check(given, mask, packed_attention(*given, mask, 0.3), 0.3, atol=atol)


@pytest.mark.parametrize("which", range(3))
def test_what_is_no_number_is_not_hidden(which: int) -> None:
    given = qkv(1, 130)
    with torch.no_grad():
        given[which][0, 70, 0, 0] = float("nan")
    out = packed_attention(*given, None, 0.3)
    assert out[0, 70, 0].isnan().any() and not out[0, :TILE].isnan().any()
    assert any(gradient.isnan().any() for gradient in torch.autograd.grad(out.sum(), given))


def test_large_scores_do_not_overflow() -> None:
    given, mask = qkv(1, 130), random_mask(1, 130, 0.5)
    check(given, mask, packed_attention(*given, mask, 300.0), 300.0, atol=2e-4)


@pytest.mark.parametrize("window", [50, 10**6])
def test_compiled_code_calls_it_as_plain_code_does(window: int) -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    q, k, v = qkv(*ids.shape)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, slide(documents, window, ids.shape[1], CPU))

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    plain, found = attend(q, k, v), compiled(q, k, v)
    assert torch.equal(found, plain)
    for one, other in zip(*(torch.autograd.grad(x.sum(), (q, k, v)) for x in (found, plain)), strict=True):
        assert torch.equal(one, other)


def test_the_operators_keep_the_laws_of_torch() -> None:
    given, mask = qkv(1, 70), random_mask(1, 70, 0.5)
    torch.library.opcheck(ours._forward, (*given, mask, 0.3))
    torch.library.opcheck(ours._forward, (*given, None, 0.3))


@pytest.mark.parametrize(
    "mask", [torch.ones(1, 5, 5, device="cpu"), torch.ones(3, 5, 5, dtype=torch.bool, device="cpu")]
)
def test_a_mask_that_would_be_read_as_something_else_is_refused(mask: Tensor) -> None:
    with pytest.raises(AssertionError):
        packed_attention(*qkv(2, 5), mask, 1.0)


def test_what_autograd_keeps() -> None:
    q, k, v = qkv(2, 550)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attention(q, k, v, None)
    assert sum(kept.values()) <= sum(x.nbytes for x in (q, k, v, out)) + 4 * 2 * 550 * 4  # a number a head and query


def test_without_a_compiler_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, shared = shared_prompts()
    documents = DocumentMask.from_ids(ids, kernel="sdpa", shared_BT=shared)
    given = qkv(*ids.shape)
    found = attention(*given, documents)
    monkeypatch.setattr(ours, "is_there", lambda: False)
    torch.testing.assert_close(attention(*given, documents), found)
