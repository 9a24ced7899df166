"""Routed attention written twice more, as plainly as can be, and drawn tensors and routes."""
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Regions = tuple[int, int]


def region_of(n: int, count: int) -> list[int]:
    """The region of each of `n` positions along an axis that is cut into `count`."""
    size = -(-n // count)
    return [i // size for i in range(n)]


def routed_by_loop(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, regions: Regions, scale: float) -> Tensor:
    """One position after another: a list of the keys that it sees, read off the routes of its region."""
    batch, height, width, heads, _ = q.shape
    rows, columns = (region_of(n, count) for n, count in zip((height, width), regions))
    members: dict[int, list[tuple[int, int]]] = {}
    for y in range(height):
        for x in range(width):
            members.setdefault(rows[y] * regions[1] + columns[x], []).append((y, x))
    out = torch.zeros(v.shape, dtype=q.dtype)
    for b in range(batch):
        for region, places in members.items():
            chosen = [min(max(route, 0), regions[0] * regions[1] - 1) for route in routes[b, region].tolist()]
            seen = [place for route in chosen for place in members.get(route, [])]
            if not seen:
                continue
            keys, values = (torch.stack([z[b, y, x] for y, x in seen]) for z in (k, v))     # [seen, heads, D]
            for y, x in places:
                logits = torch.einsum("hd,nhd->hn", q[b, y, x], keys) * scale
                out[b, y, x] = torch.einsum("hn,nhd->hd", logits.softmax(-1), values)
    return out


def routed_to_all(q: Tensor, k: Tensor, v: Tensor, routes: Tensor, regions: Regions, scale: float) -> Tensor:
    """Every query against the whole map, each key as often as it is seen, in q's dtype: what eager PyTorch gives."""
    rows, columns = (torch.tensor(region_of(n, count), device=q.device) for n, count in zip(k.shape[1:3], regions))
    own = (rows[:, None] * regions[1] + columns).flatten()                                  # [H * W]
    routes = routes.clamp(0, regions[0] * regions[1] - 1)
    times = (routes[:, own, :, None] == own).sum(2)[:, None]                                # [B, 1, queries, keys]
    logits = (q * scale).flatten(1, 2).transpose(1, 2) @ k.flatten(1, 2).permute(0, 2, 3, 1)
    logits = (logits + times.clamp(min=1).to(q.dtype).log()).masked_fill(times == 0, torch.finfo(q.dtype).min)
    out = logits.softmax(-1) @ v.flatten(1, 2).transpose(1, 2)
    out = out.masked_fill((times == 0).all(-1, keepdim=True), 0)
    return out.transpose(1, 2).unflatten(1, k.shape[1:3])


def draw_routes(batch: int, regions: Regions, topk: int, kind: str, device: str) -> Tensor:
    """[batch, R, topk] int64: "distinct" as top-k gives them; "any" with repeats and numbers out of range; "popular"
    where all choose among the first few, so that most regions are chosen by none."""
    count = regions[0] * regions[1]
    if kind == "distinct":
        return torch.rand(batch, count, count).topk(topk, -1).indices.to(device)
    low, high = {"any": (-2, count + 2), "popular": (0, min(2, count))}[kind]
    return torch.randint(low, high, (batch, count, topk)).to(device)


def draw_case(seed: int) -> tuple[Regions, Tensor, dict]:
    """A drawn case: odd, rectangular, batch 1; maps that the regions divide, cut, or leave regions out of."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    regions = r.randint(1, 4), r.randint(1, 4)
    height, width = (r.choice((n * r.randint(1, 3), r.randint(1, 11))) for n in regions)
    kind = r.choice(("distinct", "any", "popular"))
    topk = r.randint(1, min(4, regions[0] * regions[1])) if kind == "distinct" else r.randint(1, 4)
    shape = dict(batch=r.randint(1, 2), height=height, width=width, heads=r.randint(1, 3), d=r.choice((8, 9, 16)),
                 dv=r.choice((8, 11)), kernel=None, device="cpu")
    return regions, draw_routes(shape["batch"], regions, topk, kind, "cpu"), shape


@pytest.fixture
def routed_loop() -> Callable:
    return routed_by_loop


@pytest.fixture
def routed_all() -> Callable:
    return routed_to_all


@pytest.fixture
def routes_drawn() -> Callable:
    return draw_routes


@pytest.fixture
def case_drawn() -> Callable:
    return draw_case
