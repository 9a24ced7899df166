"""The ops written twice more, as plainly as can be, and the rule that errors are judged by."""
import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from visionattn.kernels import _dispatch, _tape
from visionattn.kernels.halo.geometry import Geometry as Halos
from visionattn.kernels.neighborhood.geometry import Geometry
from visionattn.kernels.window.geometry import Geometry as Windows


def window(n: int, i: int, k: int, d: int, s: int, causal: bool = False) -> list[int]:
    """The positions that position `i` of `n` sees along an axis, as the contract words it."""
    group = list(range(i % d, n, d))
    if causal:
        leader = min(i // d // s * s + s - 1, len(group) - 1)
        return [j for j in group[:leader + 1][-k:] if j <= i]
    leader = min(i // d // s * s + s // 2, len(group) - 1)
    start = min(max(leader - k // 2, 0), len(group) - k)
    return group[start:start + k]


def attend_by_loop(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float,
                   extra_k: Tensor | None = None, extra_v: Tensor | None = None) -> Tensor:
    """One query position after another."""
    batch, height, width, heads, _ = q.shape
    (ky, kx), (dy, dx), (sy, sx), (causal_y, causal_x) = geometry
    out = torch.empty(batch, height, width, heads, v.shape[-1], dtype=q.dtype)
    for y in range(height):
        rows = window(height, y, ky, dy, sy, causal_y)
        for x in range(width):
            columns = window(width, x, kx, dx, sx, causal_x)
            logits = torch.einsum("bhd,byxhd->bhyx", q[:, y, x], k[:, rows][:, :, columns]) * scale
            if bias is not None:
                table_rows = [row // dy - y // dy + ky - 1 for row in rows]
                table_columns = [column // dx - x // dx + kx - 1 for column in columns]
                logits = logits + bias[:, table_rows][:, :, table_columns]
            logits, values = logits.flatten(2), v[:, rows][:, :, columns].flatten(1, 2)
            if extra_k is not None:
                logits = torch.cat((logits, torch.einsum("bhd,bthd->bht", q[:, y, x], extra_k) * scale), -1)
                values = torch.cat((values, extra_v), 1)
            out[:, y, x] = torch.einsum("bhn,bnhd->bhd", logits.softmax(-1), values)
    return out


def attend_to_all(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Geometry, scale: float,
                  extra_k: Tensor | None = None, extra_v: Tensor | None = None) -> Tensor:
    """Every query against the whole map under a mask, in q's dtype throughout: what eager PyTorch gives."""
    _, height, width, heads, _ = q.shape
    axes = []
    for n, size, d, s, causal in zip((height, width), *geometry, strict=True):
        mask, relative = torch.zeros(n, n, dtype=torch.bool), torch.zeros(n, n, dtype=torch.long)
        for i in range(n):
            for j in window(n, i, size, d, s, causal):
                mask[i, j], relative[i, j] = True, j // d - i // d + size - 1
        axes.append((mask.to(q.device), relative.to(q.device)))
    (mask_y, relative_y), (mask_x, relative_x) = axes
    seen = (mask_y[:, None, :, None] & mask_x[None, :, None, :]).flatten(2).flatten(0, 1)
    added = None
    if bias is not None:
        added = bias.to(q.dtype)[:, relative_y[:, None, :, None], relative_x[None, :, None, :]]
        added = added.flatten(3).flatten(1, 2)
    if extra_k is None:
        return attend_under_mask(q, k, v, added, seen, scale)
    tokens, shape = extra_k.shape[1], v.shape           # as rows of the map below it, which is one column
    k, v = (torch.cat((x.flatten(1, 2), more), 1).unsqueeze(2) for x, more in ((k, extra_k), (v, extra_v)))
    seen = torch.cat((seen, seen.new_ones(len(seen), tokens)), 1)
    added = None if added is None else torch.nn.functional.pad(added, (0, tokens))
    return attend_under_mask(q, k, v, added, seen, scale, shape[1:3])


def attend_under_mask(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, seen: Tensor, scale: float,
                      size: tuple[int, int] | None = None) -> Tensor:
    """`seen` [queries, keys]: which pairs attend; `added` [heads, queries, keys]: to their logits.

    `size`: of the map of queries, the keys' unless given.
    """
    logits = (q * scale).flatten(1, 2).transpose(1, 2) @ k.flatten(1, 2).permute(0, 2, 3, 1)
    if added is not None:
        logits = logits + added
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    out = weights @ v.flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).unflatten(1, size or k.shape[1:3])


def members(n: int, i: int, window: int, shift: int, grid: bool) -> dict[int, int]:
    """The positions of `n` in the window of position `i` along an axis, and which of the window's each one is."""
    if grid:
        distance = -(-n // window)
        return {j: j // distance for j in range(i % distance, n, distance)}
    start = shift + (i - shift) // window * window
    return {j: j - start for j in range(start, start + window) if 0 <= j < n}


def every_pair(bias: Tensor, geometry: Windows) -> Tensor:
    """A bias [heads, N, N] of all pairs; from a table of displacements one pair after another."""
    (h, w), n = geometry.window, geometry.positions
    if bias.shape[1:] != (2 * h - 1, 2 * w - 1):
        return bias
    pairs = [bias[:, q // w - k // w + h - 1, q % w - k % w + w - 1] for q in range(n) for k in range(n)]
    return torch.stack(pairs, 1).unflatten(1, (n, n))


def windows_by_loop(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, geometry: Windows, scale: float) -> Tensor:
    """One position after another; `q` may be one window for all."""
    _, height, width, _, _ = k.shape
    (window_h, window_w), (shift_y, shift_x), grid = geometry
    bias = None if bias is None else every_pair(bias, geometry)
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
    added = None if bias is None else every_pair(bias, geometry).to(q.dtype)[:, place[:, None], place[None, :]]
    return attend_under_mask(q, k, v, added, seen, scale)


def channels_in_dtype(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Channel attention of [B, H, W, groups, D] in q's dtype throughout: what eager PyTorch gives."""
    tokens, rows, columns = (x.flatten(1, 2).permute(0, 2, 3, 1) for x in (q, k, v))     # [B, groups, D, N]
    weights = ((rows * scale) @ columns.transpose(-1, -2)).softmax(-1)
    return (weights @ tokens).permute(0, 3, 1, 2).unflatten(1, q.shape[1:3])


def halo_by_loop(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Halos,
                 scale: float) -> Tensor:
    """One query after another; keys and values that lie outside the map are made of zeros."""
    batch, height, width, heads, _ = q.shape
    (block_h, block_w), (halo_h, halo_w), (stride_h, stride_w) = geometry
    (rows, columns), (window_h, window_w) = k.shape[1:3], geometry.window
    out = torch.empty(*q.shape[:4], v.shape[-1], dtype=q.dtype)
    for y in range(height):
        in_block_y = y % (block_h // stride_h)
        top = y * stride_h // block_h * block_h - halo_h
        for x in range(width):
            in_block_x = x % (block_w // stride_w)
            left = x * stride_w // block_w * block_w - halo_w
            keys, values = (z.new_zeros(batch, window_h, window_w, heads, z.shape[-1]) for z in (k, v))
            for i in range(window_h):
                for j in range(window_w):
                    if 0 <= top + i < rows and 0 <= left + j < columns:
                        keys[:, i, j], values[:, i, j] = k[:, top + i, left + j], v[:, top + i, left + j]
            query = q[:, y, x]
            logits = torch.einsum("bhd,byxhd->bhyx", query, keys) * scale
            first_h, first_w = window_h - 1 - in_block_y, window_w - 1 - in_block_x
            logits = logits + (query @ rel_h[first_h:first_h + window_h].T)[..., :, None]
            logits = logits + (query @ rel_w[first_w:first_w + window_w].T)[..., None, :]
            weights = logits.flatten(2).softmax(-1).view_as(logits)
            out[:, y, x] = torch.einsum("bhyx,byxhd->bhd", weights, values)
    return out


def halo_to_all(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor, geometry: Halos,
                scale: float) -> Tensor:
    """Every query against the whole map, zeros around it, under a mask, in q's dtype throughout."""
    pads, masks, shown = [], [], []
    for n, many, block, halo, stride, table, window in zip(
            k.shape[1:3], q.shape[1:3], *geometry, (rel_h, rel_w), geometry.window, strict=True):
        blocks = -(-n // block)
        query, key = torch.arange(many, device=q.device)[:, None], torch.arange(blocks * block + 2 * halo)
        number = key.to(q.device) - query * stride // block * block                   # of the key in the window
        masks.append((number >= 0) & (number < window))
        shown.append((number - query % (block // stride) + window - 1).clamp(0, len(table) - 1))
        pads = [halo, blocks * block + halo - n, *pads]
    k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, *pads)) for x in (k, v))
    seen = (masks[0][:, None, :, None] & masks[1][None, :, None, :]).flatten(2).flatten(0, 1)
    by_row, by_column = (torch.einsum("byxhd,nd->bhyxn", q, table.to(q.dtype)) for table in (rel_h, rel_w))
    by_row = by_row.gather(-1, shown[0][None, None, :, None].expand(*by_row.shape[:4], -1))
    by_column = by_column.gather(-1, shown[1][None, None, None].expand(*by_column.shape[:4], -1))
    added = (by_row[..., None] + by_column[..., None, :]).flatten(4).flatten(2, 3)
    logits = (q * scale).flatten(1, 2).transpose(1, 2) @ k.flatten(1, 2).permute(0, 2, 3, 1) + added
    weights = logits.masked_fill(~seen, float("-inf")).softmax(-1)
    out = weights @ v.flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])


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
        apart = name.removeprefix("d") in ("bias", "sampling")        # tensors without a head dimension
        return x if x is None or apart else x.roll(sign * order * x.shape[-1] // 4, -1)

    found = run(eager, {name: rolled(name, x, 1) for name, x in tensors.items()}, rolled("grad", grad, 1))
    return {name: rolled(name, x, -1) for name, x in found.items()}


def draw(batch: int, height: int, width: int, heads: int, d: int, dv: int, kernel: tuple[int, int] | None,
         device: str, tokens: int = 0) -> dict[str, Tensor]:
    """float64 q, k, v, bias (with `kernel`), extra_k and extra_v (with `tokens`), exact in all lower dtypes too."""
    shapes = dict(q=(batch, height, width, heads, d), k=(batch, height, width, heads, d),
                  v=(batch, height, width, heads, dv))
    if kernel:
        shapes["bias"] = (heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1)
    if tokens:
        shapes |= dict(extra_k=(batch, tokens, heads, d), extra_v=(batch, tokens, heads, dv))
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


@pytest.fixture(autouse=True)
def no_recordings() -> None:
    """Tests set tile sizes and such, which recordings of earlier calls do not know."""
    _tape.forget()


@pytest.fixture
def fused(device: str, interpreter: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
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

    `bias`: whether there is one, of all pairs, or "table", of displacements. `shared`: q is one window of queries.
    """

    def draw_windows(batch: int, height: int, width: int, heads: int, d: int, dv: int, geometry: Windows,
                     device: str, bias: bool | str = True, shared: bool = False) -> dict[str, Tensor]:
        tensors = draw(batch, height, width, heads, d, dv, None, device)
        if shared:
            tensors["q"] = torch.randn(batch, *geometry.window, heads, d).bfloat16().to(tensors["q"])
        if bias:
            sides = [2 * n - 1 for n in geometry.window] if bias == "table" else [geometry.positions] * 2
            tensors["bias"] = torch.randn(heads, *sides).bfloat16().to(tensors["q"])
        return tensors

    return draw_windows


@pytest.fixture
def channels_eager() -> Callable:
    return channels_in_dtype


@pytest.fixture
def halo_loop() -> Callable:
    return halo_by_loop


@pytest.fixture
def halo_all() -> Callable:
    return halo_to_all


@pytest.fixture
def halo_drawn() -> Callable:
    """draw(batch, height, width, heads, d, dv, geometry, device): float64 tensors as `drawn` gives them.

    height and width are those of the keys.
    """

    def draw_halos(batch: int, height: int, width: int, heads: int, d: int, dv: int, geometry: Halos,
                   device: str) -> dict[str, Tensor]:
        shapes = dict(q=(batch, *geometry.query_map(height, width), heads, d), k=(batch, height, width, heads, d),
                      v=(batch, height, width, heads, dv), rel_h=(2 * geometry.window[0] - 1, d),
                      rel_w=(2 * geometry.window[1] - 1, d))
        tensors = {name: torch.randn(shape).bfloat16().to(device, torch.float64) for name, shape in shapes.items()}
        return tensors | {name: tensors[name] / 4 for name in ("rel_h", "rel_w")}

    return draw_halos


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
        grad = torch.randn(shape).bfloat16().to(next(iter(tensors.values())).device) if backward else None
        truth = run(eager, tensors, grad.double() if backward else None)
        judge(run(function, low, grad), [_reordered(eager, low, grad, order) for order in range(4)], truth, dtype)

    return check


@pytest.fixture
def drawn() -> Callable:
    return draw


@pytest.fixture
def results() -> Callable:
    return run
