"""The draw of draw.py for one row a program, in Triton: no sort, few passes over logits that lie in a cache.

    distance a = (greatest logit - logit) / temperature >= 0, so that its bits order as integers do
    pass 1: the greatest logit; the greatest of each of LANES lanes, the k-th of which is a bound of the k-th of all
    pass 2: sums of exp(-a) and a exp(-a); ids within the bound are written down, and put in order
    among these: the k-th distance, or the one that holds top_p of the mass, bit by bit; the threshold; the draw

The k-th greatest of the greatest of lanes has k - 1 above it, so all that a top-k keeps is written down. Where more is
kept than HELD tokens, or more are equal, the bits are searched for over the whole row, which takes many passes. Sums of
probabilities are fp64, each in one order: the same row gives the same bits.

Shapes: R rows (programs), V vocabulary, B of a block of it, L lanes, C tokens that are written down.
"""

import triton
import triton.language as tl

from lifecycle.rollout.sampling.gpu.whole_row import (
    NEVER,
    SMALLEST,
    TIE,
    distances,
    first_above,
    half_way,
    min_p_key,
    row_bits,
    row_draw,
    row_threshold,
    scores,
)
from lifecycle.rollout.sampling.row_sets import FEW

HELD = tl.constexpr(FEW)
"""Tokens that are written down, and lanes: three counts of so many fit an integer."""

WIDEST = tl.constexpr(256)
"""A top-k up to here is found among them, and most other sets."""

AT_ONCE = tl.constexpr(16)
"""Of them, compared with all others at a time."""

INF_BITS = tl.constexpr(0x7F800000)


@triton.jit
def _kth(keys, k, ROUNDS: tl.constexpr):
    """The k-th smallest of HELD integers of 2 ROUNDS + 1 bits, two bits at a time, of which one sum holds three counts;
    all bits set where there are fewer."""
    first = 1 << (2 * ROUNDS)
    found = tl.where(tl.sum((keys < first).to(tl.int32)) < k, first, 0)
    for i in range(ROUNDS):
        step = 1 << (2 * (ROUNDS - 1 - i))
        one, two, three = keys < found + step, keys < found + 2 * step, keys < found + 3 * step
        counts = tl.sum(one.to(tl.int32) + (two.to(tl.int32) << 10) + (three.to(tl.int32) << 20))
        passed = ((counts & 1023) < k).to(tl.int32) + (((counts >> 10) & 1023) < k).to(tl.int32)
        found += step * (passed + ((counts >> 20) < k).to(tl.int32))
    return found


@triton.jit
def _edge_of_mass(keys, mass, wanted):
    """The smallest key up to which the masses sum to `wanted`; all bits set where there is none."""
    found = tl.full([], 0, tl.int32)
    for i in range(31):
        higher = found | (1 << (30 - i))
        below = tl.sum(tl.where(keys < higher, mass, 0.0))
        found = tl.where(below < wanted, higher, found)
    return found


@triton.jit
def _few_edge(
    keys_C, e_C, total, k, top_p, min_p, TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr
):  # fmt: skip
    """The key of the farthest kept token."""
    edge = tl.full([], NEVER, tl.int32)
    if TOP_K:
        edge = _kth(keys_C, k, 15)
    if TOP_P:
        mass_C = e_C.to(tl.float64)
        of = tl.sum(tl.where(keys_C <= edge, mass_C, 0.0)) if TOP_K else total.to(tl.float64)
        edge = tl.minimum(edge, _edge_of_mass(keys_C, mass_C, top_p * of))
    if MIN_P:
        edge = tl.minimum(edge, min_p_key(min_p))
    return edge


@triton.jit
def _few_draw(ids_C, a_C, e_C, held, farthest, least, lse, uniform, GREEDY: tl.constexpr):
    """The token, and the mass of what is kept."""
    places = tl.arange(0, HELD)
    mass_C = tl.where((places < held) & (a_C <= farthest) & (e_C > least), e_C, 0.0).to(tl.float64)
    mass = tl.sum(mass_C)
    place = first_above(mass_C, 0.0, uniform * mass, HELD)
    if GREEDY:
        best = (places < held) & (0.0 - a_C - lse == 0.0 - lse)
        place = tl.min(tl.where(best, places, HELD - 1))
    return tl.sum(tl.where(places == place, ids_C, 0)), mass


