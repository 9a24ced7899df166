"""Varied window attention written twice more, as plainly as can be, and drawn tensors."""
import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from visionattn.kernels.window.geometry import Geometry


def whole_bias(bias: Tensor | None, geometry: Geometry) -> Tensor | None:
    """A bias [heads, N, N] of all pairs; from a table of displacements one pair after another."""
    (h, w), n = geometry.window, geometry.positions
    if bias is None or bias.shape[1:] != (2 * h - 1, 2 * w - 1):
        return bias
    pairs = [bias[:, q // w - k // w + h - 1, q % w - k % w + w - 1] for q in range(n) for k in range(n)]
    return torch.stack(pairs, 1).unflatten(1, (n, n))


def interpolated(x: Tensor, y: float, column: float) -> Tensor:
    """A map [H, W, D] of zeros all around, read at one place."""
    out = torch.zeros(x.shape[-1], dtype=x.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for col in (math.floor(column), math.floor(column) + 1):
            if 0 <= row < x.shape[0] and 0 <= col < x.shape[1]:
                out += (1 - abs(y - row)) * (1 - abs(column - col)) * x[row, col]
    return out


def varied_by_loop(q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry,
                   scale: float) -> Tensor:
    """One window of one head after another, one sampled key after another, one query after another."""
    (batch, height, width, heads, _), (h, w) = k.shape, geometry.window
    bias = whole_bias(bias, geometry)
    out = torch.empty(v.shape, dtype=q.dtype)
    for b in range(batch):
        for head in range(heads):
            for top in range(0, height, h):
                for left in range(0, width, w):
                    dy, dx, grow_y, grow_x = sampling[b, top // h, left // w, head].tolist()
                    middle_y, middle_x = top + (h - 1) / 2, left + (w - 1) / 2
                    places = [(middle_y + dy + (1 + grow_y) * (i - (h - 1) / 2),
                               middle_x + dx + (1 + grow_x) * (j - (w - 1) / 2)) for i in range(h) for j in range(w)]
                    keys, values = (torch.stack([interpolated(z[b, :, :, head], *place) for place in places])
                                    for z in (k, v))
                    for y in range(top, min(top + h, height)):
                        for x in range(left, min(left + w, width)):
                            logits = keys @ q[b, y, x, head] * scale
                            if bias is not None:
                                logits = logits + bias[head, (y - top) * w + x - left]
                            out[b, y, x, head] = logits.softmax(-1) @ values
    return out


def varied_in_dtype(q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry,
                    scale: float) -> Tensor:
    """By products with the weights of all positions, in q's dtype throughout but for the places: eager PyTorch."""
    (_, height, width, _, _), (h, w) = k.shape, geometry.window
    many_y, many_x = -(-height // h), -(-width // w)
    exact = torch.promote_types(sampling.dtype, torch.float32)
    weights = []
    for axis, (n, size, many) in enumerate(((height, h, many_y), (width, w, many_x))):
        number = torch.arange(many * size, device=q.device).unflatten(0, (many, size)).to(exact)
        middle = number.mean(1, keepdim=True)                                       # [M, 1]
        middle, apart = ((x[:, None, None] if axis == 0 else x[:, None]) for x in (middle, number - middle))
        shift, grow = (sampling[..., i, None].to(exact) for i in (axis, 2 + axis))  # [B, M, N, heads, 1]
        place = middle + shift + (1 + grow) * apart                                 # [B, M, N, heads, size]
        before = place.detach().floor()[..., None]
        part, position = place[..., None] - before, torch.arange(n, device=q.device)
        weights.append(((position == before) * (1 - part) + (position == before + 1) * part).to(q.dtype))
    keys, values = (torch.einsum("bmnhjx,bmnhixd->bmnhijd", weights[1],
                                 torch.einsum("bmnhiy,byxhd->bmnhixd", weights[0], z)).flatten(4, 5) for z in (k, v))
    q = torch.nn.functional.pad(q, (0, 0, 0, 0, 0, many_x * w - width, 0, many_y * h - height))
    queries = q.unflatten(2, (many_x, w)).unflatten(1, (many_y, h)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)
    logits = (queries * scale) @ keys.transpose(-1, -2)
    if bias is not None:
        logits = logits + whole_bias(bias, geometry).to(q.dtype)
    out = (logits.softmax(-1) @ values).unflatten(4, (h, w)).permute(0, 1, 4, 2, 5, 3, 6)
    return out.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def draw(batch: int, height: int, width: int, heads: int, d: int, dv: int, geometry: Geometry, device: str,
         bias: bool | str = "table", spread: float = 1.0) -> dict[str, Tensor]:
    """float64 tensors that float16, bfloat16 and float32 all hold exactly.

    `bias`: whether there is one, of all pairs, or "table", of displacements. `spread`: how far places lie from those of
    the windows, in positions; stretches lie within -1.5 and 1.5 times that.
    """
    windows = (-(-height // geometry.window[0]), -(-width // geometry.window[1]))
    shapes = dict(q=(batch, height, width, heads, d), k=(batch, height, width, heads, d),
                  v=(batch, height, width, heads, dv), sampling=(batch, *windows, heads, 4))
    if bias:
        sides = [2 * n - 1 for n in geometry.window] if bias == "table" else [geometry.positions] * 2
        shapes["bias"] = (heads, *sides)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["sampling"] *= spread
    tensors["sampling"][..., 2:] = (tensors["sampling"][..., 2:] / 2).clamp(-1.5 * spread, 1.5 * spread)
    return {name: x.bfloat16().to(device, torch.float64) for name, x in tensors.items()}


def drawn_case(seed: int) -> tuple[Geometry, dict]:
    """Odd, rectangular, batch 1; windows that do not divide the map or are larger; places near, far and folded over."""
    r = random.Random(seed)
    geometry = Geometry((r.randint(1, 4), r.randint(1, 4)))
    height, width = (r.choice((w * r.randint(1, 2), r.randint(1, 7))) for w in geometry.window)
    shape = dict(batch=r.randint(1, 2), height=height, width=width, heads=r.randint(1, 2), d=r.choice((8, 9)),
                 dv=r.choice((8, 11)), geometry=geometry, device="cpu", bias=r.choice((True, False, "table")),
                 spread=r.choice((0.0, 0.3, 1.0, 4.0)))
    return geometry, shape


@pytest.fixture
def varied_loop() -> Callable:
    return varied_by_loop


@pytest.fixture
def varied_eager() -> Callable:
    return varied_in_dtype


@pytest.fixture
def varied_drawn() -> Callable:
    return draw


@pytest.fixture
def varied_case() -> Callable:
    return drawn_case
