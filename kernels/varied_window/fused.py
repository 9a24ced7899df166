"""Varied window attention on a GPU: there are no fused kernels, which is what this says."""

from torch import Tensor

from ..window.geometry import Geometry


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, sampling: Tensor, bias: Tensor | None, geometry: Geometry
) -> str | None:
    """Why no fused kernel can take these tensors."""
    return "varied windows have no fused kernels"
