"""Over the whole row, in as many passes as it takes: distances, a threshold, a draw (see draw_kernel.py).

Shapes: V vocabulary, B of a block of it, N blocks.
"""

import triton
import triton.language as tl

TIE = tl.constexpr(2e-5)
SMALLEST = tl.constexpr(1.8048513878454153e-35)  # exp(-80)
BANNED = tl.constexpr(-1e30)
"""As in draw.py: a kernel reads constants of its own module alone."""

NEVER = tl.constexpr(0x7FFFFFFF)
"""A key behind all others: they are the bits of distances."""


@triton.jit
def distances(
    logits, seen, banned, ids, inside, top, temperature, penalty, PENALISED: tl.constexpr, BANS: tl.constexpr
):  # fmt: skip
    """How far logits lie below `top`, after penalty and temperature; infinite outside."""
    z = scores(logits, seen, banned, ids, inside, penalty, PENALISED, BANS)
    return (top - z) * (1.0 / temperature)


@triton.jit
def scores(logits, seen, banned, ids, inside, penalty, PENALISED: tl.constexpr, BANS: tl.constexpr):
    """Logits after penalty and bans."""
    z = tl.load(logits + ids, mask=inside, other=float("-inf")).to(tl.float32)
    if PENALISED:
        was = tl.load(seen + ids, mask=inside, other=0)
        z = tl.where(was != 0, tl.where(z > 0, z / penalty, z * penalty), z)
    if BANS:
        no = tl.load(banned + ids, mask=inside, other=0)
        z = tl.where(no != 0, BANNED, z)
    return z


@triton.jit
def min_p_key(min_p):
    """Of the farthest token that a min-p keeps; 0 less the logarithm of 1 has no sign."""
    return (0.0 - tl.log(min_p)).to(tl.float32).to(tl.int32, bitcast=True)


@triton.jit
def half_way(kept, dropped):
    """The threshold between the farthest kept and the nearest dropped distance."""
    return tl.where(dropped - kept > TIE, kept + (dropped - kept) / 2, kept + 2 * TIE)


@triton.jit
def first_above(mass, before, target, N: tl.constexpr):
    """The first place whose cumulative mass is above the target; the last that adds anything, where rounding leaves
    none."""
    places = tl.arange(0, N)
    sums = before + tl.cumsum(mass, 0)
    first = tl.min(tl.where((mass > 0) & (sums > target), places, N))
    return tl.minimum(first, tl.max(tl.where(mass > 0, places, 0)))