@triton.jit
def _greatest(
    logits, seen, banned, penalty, V: tl.constexpr, PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Of each lane."""
    lanes = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        lanes = tl.maximum(lanes, scores(logits, seen, banned, ids, ids < V, penalty, PENALISED, BANS))
    return lanes


@triton.jit
def _bound(lanes, top, temperature, rank):
    """A distance within which `rank` tokens lie at least, in the bits of a bf16, rounded up."""
    lanes_L = tl.max(tl.reshape(lanes, [lanes.shape[0] // HELD, HELD]), 0)
    keys_L = ((top - lanes_L) * (1.0 / temperature)).to(tl.int32, bitcast=True)
    key = tl.minimum((_kth(keys_L >> 16, rank, 7) << 16) | 0xFFFF, INF_BITS)
    return key.to(tl.float32, bitcast=True)


@triton.jit
def _sums(
    logits, seen, banned, top, temperature, penalty, near_bound, scratch, WRITES: tl.constexpr,
    V: tl.constexpr, PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of exp(-a) and of a exp(-a), and how many tokens are within a bound; HELD of their ids are written down, in
    any order."""
    sums, products = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    held = tl.full([], 0, tl.int32)
    if WRITES:
        tl.store(scratch, 0)
        tl.debug_barrier()
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
        e = tl.exp(-a)
        sums += tl.where(ids < V, e, 0.0)
        products += tl.where(ids < V, e * a, 0.0)
        if WRITES:
            near = (ids < V) & (a <= near_bound)
            counter = scratch + tl.zeros([BLOCK], tl.int32)
            places = tl.atomic_add(counter, 1, mask=near, sem="relaxed")
            tl.store(scratch + 1 + places, ids, mask=near & (places < HELD))
    if WRITES:
        tl.debug_barrier()  # what other threads have written
        held = tl.atomic_add(scratch, 0, sem="relaxed")
    return tl.sum(sums), tl.sum(products), held


@triton.jit
def _in_order(scratch, held):
    """(C,) the ids that were written down, ascending; V and up behind them."""
    places = tl.arange(0, HELD)
    ids_C = tl.load(scratch + 1 + places, mask=places < held, other=NEVER)
    before = tl.zeros([HELD], tl.int32)
    for start in range(0, HELD, AT_ONCE):
        if start < held:
            others = start + tl.arange(0, AT_ONCE)
            ids = tl.load(scratch + 1 + others, mask=others < held, other=NEVER)
            before += tl.sum((ids[None, :] < ids_C[:, None]).to(tl.int32), 1)
    tl.store(scratch + 1 + HELD + before, ids_C, mask=places < held)
    tl.debug_barrier()
    return tl.load(scratch + 1 + HELD + places, mask=places < held, other=NEVER)


@triton.jit
def draw_rows(
    logits, seen, banned, uniforms, settings, scratch, out_ids, out_facts, set_counts, set_ids, set_bits,
    logits_stride, seen_stride,
    V: tl.constexpr, GREEDY: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr,
    PENALISED: tl.constexpr, BANS: tl.constexpr, SETS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """settings: fp64 (5,), see `DeviceSampling`. seen (R, V), banned (V,): bytes. scratch: int32 (R, 1 + 2 HELD).
    out_facts: fp32 (3, R), log-probability, untruncated, entropy. set_counts (R,), set_ids (R, HELD),
    set_bits (R, W): see `RowSets`. BLOCK is a multiple of HELD,
    BLOCKS at least the number of blocks."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    seen += row * seen_stride
    scratch += row * (1 + 2 * HELD)
    TRUNCATES: tl.constexpr = GREEDY or TOP_K or TOP_P or MIN_P
    temperature, penalty = tl.load(settings).to(tl.float32), tl.load(settings + 1).to(tl.float32)
    k, top_p, min_p = tl.load(settings + 2).to(tl.int32), tl.load(settings + 3), tl.load(settings + 4)
    uniform = tl.load(uniforms + row)

    lanes = _greatest(logits, seen, banned, penalty, V, PENALISED, BANS, BLOCK)
    top, bound = tl.max(lanes), tl.full([], 0.0, tl.float32)
    if TRUNCATES:
        bound = _bound(lanes, top, temperature, tl.minimum(k, WIDEST) if TOP_K else tl.full([], WIDEST, tl.int32))
    near_bound = bound + 3 * TIE
    total, product, held = _sums(
        logits, seen, banned, top, temperature, penalty, near_bound, scratch, TRUNCATES, V, PENALISED, BANS, BLOCK
    )  # fmt: skip
    lse, least = tl.log(total), SMALLEST * total
    entropy = lse + product / total

    farthest = tl.full([], float("inf"), tl.float32)
    if TRUNCATES:
        held_C = tl.arange(0, HELD) < held
        ids_C = _in_order(scratch, tl.minimum(held, HELD))
        a_C = distances(logits, seen, banned, ids_C, held_C, top, temperature, penalty, PENALISED, BANS)
        keys_C = tl.where(held_C, a_C.to(tl.int32, bitcast=True), NEVER)
        e_C = tl.where(held_C, tl.exp(-a_C), 0.0)
        edge = _few_edge(keys_C, e_C, total, k, top_p, min_p, TOP_K, TOP_P, MIN_P)
        if (held <= HELD) & (edge <= bound.to(tl.int32, bitcast=True)):
            kept = tl.max(tl.where(keys_C <= edge, a_C, 0.0))
            dropped = tl.min(tl.where(held_C & (keys_C > edge), a_C, near_bound))
            if TOP_K and not (TOP_P or MIN_P):
                dropped = tl.where(tl.sum((keys_C <= edge).to(tl.int32)) > k, kept, dropped)
            farthest = half_way(kept, dropped)
            token, mass = _few_draw(ids_C, a_C, e_C, held, farthest, least, lse, uniform, GREEDY)
            if SETS:
                kept_C = held_C & (a_C <= farthest)
                tl.store(set_ids + row * HELD + tl.cumsum(kept_C.to(tl.int32), 0) - 1, ids_C, mask=kept_C)
                count = tl.sum(kept_C.to(tl.int32))
                tl.store(set_counts + row, tl.where(count == V, 0, count).to(tl.int64))
        else:
            farthest = row_threshold(
                logits, seen, banned, top, temperature, penalty, k, top_p, min_p,
                V, TOP_K, TOP_P, MIN_P, PENALISED, BANS, BLOCK,
            )  # fmt: skip
            token, mass = row_draw(
                logits, seen, banned, top, temperature, penalty, farthest, least, lse, uniform,
                GREEDY, V, PENALISED, BANS, BLOCK, BLOCKS,
            )  # fmt: skip
            if SETS:
                count = row_bits(
                    logits, seen, banned, top, temperature, penalty, farthest, set_bits + row * ((V + 31) // 32),
                    V, PENALISED, BANS, BLOCK,
                )  # fmt: skip
                tl.store(set_counts + row, tl.where(count == V, 0, -count).to(tl.int64))
    else:
        token, mass = row_draw(
            logits, seen, banned, top, temperature, penalty, farthest, least, lse, uniform,
            GREEDY, V, PENALISED, BANS, BLOCK, BLOCKS,
        )  # fmt: skip

    a = distances(logits, seen, banned, token, token < V, top, temperature, penalty, PENALISED, BANS)
    full = 0.0 - a - lse
    truncated = full
    if TRUNCATES:
        truncated = (full.to(tl.float64) - tl.log(mass / total.to(tl.float64))).to(tl.float32)
    tl.store(out_ids + row, tl.where(tl.abs(entropy) < float("inf"), token, -1).to(tl.int64))
    R = tl.num_programs(0)
    tl.store(out_facts + row, truncated)
    tl.store(out_facts + R + row, full)
    tl.store(out_facts + 2 * R + row, entropy)
