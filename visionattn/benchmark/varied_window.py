"""Varied window attention and the published way on the same tensors: grid_sample over the map, then windows."""

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad, scaled_dot_product_attention

from visionattn.kernels.varied_window import varied_window_attention_packed
from visionattn.kernels.window.relative import relative_index

from .beside_timm import Side
from .cases import VariedCase


def _windows(x: Tensor, window: int) -> Tensor:
    """[B, heads, H, W, D] -> [B * M * N, heads, window * window, D]."""
    x = x.unflatten(3, (-1, window)).unflatten(2, (-1, window))  # [B, heads, M, Y, N, X, D]
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def sides(case: VariedCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op on packed q, k and v with the table as the layer passes it; grid_sample with attention as published, and
    with SDPA.

    grid_sample works in float32, as under autocast: places do not fit into half precision.
    """
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    (batch, height, width, heads, dim), window = case.shape, case.window
    many_y, many_x = -(-height // window), -(-width // window)
    rows, columns = many_y * window, many_x * window
    packed = draw(batch, height, width, 3, heads, dim).requires_grad_()
    table = draw((2 * window - 1) ** 2, heads).requires_grad_()
    grad = draw(*case.shape)
    sampling = draw(batch, many_y, many_x, heads, 4, dtype=torch.float32) * case.spread
    sampling[..., 2:] /= 6
    sampling.requires_grad_()

    def ours() -> Tensor:
        bias = table.t().unflatten(1, [2 * window - 1] * 2)
        return varied_window_attention_packed(packed, window, sampling, bias)

    # the published model's constants: places of whole maps in -1 to 1, x before y
    axes = [
        torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device) for n in (rows, columns)
    ]
    here = torch.stack(torch.meshgrid(axes[1], axes[0], indexing="xy"), -1)  # [H, W, 2]
    here = here.unflatten(1, (many_x, window)).unflatten(0, (many_y, window))  # [M, Y, N, X, 2]
    middle = here.mean((1, 3), keepdim=True)
    half = torch.tensor([max(columns - 1, 1), max(rows - 1, 1)], device=device) / 2
    index = relative_index((window, window), device)

    def prepared() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Windows of queries, sampled keys and values, [windows, heads, N, D], and the bias [1, heads, N, N]."""
        q, k, v = (
            pad(packed.flatten(3), (0, 0, 0, columns - width, 0, rows - height)).unflatten(3, (3, heads, dim)).unbind(3)
        )
        places = sampling.permute(0, 3, 1, 2, 4)[:, :, :, None, :, None]  # [B, heads, M, 1, N, 1, 4]
        grid = middle + (here - middle) * (1 + places[..., [3, 2]]) + places[..., [1, 0]] / half
        grid = grid.flatten(4, 5).flatten(2, 3).flatten(0, 1)  # [B * heads, H, W, 2]
        kv = torch.cat((k, v), -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
        sampled = grid_sample(kv.float(), grid, padding_mode="zeros", align_corners=True).to(dtype)
        keys, values = sampled.unflatten(0, (batch, heads)).permute(0, 1, 3, 4, 2).split(dim, -1)
        return *(_windows(x, window) for x in (q.permute(0, 3, 1, 2, 4), keys, values)), table.t()[None, :, index]

    def joined(x: Tensor) -> Tensor:
        x = x.unflatten(0, (batch, many_y, many_x)).unflatten(4, (window, window)).permute(0, 1, 4, 2, 5, 3, 6)
        return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]

    def published() -> Tensor:
        q, k, v, bias = prepared()
        return joined(((q * dim**-0.5) @ k.transpose(-1, -2) + bias).softmax(-1) @ v)

    def sdpa() -> Tensor:
        q, k, v, bias = prepared()
        return joined(scaled_dot_product_attention(q, k, v, attn_mask=bias))

    wanted = [packed, sampling, table]
    forms = {"ours": ours, "grid_sample": published, "grid_sample sdpa": sdpa}
    return {name: Side(form, wanted, grad) for name, form in forms.items()}
