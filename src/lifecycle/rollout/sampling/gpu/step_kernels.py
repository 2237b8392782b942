"""What a decode step does beside the model and the draw, in one kernel each: random numbers before, the table after.

Shapes: B rows of a step, S of the table, V vocabulary, T steps.
"""

import triton
import triton.language as tl

ROWS = 128
"""Of a program."""


@triton.jit(do_not_specialize=["B"])
def uniform_kernel(seeds, numbers, out, B, ROWS: tl.constexpr):
    """`parameters.uniforms`: SplitMix64."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    seed = tl.load(seeds + rows, mask=rows < B, other=0).to(tl.uint64)
    number = tl.load(numbers + rows, mask=rows < B, other=0).to(tl.uint64)
    x = seed + (number + 1) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    tl.store(out + rows, (x >> 11).to(tl.float64) * 1.1102230246251565e-16, mask=rows < B)


@triton.jit(do_not_specialize=["B"])
def note_kernel(
    ids, logprobs, full, entropy, table, table_stride, seen, seen_stride, step, noted_ids, noted_facts, S, B,
    TOKEN: tl.constexpr, POSITION: tl.constexpr, NUMBER: tl.constexpr, PENALISED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`Noted.note`: what was drawn goes to line step[b] of noted_ids (T, S) and noted_facts (T, 3, S); the table and
    `step` advance. seen (S, V): bytes."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < B
    token, at = tl.load(ids + rows, mask=here, other=0), tl.load(step + rows, mask=here, other=0)
    tl.store(noted_ids + at * S + rows, token, mask=here)
    line = noted_facts + at * 3 * S + rows
    tl.store(line, tl.load(logprobs + rows, mask=here), mask=here)
    tl.store(line + S, tl.load(full + rows, mask=here), mask=here)
    tl.store(line + 2 * S, tl.load(entropy + rows, mask=here), mask=here)
    tl.store(step + rows, at + 1, mask=here)
    position = tl.load(table + POSITION * table_stride + rows, mask=here, other=-1)
    number = tl.load(table + NUMBER * table_stride + rows, mask=here, other=0)
    active = here & (position >= 0)
    tl.store(table + TOKEN * table_stride + rows, token, mask=here)
    tl.store(table + POSITION * table_stride + rows, position + 1, mask=active)
    tl.store(table + NUMBER * table_stride + rows, number + 1, mask=active)
    if PENALISED:
        marks = tl.full([ROWS], 1, tl.uint8)
        tl.store(seen + rows.to(tl.int64) * seen_stride + token, marks, mask=active & (token >= 0))


@triton.jit
def keep_kernel(
    counts, ids, bits, step, kept_counts, kept_ids, kept_bits, S, C: tl.constexpr, W: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Copy the `RowSets` of one row a program to line step[b] of (T, S, ...): what of them was written."""
    row = tl.program_id(0)
    count, at = tl.load(counts + row), tl.load(step + row) * S + row
    tl.store(kept_counts + at, count)
    if count > 0:
        places = tl.arange(0, C)
        tl.store(kept_ids + at * C + places, tl.load(ids + row * C + places, mask=places < count), mask=places < count)
    if count < 0:
        for start in range(0, W, BLOCK):
            words = start + tl.arange(0, BLOCK)
            tl.store(kept_bits + at * W + words, tl.load(bits + row * W + words, mask=words < W), mask=words < W)
