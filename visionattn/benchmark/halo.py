"""Halo attention and timm's HaloAttn behind its projections on the same numbers."""

import torch
from timm.layers.halo_attn import HaloAttn
from torch import Tensor

from visionattn.kernels.halo import halo_attention_packed_kv

from .beside_timm import Given, Side
from .cases import HaloCase


def _to_timm(x: Tensor) -> Tensor:
    """[B, H, W, heads, D] -> contiguous [B, heads * D, H, W]: what HaloAttn's projections write, and reads as it is."""
    return x.detach().flatten(3).permute(0, 3, 1, 2).contiguous()


def _from_timm(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def _from_ours(x: Tensor) -> Tensor:
    return x.flatten(3) if x.ndim == 5 else x


def sides(case: HaloCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op on the queries and the packed keys and values that projections write, and timm's layer without them."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    batch, height, width, heads, dim = case.shape
    q = draw(batch, *case.query_map, heads, dim).requires_grad_()
    kv = draw(batch, height, width, heads, dim + case.dim_v).requires_grad_()
    tables = [(draw(2 * case.window - 1, dim) * dim**-0.5).requires_grad_() for _ in range(2)]
    grad = draw(batch, *case.query_map, heads, case.dim_v)

    def ours() -> Tensor:
        return halo_attention_packed_kv(q, kv, case.block, case.halo, *tables, case.stride)

    layer = HaloAttn(
        heads * dim,
        heads * case.dim_v,
        stride=case.stride,
        num_heads=heads,
        dim_head=dim,
        block_size=case.block,
        halo_size=case.halo,
        device=device,
        dtype=dtype,
    )
    their_q, their_kv = (_to_timm(x).requires_grad_() for x in (q, kv))
    layer.q, layer.kv = Given(their_q), Given(their_kv)
    for name, table in zip(("height_rel", "width_rel"), tables):
        delattr(layer.pos_embed, name)
        setattr(layer.pos_embed, name, table)

    def timms() -> Tensor:
        return layer(their_kv)  # of which only the shape counts

    return {
        "ours": Side(ours, [q, kv, *tables], grad, _from_ours),
        "timm": Side(timms, [their_q, their_kv, *tables], _to_timm(grad), _from_timm),
    }
