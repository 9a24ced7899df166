"""The analytical model: the tiles of a neighborhood attention, what they compute, and the speed-up that this allows.

A fused kernel computes whole products of a query tile and a chunk of keys; what the neighborhood hides of them is
masked, and wasted. Counting the products gives a bound on the speed-up over full attention that is tighter than the
saved FLOPs, and equal to it where no product is wasted.

Source: Hassani et al., "Generalized Neighborhood Attention: Multi-dimensional Sparse Attention at the Speed of Light",
2025, arXiv:2504.16922, section 3.2 and appendix B.1.
"""

from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from .axes import Axis, Tiles, Visits, attended, visits


def per_axis(name: str, value: Any, axes: int) -> tuple[int, ...]:
    """``value``, one whole number or one an axis, as a tuple. Raises ValueError otherwise."""
    found = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(found) == 1:
        found *= axes
    if len(found) != axes or not all(isinstance(n, int) for n in found):
        raise ValueError(f"{name} must be one number or {axes}, one an axis of the map, got {as_text(found)}")
    return found


def as_text(numbers: tuple[int, ...]) -> str:
    """``8x16``."""
    return "x".join(map(str, numbers))


@dataclass(frozen=True)
class Problem:
    """A neighborhood attention: the map, and its neighborhoods, as tuples of one number an axis (1 to 3 axes).

    :meth:`make` takes single numbers too. Raises ValueError for what the attention is not defined for.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]

    @classmethod
    def make(cls, size: Any, kernel: Any, stride: Any = 1, dilation: Any = 1, causal: Any = False) -> "Problem":
        """``size``: one number an axis; all else one number for all axes, or one an axis."""
        size = per_axis("map", size, 1) if isinstance(size, int) else tuple(size)
        axes = len(size)
        causal = (causal,) * axes if isinstance(causal, bool) else tuple(map(bool, causal))
        return cls(size, per_axis("kernel", kernel, axes), per_axis("stride", stride, axes),
                   per_axis("dilation", dilation, axes), causal)  # fmt: skip

    def __post_init__(self) -> None:
        axes = len(self.size)
        if not 1 <= axes <= 3:
            raise ValueError(f"map must have 1 to 3 axes, got {as_text(self.size)}")
        for name in ("kernel", "stride", "dilation", "causal"):
            if len(getattr(self, name)) != axes:
                raise ValueError(f"{name} must have one entry an axis of the map, {axes}, got {getattr(self, name)}")
        for axis, (n, k, s, d) in enumerate(zip(self.size, self.kernel, self.stride, self.dilation)):
            if n < 1:
                raise ValueError(f"map must be at least 1 on every axis, got {n} on axis {axis}")
            if d < 1:
                raise ValueError(f"dilation must be at least 1 on every axis, got {d} on axis {axis}")
            if not 1 <= k <= n // d:
                raise ValueError(f"kernel must lie between 1 and map // dilation = {n // d}, got {k} on axis {axis}")
            if not 1 <= s <= k:
                raise ValueError(f"stride must lie between 1 and kernel = {k}, got {s} on axis {axis}")

    @property
    def axes(self) -> list[Axis]:
        """The axes, without their strides."""
        return [Axis(*one) for one in zip(self.size, self.kernel, self.dilation, self.causal)]

    @property
    def full(self) -> "Problem":
        """Full attention over the same map, which speed-ups are measured against."""
        return Problem.make(self.size, self.size)


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts the work: positions of a query tile and of a key chunk on every axis.

    A tile walks the box of keys that its queries see, chunk by chunk. The chunks start at the box's first key (dynamic,
    as in our kernel), or with ``static`` lie on a fixed grid, as copies that are described before the launch need.
    """

    tile: tuple[int, ...]
    chunk: tuple[int, ...]
    static: bool = False

    def __post_init__(self) -> None:
        for name in ("tile", "chunk"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1 on every axis, got {as_text(getattr(self, name))}")

    @property
    def axes(self) -> list[Tiles]:
        """The tiling of each axis."""
        return [Tiles(*one, self.static) for one in zip(self.tile, self.chunk)]

    @property
    def product(self) -> int:
        """Pairs of a query and a key that one product of a tile and a chunk computes."""
        return prod(self.tile) * prod(self.chunk)


@dataclass(frozen=True)
class Result:
    """What the model says of one setting. Speed-ups are over full attention on the same map, not causal, not dilated.

    tiles: query tiles of one head; visited: chunks that they visit, all together; busiest: of the one that visits most.
    sparsity: share of all pairs that the neighborhood hides.
    flop_speedup: the bound by FLOPs alone, all pairs over attended ones.
    speedup: the realistic bound, pairs that full attention's tiles compute over those that these compute.
    worst_tile_speedup: the same of the busiest tile alone, the paper's figure: what counts where all run at once.
    wasted: share of the computed pairs that are masked, or of queries or keys that do not exist.
    block_sparse: whether every product is needed whole, so that no mask is: the realistic bound is then the FLOPs'.
    """

    problem: Problem
    tiling: Tiling
    full_tiling: Tiling = field(repr=False)
    tiles: int
    visited: int
    busiest: int
    sparsity: float
    flop_speedup: float
    speedup: float
    worst_tile_speedup: float
    wasted: float
    block_sparse: bool

    def as_dict(self) -> dict[str, Any]:
        """A flat dictionary for JSON: tuples become lists, tilings and the problem are laid out by name."""
        found = asdict(self)
        problem, tiling, full = found.pop("problem"), found.pop("tiling"), found.pop("full_tiling")
        problem["map"] = problem.pop("size")
        tiling["tiling"] = "static" if tiling.pop("static") else "dynamic"
        laid_out = {"map": problem.pop("map"), **problem, **tiling, "full_tile": full["tile"],
                    "full_chunk": full["chunk"], **found}  # fmt: skip
        return {name: list(value) if isinstance(value, tuple) else value for name, value in laid_out.items()}


def _visits(problem: Problem, tiling: Tiling) -> list[Visits]:
    return [visits(*one) for one in zip(problem.axes, tiling.axes, ((s,) for s in problem.stride))]


def simulate(problem: Problem, tiling: Tiling, full_tiling: Tiling | None = None) -> Result:
    """What ``tiling`` computes for ``problem``, beside full attention under ``full_tiling`` (default: the same).

    Raises ValueError where a tiling has not as many axes as the map.
    """
    full_tiling = tiling if full_tiling is None else full_tiling
    for one in (tiling, full_tiling):
        for name in ("tile", "chunk"):
            if len(getattr(one, name)) != len(problem.size):
                numbers = getattr(one, name)
                raise ValueError(f"{name} must have {len(problem.size)} axes as the map has, got {as_text(numbers)}")
    mine, full = _visits(problem, tiling), _visits(problem.full, full_tiling)
    visited, busiest = prod(int(v.visited[0]) for v in mine), prod(int(v.busiest[0]) for v in mine)
    pairs = prod(attended(*one) for one in zip(problem.axes, problem.stride))
    everything = prod(problem.size) ** 2
    full_chunks = prod(int(v.busiest[0]) for v in full) * prod(full_tiling.chunk)
    return Result(
        problem=problem,
        tiling=tiling,
        full_tiling=full_tiling,
        tiles=prod(v.tiles for v in mine),
        visited=visited,
        busiest=busiest,
        sparsity=1 - pairs / everything,
        flop_speedup=everything / pairs,
        speedup=prod(int(v.visited[0]) for v in full) * full_tiling.product / (visited * tiling.product),
        worst_tile_speedup=full_chunks / (busiest * prod(tiling.chunk)),
        wasted=1 - pairs / (visited * tiling.product),
        block_sparse=prod(int(v.computed[0]) for v in mine) == pairs,
    )
