"""The tiles of this package's own neighborhood attention: what its forward pass takes, asked of the kernel's tuning."""

from visionattn.training.errors import UserError

from .model import Problem, Result, Tiling, simulate


def tiling(problem: Problem, head_dim: int = 64, dtype: str = "bfloat16", bias: bool = False) -> Tiling:
    """The forward pass's tiles for a problem on a 2-D map; ``head_dim``: 8 to 256, ``dtype``: a name in torch.

    Raises UserError for what our kernel does not compute, and where Triton is not installed.
    """
    if len(problem.size) != 2:
        raise UserError(f"our kernel is for maps of 2 axes, not {len(problem.size)}: give a tile and a chunk")
    if any(problem.causal):
        raise UserError("our kernel has no causal axes: give a tile and a chunk")
    try:
        import triton  # noqa: F401  the kernels' plan stands beside their launches
    except ImportError:
        raise UserError("Triton is not installed, which our kernel's tiles need: give a tile and a chunk") from None
    import torch

    from visionattn.kernels.neighborhood.fused import forward_tiling
    from visionattn.kernels.neighborhood.geometry import Geometry

    geometry = Geometry(problem.kernel, problem.dilation, problem.stride)
    return Tiling(*forward_tiling(geometry, *problem.size, head_dim, getattr(torch, dtype), bias))


def simulate_ours(problem: Problem, head_dim: int = 64, dtype: str = "bfloat16", bias: bool = False) -> Result:
    """The model of our kernel's forward pass, against itself at kernel = map: see :func:`simulate`."""
    mine, full = (tiling(one, head_dim, dtype, bias) for one in (problem, problem.full))
    return simulate(problem, mine, full)
