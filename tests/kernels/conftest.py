"""The ops written twice more, as plainly as can be, and the rule that errors are judged by."""
import contextlib
import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from visionattn.kernels import _dispatch
from visionattn.kernels.neighborhood.geometry import Geometry
from visionattn.kernels.window.geometry import Geometry as Windows


def window(n: int, i: int, k: int, d: int, s: int) -> list[int]:
    """The positions that position `i` of `n` sees along an axis, as the contract words it."""
    group = list(range(i % d, n, d))
    leader = min(i // d // s * s + s // 2, len(group) - 1)
    start = min(max(leader - k // 2, 0), len(group) - k)
    return group[start:start + k]


def attend_by_loop(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float) -> Tensor:
    """One query position after another."""
    batch, height, width, heads, _ = q.shape
    (ky, kx), (dy, dx), (sy, sx) = geometry
    out = torch.empty(batch, height, width, heads, v.shape[-1], dtype=q.dtype)
    for y in range(height):
        rows = window(height, y, ky, dy, sy)
        for x in range(width):
            columns = window(width, x, kx, dx, sx)
            logits = torch.einsum("bhd,byxhd->bhyx", q[:, y, x], k[:, rows][:, :, columns]) * scale
            if bias is not None:
                table_rows = [row // dy - y // dy + ky - 1 for row in rows]
                table_columns = [column // dx - x // dx + kx - 1 for column in columns]
                logits = logits + bias[:, table_rows][:, :, table_columns]
            weights = logits.flatten(2).softmax(-1).view_as(logits)
            out[:, y, x] = torch.einsum("bhyx,byxhd->bhd", weights, v[:, rows][:, :, columns])
    return out


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float) -> Tensor:
    """Every query against the whole map under a mask, in q's dtype throughout: what eager PyTorch gives."""
    _, height, width, heads, _ = q.shape
    axes = []
    for n, size, d, s in zip((height, width), *geometry, strict=True):
        mask, relative = torch.zeros(n, n, dtype=torch.bool), torch.zeros(n, n, dtype=torch.long)
        for i in range(n):
            for j in window(n, i, size, d, s):
                mask[i, j], relative[i, j] = True, j // d - i // d + size - 1
        axes.append((mask.to(q.device), relative.to(q.device)))
    (mask_y, relative_y), (mask_x, relative_x) = axes
    seen = (mask_y[:, None, :, None] & mask_x[None, :, None, :]).flatten(2).flatten(0, 1)
    added = None
    if bias is not None:
        added = bias.to(q.dtype)[:, relative_y[:, None, :, None], relative_x[None, :, None, :]]
        added = added.flatten(3).flatten(1, 2)
    return attend_under_mask(q, k, v, added, seen, scale)


def attend_under_mask(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, seen: Tensor, scale: float) -> Tensor:
    """`seen` [H * W, H * W]: which pairs attend; `added` [heads, H * W, H * W]: to their logits."""
    logits = (q * scale).flatten(1, 2).transpose(1, 2) @ k.flatten(1, 2).permute(0, 2, 3, 1)
    if added is not None:
        logits = logits + added
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    out = weights @ v.flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).unflatten(1, k.shape[1:3])


def members(n: int, i: int, window: int, shift: int, grid: bool) -> dict[int, int]:
    """The positions of `n` in the window of position `i` along an axis, and which of the window's each one is."""
    if grid:
        distance = -(-n // window)
        return {j: j // distance for j in range(i % distance, n, distance)}
    start = shift + (i - shift) // window * window
    return {j: j - start for j in range(start, start + window) if 0 <= j < n}


def windows_by_loop(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Windows, scale: float) -> Tensor:
    """One position after another; `q` may be one window for all."""
    _, height, width, _, _ = k.shape
    (window_h, window_w), (shift_y, shift_x), grid = geometry
    out = torch.empty(v.shape, dtype=q.dtype)
    for y in range(height):
        rows = members(height, y, window_h, shift_y, grid)
        for x in range(width):
            columns = members(width, x, window_w, shift_x, grid)
            query = q[:, y, x] if q.shape == k.shape else q[:, rows[y], columns[x]]
            keys, values = (z[:, list(rows)][:, :, list(columns)] for z in (k, v))
            logits = torch.einsum("bhd,byxhd->bhyx", query, keys) * scale
            if bias is not None:
                own = rows[y] * window_w + columns[x]
                theirs = [i * window_w + j for i in rows.values() for j in columns.values()]
                logits = logits + bias[:, own, theirs].unflatten(1, (len(rows), len(columns)))
            weights = logits.flatten(2).softmax(-1).view_as(logits)
            out[:, y, x] = torch.einsum("bhyx,byxhd->bhd", weights, values)
    return out


def windows_to_all(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Windows, scale: float) -> Tensor:
    """Every query against the whole map under a mask, in q's dtype throughout: what eager PyTorch gives."""
    masks, places = [], []
    for n, window_, shift in zip(k.shape[1:3], geometry.window, geometry.shift, strict=True):
        found = [members(n, i, window_, shift, geometry.grid) for i in range(n)]
        masks.append(torch.tensor([[j in seen for j in range(n)] for seen in found], device=q.device))
        places.append(torch.tensor([seen[i] for i, seen in enumerate(found)], device=q.device))
    seen = (masks[0][:, None, :, None] & masks[1][None, :, None, :]).flatten(2).flatten(0, 1)
    place = (places[0][:, None] * geometry.window[1] + places[1][None, :]).flatten()
    if q.shape != k.shape:
        q = q[:, places[0]][:, :, places[1]]
    added = None if bias is None else bias.to(q.dtype)[:, place[:, None], place[None, :]]
    return attend_under_mask(q, k, v, added, seen, scale)


def linear_in_one_dtype(q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None = None,
                        grid: tuple[int, int] | None = None, scale: float | None = None) -> Tensor:
    """Injective linear attention as its official code has it, in q's dtype throughout: what eager PyTorch gives.

    `taps` [B, heads, 3, 3, Dv]: the residual's filters.
    """
    batch, height, width, heads, d = q.shape
    n, size, scale = height * width, v.shape, d**-0.5 if scale is None else scale
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))                  # [B, heads, N, D]
    kv = (k.transpose(2, 3) * abs(scale / n) ** 0.5) @ (v * abs(scale / n) ** 0.5) * (1 if scale >= 0 else -1)
    out = q @ kv + (1 - q @ k.mean(2, True).transpose(2, 3) * scale) * v.mean(2, True)
    if taps is not None:
        rows, columns = grid or (height, width)
        channels = batch * heads * size[-1]
        image = v[:, :, n - rows * columns:].transpose(2, 3).reshape(1, channels, rows, columns)
        weight = taps.permute(0, 1, 4, 2, 3).reshape(channels, 1, 3, 3)
        local = torch.nn.functional.conv2d(image, weight.to(v.dtype), padding=1, groups=channels)
        local = local.view(batch, heads, size[-1], -1).transpose(2, 3)
        out = out + torch.nn.functional.pad(local, (0, 0, n - rows * columns, 0))
    return out.transpose(1, 2).reshape(size)


def run(function: Callable, tensors: dict[str, Tensor | None], grad: Tensor | None) -> dict[str, Tensor]:
    """`function`'s output and, with `grad`, the gradients of all `tensors`, by name."""
    leaves = {name: x.detach().requires_grad_(grad is not None) for name, x in tensors.items() if x is not None}
    out = function(**leaves)
    found = {"out": out.detach()}
    if grad is not None:
        gradients = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
        found |= {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return found


def judge(actual: dict[str, Tensor], eager: list[dict[str, Tensor]], truth: dict[str, Tensor],
          dtype: torch.dtype) -> None:
    """The rule: an error against float64 is at most twice that of eager PyTorch in the same dtype.

    Both the error's norm and the largest error, each with a floor of one rounding in that dtype of the norm or of the
    largest value: nothing that ends in this dtype can be asked for more. Eager may be right by luck, its largest error
    above all: so it computes the same several times, with other roundings, and its worst counts.
    """
    eps = torch.finfo(dtype).eps
    for name, true in truth.items():
        assert actual[name].shape == true.shape, name
        assert actual[name].isfinite().all(), f"{name} has values that are not finite"
        if not true.numel():
            continue
        error, *usual_errors = ((x[name].double() - true) for x in (actual, *eager))
        for kind, size_of in (("norm of the", torch.norm), ("largest", lambda x: x.abs().max())):
            found, size = size_of(error).item(), size_of(true).item()
            allowed = 2 * max(size_of(x).item() for x in usual_errors) + eps * size
            assert found <= allowed, f"{name}: {kind} error {found:.3g} against {allowed:.3g} allowed, of {size:.3g}"


def _reordered(eager: Callable, tensors: dict[str, Tensor], grad: Tensor | None, order: int) -> dict[str, Tensor]:
    """:func:`run` with the head dimension rolled by some places: the same sums, in another order for each `order`."""

    def rolled(name: str, x: Tensor | None, sign: int) -> Tensor | None:
        return x if x is None or name in ("bias", "dbias") else x.roll(sign * order * x.shape[-1] // 4, -1)

    found = run(eager, {name: rolled(name, x, 1) for name, x in tensors.items()}, rolled("grad", grad, 1))
    return {name: rolled(name, x, -1) for name, x in found.items()}


def draw(batch: int, height: int, width: int, heads: int, d: int, dv: int, kernel: tuple[int, int] | None,
         device: str) -> dict[str, Tensor]:
    """float64 q, k, v, bias (with `kernel`) that float16, bfloat16 and float32 all hold exactly."""
    shapes = dict(q=(batch, height, width, heads, d), k=(batch, height, width, heads, d),
                  v=(batch, height, width, heads, dv))
    if kernel:
        shapes["bias"] = (heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1)
    return {name: torch.randn(shape).bfloat16().to(device, torch.float64) for name, shape in shapes.items()}


def interpreter_cannot() -> str | None:
    """Why Triton's interpreter cannot run the kernels here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    import numpy
    import triton
    if not triton.knobs.runtime.interpret:
        return "TRITON_INTERPRET=1 was not set when triton was imported"
    triton_version, numpy_version = (tuple(map(int, x.__version__.split(".")[:2])) for x in (triton, numpy))
    if triton_version < (3, 7) and numpy_version >= (2, 4):
        return f"triton {triton.__version__}'s interpreter fails with numpy {numpy.__version__}"
    return None


@pytest.fixture
def fused(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device on which the fused kernels run: the GPU, or else the CPU under Triton's interpreter."""
    if device == "cuda":
        yield device
        return
    reason = interpreter_cannot()
    if reason:
        pytest.skip(reason)
    from visionattn.kernels import _host as module
    monkeypatch.setattr(module, "programs", lambda device, heads: 2)  # each of a GPU's hundreds takes its time here
    with _dispatch.interpreted():
        yield device


@pytest.fixture(params=["reference", "fused"])
def route(request: pytest.FixtureRequest) -> str:
    """Both implementations, one after the other: the device on which it runs."""
    return "cpu" if request.param == "reference" else request.getfixturevalue("fused")


@pytest.fixture
def by_loop() -> Callable:
    return attend_by_loop


@pytest.fixture
def to_all() -> Callable:
    return attend_to_all


@pytest.fixture
def windows_loop() -> Callable:
    return windows_by_loop


@pytest.fixture
def windows_all() -> Callable:
    return windows_to_all


@pytest.fixture
def windows_drawn() -> Callable:
    """draw(batch, height, width, heads, d, dv, geometry, device, bias, shared): float64 tensors as `drawn` gives them.

    `shared`: q is one window of queries.
    """

    def draw_windows(batch: int, height: int, width: int, heads: int, d: int, dv: int, geometry: Windows,
                     device: str, bias: bool = True, shared: bool = False) -> dict[str, Tensor]:
        tensors = draw(batch, height, width, heads, d, dv, None, device)
        if shared:
            tensors["q"] = torch.randn(batch, *geometry.window, heads, d).bfloat16().to(tensors["q"])
        if bias:
            n = geometry.positions
            tensors["bias"] = torch.randn(heads, n, n).bfloat16().to(tensors["q"])
        return tensors

    return draw_windows


@pytest.fixture
def linear_eager() -> Callable:
    return linear_in_one_dtype


@pytest.fixture
def linear_drawn() -> Callable:
    """draw(batch, height, width, heads, d, dv, device, taps): float64 q, k, v and filters, as `drawn` gives them."""

    def draw_linear(batch: int, height: int, width: int, heads: int, d: int, dv: int, device: str,
                    taps: bool = True) -> dict[str, Tensor]:
        tensors = draw(batch, height, width, heads, d, dv, None, device)
        if taps:
            tensors["taps"] = torch.randn(batch, heads, 3, 3, dv).bfloat16().to(tensors["q"])
        return tensors

    return draw_linear


@pytest.fixture
def rule() -> Callable:
    """check(function, tensors, dtype, eager): `function` obeys the rule of `judge` forward and in every gradient.

    `function` and `eager` take the tensors by name.
    """

    def check(function: Callable, tensors: dict[str, Tensor], dtype: torch.dtype, eager: Callable,
              backward: bool = True) -> None:
        low = {name: x.to(dtype) for name, x in tensors.items()}
        with torch.no_grad():
            shape = eager(**low).shape
        grad = torch.randn(shape).bfloat16().to(tensors["q"].device) if backward else None
        truth = run(eager, tensors, grad.double() if backward else None)
        judge(run(function, low, grad), [_reordered(eager, low, grad, order) for order in range(4)], truth, dtype)

    return check


@pytest.fixture
def drawn() -> Callable:
    return draw


@pytest.fixture
def results() -> Callable:
    return run


@contextlib.contextmanager
def _no_caches() -> Iterator[None]:
    import torch._inductor.config as config
    with config.patch(force_disable_caches=True):
        yield


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """`torch.compile` remembers nothing, from before or in files: an op's route is no part of its memory's key."""
    torch._dynamo.reset()
    with _no_caches():
        yield
    torch._dynamo.reset()
