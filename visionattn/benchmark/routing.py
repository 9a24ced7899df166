"""Routed attention and its gathering formulations on the same numbers."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visionattn.kernels.routing import routed_attention_packed_qk

from .beside_timm import Side
from .cases import RoutingCase


def _cut(x: Tensor, regions: int) -> Tensor:
    """[B, H, W, heads, D] -> [B, R, N, heads * D]: R regions of N tokens."""
    x = x.flatten(3).unflatten(2, (regions, -1)).unflatten(1, (regions, -1))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _joined(x: Tensor, case: RoutingCase) -> Tensor:
    """[B, R, heads, N, D] -> [B, H, W, heads, D]."""
    rows, columns = case.height // case.regions, case.width // case.regions
    x = x.transpose(2, 3).unflatten(2, (rows, columns)).unflatten(1, (case.regions, case.regions))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, R, n, heads * D] -> [B, R, heads, n, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(2, 3)


def gathered(case: RoutingCase, qk: Tensor, v: Tensor, routes: Tensor) -> Tensor:
    """The usual formulation: torch.gather from keys and values repeated for each region, two products and a softmax."""
    queries, keys, values = (_cut(x, case.regions) for x in (*qk.unbind(3), v))
    batch, count, tokens, channels = keys.shape

    def seen(x: Tensor) -> Tensor:  # [B, R, K * N, heads * D]
        repeated = x[:, None].expand(-1, count, -1, -1, -1)
        return repeated.gather(2, routes[..., None, None].expand(-1, -1, -1, tokens, channels)).flatten(2, 3)

    queries, keys, values = (_heads(x, case.heads) for x in (queries, seen(keys), seen(values)))
    weights = (queries * case.dim**-0.5 @ keys.transpose(-1, -2)).softmax(-1)
    return _joined(weights @ values, case)


def selected(case: RoutingCase, qk: Tensor, v: Tensor, routes: Tensor) -> Tensor:
    """A leaner one: rows of regions by index, and the library's fused attention."""
    queries, keys, values = (_cut(x, case.regions) for x in (*qk.unbind(3), v))
    batch, count = keys.shape[:2]
    index = (routes + torch.arange(batch, device=routes.device)[:, None, None] * count).flatten()

    def seen(x: Tensor) -> Tensor:  # [B, R, K * N, heads * D]
        return x.flatten(0, 1).index_select(0, index).unflatten(0, (batch, count, -1)).flatten(2, 3)

    queries, keys, values = (_heads(x, case.heads).flatten(0, 1) for x in (queries, seen(keys), seen(values)))
    return _joined(scaled_dot_product_attention(queries, keys, values).unflatten(0, (batch, count)), case)


def sides(case: RoutingCase, device: torch.device, dtype: torch.dtype) -> dict[str, Side]:
    """Our op on the projections' packed queries and keys, and values, for routes as top-k gives them; its peers."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    batch, height, width, heads, dim = case.shape
    qk, v = draw(batch, height, width, 2, heads, dim).requires_grad_(), draw(*case.shape).requires_grad_()
    affinity = torch.rand(batch, case.regions**2, case.regions**2, generator=generator, device=device)
    routes, grad = affinity.topk(case.topk, sorted=False).indices, draw(*case.shape)

    def ours() -> Tensor:
        return routed_attention_packed_qk(qk, v, routes, case.regions)

    return {
        "ours": Side(ours, [qk, v], grad),
        "gather": Side(lambda: gathered(case, qk, v, routes), [qk, v], grad),
        "select": Side(lambda: selected(case, qk, v, routes), [qk, v], grad),
    }