@triton.jit
def _row_search(
    logits, seen, banned, top, temperature, penalty, limit, wanted,
    MASS: tl.constexpr, V: tl.constexpr, PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The smallest key up to which masses, or counts, sum to `wanted`, two bits a pass; keys above `limit` weigh
    nothing. Three sums have room for a part of a block."""
    PART: tl.constexpr = BLOCK // 4
    found = tl.full([], 0, tl.int32)
    for i in range(16):
        step = 1 << (30 - 2 * i)
        one, two, three = tl.zeros([PART], tl.float64), tl.zeros([PART], tl.float64), tl.zeros([PART], tl.float64)
        for start in range(0, V, PART):
            ids = start + tl.arange(0, PART)
            a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
            keys = a.to(tl.int32, bitcast=True)
            weight = tl.exp(-a).to(tl.float64) if MASS else tl.full([PART], 1.0, tl.float64)
            weight = tl.where((ids < V) & (keys <= limit), weight, 0.0)
            one += tl.where(keys < found + step, weight, 0.0)
            two += tl.where(keys < found + 2 * step, weight, 0.0)
            three += tl.where(keys < found + 3 * step, weight, 0.0)
        # there are 31 bits: the first pass has one
        passed = (tl.sum(one) < wanted).to(tl.int32) + ((i > 0) & (tl.sum(two) < wanted)).to(tl.int32)
        found += step * (passed + ((i > 0) & (tl.sum(three) < wanted)).to(tl.int32))
    return found


@triton.jit
def _row_mass(
    logits, seen, banned, top, temperature, penalty, limit,
    V: tl.constexpr, PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the tokens whose key is not above `limit`."""
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
        within = (ids < V) & (a.to(tl.int32, bitcast=True) <= limit)
        sums += tl.where(within, tl.exp(-a), 0.0).to(tl.float64)
    return tl.sum(sums)


@triton.jit
def row_threshold(
    logits, seen, banned, top, temperature, penalty, k, top_p, min_p,
    V: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr,
    PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The farthest distance that is kept."""
    edge = tl.full([], NEVER, tl.int32)
    if TOP_K:
        wanted = k.to(tl.float64)
        edge = _row_search(
            logits, seen, banned, top, temperature, penalty, NEVER, wanted, False, V, PENALISED, BANS, BLOCK
        )  # fmt: skip
    if TOP_P:
        wanted = top_p * _row_mass(logits, seen, banned, top, temperature, penalty, edge, V, PENALISED, BANS, BLOCK)
        found = _row_search(
            logits, seen, banned, top, temperature, penalty, edge, wanted, True, V, PENALISED, BANS, BLOCK
        )  # fmt: skip
        edge = tl.minimum(edge, found)
    if MIN_P:
        edge = tl.minimum(edge, min_p_key(min_p))
    counts, inner = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.float32)
    outer = tl.full([BLOCK], float("inf"), tl.float32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
        within = (ids < V) & (a.to(tl.int32, bitcast=True) <= edge)
        counts += within.to(tl.int32)
        inner = tl.maximum(inner, tl.where(within, a, 0.0))
        outer = tl.minimum(outer, tl.where(within, float("inf"), a))
    kept, dropped = tl.max(inner), tl.min(outer)
    if TOP_K and not (TOP_P or MIN_P):
        dropped = tl.where(tl.sum(counts) > k, kept, dropped)
    return half_way(kept, dropped)


@triton.jit
def row_draw(
    logits, seen, banned, top, temperature, penalty, farthest, least, lse, uniform, GREEDY: tl.constexpr,
    V: tl.constexpr, PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The token, and the mass of what is kept: that of each block first, then the tokens of the block."""
    blocks = tl.arange(0, BLOCKS)
    mass_N, best = tl.zeros([BLOCKS], tl.float64), tl.full([BLOCK], V - 1, tl.int32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
        e = tl.exp(-a)
        e = tl.where((ids < V) & (a <= farthest) & (e > least), e, 0.0)
        mass_N = tl.where(blocks == start // BLOCK, tl.sum(e.to(tl.float64)), mass_N)
        if GREEDY:
            best = tl.minimum(best, tl.where((ids < V) & (0.0 - a - lse == 0.0 - lse), ids, V - 1))
    mass = tl.sum(mass_N)
    if GREEDY:
        return tl.min(best), mass
    block = first_above(mass_N, 0.0, uniform * mass, BLOCKS)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
    e = tl.exp(-a)
    e = tl.where((ids < V) & (a <= farthest) & (e > least), e, 0.0)
    before = tl.sum(tl.where(blocks < block, mass_N, 0.0))
    return block * BLOCK + first_above(e.to(tl.float64), before, uniform * mass, BLOCK), mass


@triton.jit
def row_bits(
    logits, seen, banned, top, temperature, penalty, farthest, bits,
    V: tl.constexpr, PENALISED: tl.constexpr, BANS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write a bit for each token, set where it is kept; returns how many are."""
    counts = tl.zeros([BLOCK], tl.int32)
    for start in range(0, V, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        a = distances(logits, seen, banned, ids, ids < V, top, temperature, penalty, PENALISED, BANS)
        kept = ((ids < V) & (a <= farthest)).to(tl.int32)
        counts += kept
        words = start // 32 + tl.arange(0, BLOCK // 32)
        places = tl.arange(0, 32)
        tl.store(
            bits + words,
            tl.sum(tl.reshape(kept, [BLOCK // 32, 32]) << places[None, :], 1),
            mask=words < ((V + 31) // 32),
        )
    return tl.sum(counts)
