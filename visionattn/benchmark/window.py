"""Window attention beside timm's path from qkv to output, eager and compiled, and what the hardware could do."""

import time
from collections.abc import Callable, Sequence

import torch
from timm.layers import set_fused_attn
from timm.models.swin_transformer import SwinTransformerBlock, window_partition, window_reverse
from torch import Tensor, nn

from visionattn.kernels.window import window_attention_packed
from visionattn.layers.relative_bias import lay_out, relative_index, relative_inverse

from .cases import WindowCase
from .measurement import PASSES, Measurement, difference, passes
from .records import Records
from .timing import measure_rates


class Inputs:
    """Random tensors of one case: packed q, k and v, and a table of relative positions as models learn it."""

    def __init__(self, case: WindowCase, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        batch, height, width, heads, dim = case.shape
        self.packed = draw(batch, height, width, 3, heads, dim).requires_grad_()
        self.table = draw((2 * case.window - 1) ** 2, heads).requires_grad_()
        self.indices = [f((case.window, case.window), device) for f in (relative_index, relative_inverse)]
        self.grad = draw(*case.shape)


def ours(case: WindowCase, x: Inputs) -> dict[str, dict[str, Callable[[], object]]]:
    """Our op with the table laid out for it, as the layer does, and without any bias."""
    def plain() -> Tensor:
        return window_attention_packed(x.packed, case.window, case.shift)

    return {
        "ours": passes(lambda: _biased(case, x), [x.packed, x.table], x.grad),
        "ours plain": passes(plain, [x.packed], x.grad),
    }


def timms(case: WindowCase, x: Inputs) -> Callable[[], Tensor]:
    """timm's own parts from qkv to output: roll, partition, attention under a mask, reverse, roll back."""
    set_fused_attn(True)
    batch, height, width, heads, dim = case.shape
    block = SwinTransformerBlock(
        heads * dim,
        (height, width),
        heads,
        window_size=case.window,
        shift_size=case.shift,
        device=x.packed.device,
        dtype=x.packed.dtype,
    )
    attn, window, shift = block.attn, block.window_size, block.shift_size
    attn.qkv, attn.proj = nn.Identity(), nn.Identity()
    del attn.relative_position_bias_table
    attn.relative_position_bias_table = x.table
    mask = block.attn_mask

    def step() -> Tensor:
        y = x.packed.flatten(3)  # the projections in front of and behind this belong to the layer
        if any(shift):
            y = torch.roll(y, (-shift[0], -shift[1]), (1, 2))
        y = attn(window_partition(y, window).flatten(1, 2), mask)
        y = window_reverse(y.unflatten(1, window), window, height, width)
        if any(shift):
            y = torch.roll(y, shift, (1, 2))
        return y.unflatten(3, (heads, dim))

    return step


def agreement(case: WindowCase, x: Inputs, step: Callable[[], Tensor]) -> str:
    """How far our output and gradients lie from timm's, as relative norms: both must compute the same thing."""
    wanted = [x.packed, x.table]
    outputs = [ours_step() for ours_step in (lambda: _biased(case, x), step)]
    gradients = [torch.autograd.grad(out, wanted, x.grad) for out in outputs]
    worst = max(difference(a, b) for a, b in zip(*gradients))
    return f"from timm: output {difference(*(out.detach() for out in outputs)):.2%}, gradients {worst:.2%}"


def _biased(case: WindowCase, x: Inputs) -> Tensor:
    return window_attention_packed(x.packed, case.window, case.shift, bias=lay_out(x.table, *x.indices))


def measure_case(m: Measurement, case: WindowCase, x: Inputs, compiled: bool) -> None:
    """Adds every line of one case but the floor; ``compiled``: also timm's path under torch.compile."""
    for implementation, calls in ours(case, x).items():
        for name in PASSES:
            m.call(implementation, name, calls[name])
    step = timms(case, x)
    try:
        note = agreement(case, x, step)
    except Exception as error:
        note = f"not compared: {type(error).__name__}"
    for name, fn in passes(step, [x.packed, x.table], x.grad).items():
        m.call("timm", name, fn, note=note)
    if compiled:
        torch._dynamo.reset()
        for name, fn in passes(torch.compile(step, dynamic=False), [x.packed, x.table], x.grad).items():
            m.call("timm compiled", name, fn)


def run(
    cases: Sequence[WindowCase],
    records: Records,
    device: torch.device,
    dtype: torch.dtype,
    origin: dict[str, str],
    budget_s: float,
    rep_ms: float,
    graphs: bool,
    compiled: bool,
    say: Callable[[str], None],
) -> None:
    """Measures ``cases`` in order and writes the records after each; ``say`` is told of progress.

    ``budget_s`` is for the whole run: cases after it are left out. ``compiled``: timm's path under torch.compile too.
    """
    start = time.monotonic()
    rates = measure_rates(device, dtype)
    say(f"{origin['gpu']}: {rates}")
    for index, case in enumerate(cases):
        if time.monotonic() - start > budget_s:
            say(f"time is up: {len(cases) - index} of {len(cases)} rows left out")
            break
        m = Measurement(records, case, device, dtype, rep_ms, graphs, origin)
        x = Inputs(case, device, dtype)
        m.floor(case, x.packed.element_size(), rates)
        measure_case(m, case, x, compiled)
        records.write()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        say(f"{index + 1}/{len(cases)} {case.name}: {m.line()} [{time.monotonic() - start:.0f} s]")
