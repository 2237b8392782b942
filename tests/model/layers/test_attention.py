"""Every kernel gives the answer of the formula."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lifecycle.errors import UserError
from lifecycle.model import DocumentMask, best_kernel, check_kernel, count_pieces
from lifecycle.model.layers.attention import Kernel, attention, cached_attention, slide, varlen_is_told_groups

IDS = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 1, 1]])


def rows(T: int) -> Tensor:
    """Three rows: several documents and padding, two documents, one document."""
    return IDS.repeat_interleave(T // 8, dim=1)


def qkv(
    T: int, *, heads: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, T, heads, 16), (3, T, kv_heads, 16), (3, T, kv_heads, 16))
    q, k, v = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes)
    return q, k, v


def formula(q: Tensor, k: Tensor, v: Tensor, ids: Tensor, window: int = 10**9) -> Tensor:
    """Position by position, head by head."""
    B, T, H, K = q.shape
    group = H // k.shape[2]
    out = torch.empty_like(q)
    for b in range(B):
        for t in range(T):
            seen = [s for s in range(t + 1) if ids[b, s] == ids[b, t] and s > t - window]
            for h in range(H):
                weights = torch.softmax(k[b, seen, h // group] @ q[b, t, h] / K**0.5, 0)
                out[b, t, h] = weights @ v[b, seen, h // group]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_sdpa_is_the_formula(kv_heads: int) -> None:
    q, k, v = qkv(8, kv_heads=kv_heads)
    with torch.no_grad():
        found = attention(q, k, v, DocumentMask.from_ids(IDS, kernel="sdpa"))
        torch.testing.assert_close(found, formula(q, k, v, IDS))
        alone = attention(q, k, v, None)
        torch.testing.assert_close(alone, formula(q, k, v, torch.ones_like(IDS)))


@pytest.mark.parametrize("T", [256, 520, 1096])  # one block of queries, several, several of the larger size
def test_long_rows_are_cut_into_blocks_without_a_trace(T: int) -> None:
    q, k, v = qkv(T)
    ids = rows(T)
    whole = DocumentMask.from_ids(ids, kernel="sdpa").mask_B1TT
    q_BHTK, k_BHTK, v_BHTK = (x.repeat_interleave(4 // x.shape[2], dim=2).transpose(1, 2) for x in (q, k, v))
    expected = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=whole).transpose(1, 2)
    found = attention(q, k, v, DocumentMask.from_ids(ids, kernel="sdpa"))
    torch.testing.assert_close(found, expected)
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(found, (q, k, v), up), torch.autograd.grad(expected, (q, k, v), up))


@pytest.mark.parametrize("T", [256, 520, 1096])
def test_a_row_of_one_document_needs_no_mask(T: int) -> None:
    q, k, v = qkv(T)
    ones = torch.ones(3, T, dtype=torch.long)
    torch.testing.assert_close(attention(q, k, v, None), attention(q, k, v, DocumentMask.from_ids(ones, kernel="sdpa")))


@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_window_shows_the_nearest_positions_only(window: int) -> None:
    q, k, v = qkv(8)
    cpu = torch.device("cpu")
    with torch.no_grad():
        near = slide(DocumentMask.from_ids(IDS, kernel="sdpa"), window, 8, cpu)
        torch.testing.assert_close(attention(q, k, v, near), formula(q, k, v, IDS, window))
        alone = attention(q, k, v, slide(None, window, 8, cpu))
        torch.testing.assert_close(alone, formula(q, k, v, torch.ones_like(IDS), window))
    bounded = slide(DocumentMask.from_ids(IDS, kernel="varlen"), window, 8, cpu)
    assert bounded is not None and bounded.window == (None if window == 8 else window)


def test_blocks_of_a_long_row_leave_out_what_no_window_reaches() -> None:
    q, k, v = qkv(520)
    positions = torch.arange(520)
    for documents in (None, DocumentMask.from_ids(rows(520), kernel="sdpa")):
        near = slide(documents, 30, 520, torch.device("cpu"))
        mask = (positions[:, None] >= positions) & (positions[:, None] - positions < 30)
        whole = mask if documents is None else documents.mask_B1TT & mask  # type: ignore[operator]
        q_BHTK, k_BHTK, v_BHTK = (x.transpose(1, 2) for x in (q, k, v))
        wanted = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=whole, enable_gqa=True)
        torch.testing.assert_close(attention(q, k, v, near), wanted.transpose(1, 2))


def test_boundaries_are_the_first_positions_of_pieces_filled_up_with_the_end() -> None:
    starts = DocumentMask.from_ids(IDS, kernel="varlen").starts_S
    assert starts is not None and starts.dtype == torch.int32
    assert starts.tolist()[:7] == [0, 3, 5, 6, 8, 9, 16]
    assert starts.tolist()[7:] == [24] * 58  # 64 slots and the end
    assert count_pieces(IDS) == 7


def test_the_number_of_slots_changes_rarely_and_never_cuts_a_piece() -> None:
    for T in (63, 64, 65, 200):
        every = torch.arange(T)[None]
        starts = DocumentMask.from_ids(every, kernel="varlen").starts_S
        assert starts is not None
        assert starts.tolist() == [*range(T)] + [T] * (len(starts) - T)
        assert len(starts) in (65, 129, 257)
        assert torch.equal(starts, DocumentMask.from_ids(every, kernel="varlen", pieces=T).starts_S)  # type: ignore[arg-type]


def test_without_cuda_only_sdpa_is_offered() -> None:
    cpu = torch.device("cpu")
    assert best_kernel(cpu, torch.bfloat16) == "sdpa"
    check_kernel("sdpa", cpu)
    with pytest.raises(UserError, match="hardware.attention is flash, which runs on CUDA only, not on cpu"):
        check_kernel("flash", cpu)
    with pytest.raises(UserError, match="hardware.attention is cudnn, which runs on CUDA only, not on cpu"):
        check_kernel("cudnn", cpu)


def older(
    q_NHK: Tensor,
    k_NGK: Tensor,
    v_NGK: Tensor,
    starts: Tensor,
    starts_k: Tensor,
    longest: int,
    longest_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """torch's kernel as 2.11 has it: key-value heads are shared without a word, a list of boundaries, a window."""
    k_NGK, v_NGK = (x.repeat_interleave(q_NHK.shape[1] // x.shape[1], dim=1) for x in (k_NGK, v_NGK))
    assert window_size[1] == 0 and longest == longest_k and starts is starts_k
    place = torch.arange(len(q_NHK), device=q_NHK.device)
    piece = torch.bucketize(place, starts, right=True)
    seen = (piece[:, None] == piece) & (place[:, None] >= place)
    if window_size[0] >= 0:
        seen &= place[:, None] - place <= window_size[0]
    q, k, v = (x.transpose(0, 1) for x in (q_NHK, k_NGK, v_NGK))
    # heads behind positions, as a kernel may lay them out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1)


def newer(*arguments: Any, enable_gqa: bool = False, **options: Any) -> Tensor:
    """As later versions have it."""
    q, k, v, *rest = arguments
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return older(q, k, v, *rest, **options)


@pytest.mark.parametrize("kernel", [older, newer])
@pytest.mark.parametrize(("kv_heads", "window"), [(1, 520), (2, 520), (4, 520), (2, 3)])
def test_torchs_variable_length_kernel_is_called_as_each_admitted_version_takes_it(
    kernel: Callable[..., Tensor], kv_heads: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    varlen_is_told_groups.cache_clear()
    try:
        documents = DocumentMask.from_ids(IDS, kernel="varlen")
        assert documents.tells_groups == (kernel is newer)
    finally:
        varlen_is_told_groups.cache_clear()
    q, k, v = qkv(8, kv_heads=kv_heads)
    cpu = torch.device("cpu")
    wanted = attention(q, k, v, slide(DocumentMask.from_ids(IDS, kernel="sdpa"), window, 8, cpu))
    found = attention(q, k, v, slide(documents, window, 8, cpu))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), (q, k, v)), torch.autograd.grad(wanted.square().sum(), (q, k, v))
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (1, 2, 0, 3)])
@pytest.mark.parametrize("new", [1, 3])
def test_the_layout_of_a_kernels_result_does_not_matter(
    new: int, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, *s, 8, generator=generator, dtype=torch.bfloat16) for s in ((new, 6), (2, 9), (2, 9)))
    mask = torch.ones(2, 1, new, 9, dtype=torch.bool)
    wanted, plain = cached_attention(q, k, v, mask), F.scaled_dot_product_attention

    def kernel(*arguments: Any, **options: Any) -> Tensor:
        out = plain(*arguments, **options)
        return out.permute(order).contiguous().permute([order.index(i) for i in range(4)])

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    assert torch.equal(cached_attention(q, k, v, mask), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kernel", ["sdpa", "varlen", "flash", "cudnn"])
@pytest.mark.parametrize(("kv_heads", "window"), [(2, 520), (4, 520), (2, 100)])
def test_every_kernel_on_cuda_gives_the_answer_of_the_cpu(kernel: Kernel, kv_heads: int, window: int) -> None:
    device = torch.device("cuda")
    if kernel in ("flash", "cudnn"):
        pytest.importorskip("flash_attn" if kernel == "flash" else "cudnn")
    q, k, v = qkv(520, kv_heads=kv_heads)
    halves = [x.detach().to(device, torch.bfloat16).requires_grad_() for x in (q, k, v)]
    ids = rows(520)
    up = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for documents in (ids, None):
        plain = None if documents is None else DocumentMask.from_ids(documents, kernel="sdpa")
        wanted = attention(q, k, v, slide(plain, window, 520, torch.device("cpu")))
        wanted_grads = torch.autograd.grad(wanted, (q, k, v), up)
        on_device = None if documents is None else DocumentMask.from_ids(documents.to(device), kernel=kernel)
        found = attention(halves[0], halves[1], halves[2], slide(on_device, window, 520, device))
        found_grads = torch.autograd.grad(found, halves, up.to(device, torch.bfloat16))
        for a, b in zip((found, *found_grads), (wanted, *wanted_grads), strict=True):
            assert (a.cpu().double() - b).norm() / b.norm() < 2e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_one_query_a_row_is_torchs_own_attention(kv_heads: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, *shape, generator=generator).to(dtype) for shape in ((1, 6, 8), *[(kv_heads, 9, 8)] * 2))
    seen = torch.arange(9) <= torch.tensor([0, 4, 8])[:, None, None, None]
    added = torch.zeros(3, 1, 1, 9).masked_fill(~seen, -torch.inf)
    for scale in (None, 0.3):
        found = cached_attention(q, k, v, added, scale=scale)
        wanted = F.scaled_dot_product_attention(
            q.transpose(1, 2), k, v, attn_mask=seen, scale=scale, enable_gqa=True
        ).transpose(1, 2)
        torch.testing.assert_close(found, wanted)
    first = v[0, :, 0].repeat_interleave(6 // kv_heads, dim=0)  # what the row that sees one slot takes whole
    torch.testing.assert_close(cached_attention(q, k, v, added)[0, 0], first)
