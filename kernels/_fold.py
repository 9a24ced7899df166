"""How partial sums of dS become the gradient of a table of displacements."""

import triton
import triton.language as tl


@triton.jit
def fold_bias(p_sum, p_dbias, heads, cells, CELL: tl.constexpr, P: tl.constexpr, T: tl.constexpr, COUNT: tl.constexpr,
              BLOCK: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """dbias[h, d] = sum over m < DEPTH of sum[h, cell(d, m)] in a fixed order; ``CELL(d, m, P, T) -> (cell, ok)``."""
    head = (tl.program_id(0) % heads).to(tl.int64)
    o_d = tl.program_id(0) // heads * BLOCK + tl.arange(0, BLOCK)
    o_m = tl.arange(0, DEPTH)
    cell, ok = CELL(o_d[:, None], o_m[None, :], P, T)
    b = tl.load(p_sum + head * cells + cell, mask=ok & (o_d < COUNT)[:, None], other=0.0)
    tl.store(p_dbias + head * COUNT + o_d, tl.sum(b, 1), mask=o_d < COUNT)
