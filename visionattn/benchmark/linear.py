"""Injective linear attention with its local residual beside eager PyTorch, and what the hardware could do."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from visionattn.kernels.linear import linear_attention_packed

from .cases import LinearCase
from .measurement import PASSES, Measurement, difference, passes
from .records import Records
from .timing import measure_rates


class Inputs:
    """Random tensors of one case: packed q, k and v, and the filters of the residual as models predict them."""

    def __init__(self, case: LinearCase, device: torch.device, dtype: torch.dtype):
        generator = torch.Generator(device).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        batch, rows, columns, heads, dim = case.shape
        self.packed = draw(batch, rows, columns, 3, heads, dim).requires_grad_()
        self.filters = draw(batch, heads, dim, 3, 3).requires_grad_()
        self.grad = draw(*case.shape)


def ours(case: LinearCase, x: Inputs) -> dict[str, dict[str, Callable[[], object]]]:
    """Our op, with and without the residual."""
    return {
        "ours": passes(lambda: _ours(case, x), [x.packed, x.filters], x.grad),
        "ours plain": passes(lambda: linear_attention_packed(x.packed), [x.packed], x.grad),
    }


def _ours(case: LinearCase, x: Inputs) -> Tensor:
    return linear_attention_packed(x.packed, x.filters, (case.height, case.width))


def eager(case: LinearCase, x: Inputs, residual: bool = True) -> Callable[[], Tensor]:
    """The same from the packed projection to the output, in the inputs' dtype: products and a grouped convolution."""
    batch, heads, dim = case.batch, case.heads, case.dim
    scale, tokens, channels = dim**-0.5, case.before + case.height * case.width, batch * heads * dim

    def step() -> Tensor:
        q, k, v = x.packed.flatten(1, 2).permute(2, 0, 3, 1, 4)  # [B, heads, N, D] each
        half = (scale / tokens) ** 0.5
        mean_k, mean_v = k.mean(2, keepdim=True), v.mean(2, keepdim=True)
        matrix = (k.transpose(2, 3) * half) @ (v * half)
        y = q @ matrix + (1 - q @ mean_k.transpose(2, 3) * scale) * mean_v
        y = y.transpose(1, 2).flatten(2)
        if residual:
            image = v[:, :, case.before :].transpose(2, 3).reshape(1, channels, case.height, case.width)
            local = conv2d(image, x.filters.reshape(channels, 1, 3, 3), padding=1, groups=channels)
            y = y + pad(local.view(batch, heads * dim, -1).transpose(1, 2), (0, 0, case.before, 0))
        return y.view(case.shape)

    return step


def agreement(case: LinearCase, x: Inputs, step: Callable[[], Tensor]) -> str:
    """How far our output and gradients lie from the peer's, as relative norms: both must compute the same thing."""
    outputs = [_ours(case, x), step()]
    gradients = [torch.autograd.grad(out, [x.packed, x.filters], x.grad) for out in outputs]
    worst = max(difference(a, b) for a, b in zip(*gradients))
    return f"from eager: output {difference(*(out.detach() for out in outputs)):.2%}, gradients {worst:.2%}"


def measure_case(m: Measurement, case: LinearCase, x: Inputs, compiled: bool) -> None:
    """Adds every line of one case but the floor; ``compiled``: also the peer under torch.compile."""
    for implementation, calls in ours(case, x).items():
        for name in PASSES:
            m.call(implementation, name, calls[name])
    step = eager(case, x)
    try:
        note = agreement(case, x, step)
    except Exception as error:
        note = f"not compared: {type(error).__name__}"
    for name, fn in passes(step, [x.packed, x.filters], x.grad).items():
        m.call("eager", name, fn, note=note)
    if compiled:
        torch._dynamo.reset()
        for name, fn in passes(torch.compile(step, dynamic=False), [x.packed, x.filters], x.grad).items():
            m.call("eager compiled", name, fn)
    for name, fn in passes(eager(case, x, residual=False), [x.packed], x.grad).items():
        m.call("eager plain", name, fn)


def run(
    cases: Sequence[LinearCase],
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

    ``budget_s`` is for the whole run: cases after it are left out. ``compiled``: the peer under torch.compile too.
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
