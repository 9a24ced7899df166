"""Token mixers and the small parts that the backbones share; the only callers of :mod:`visionattn.kernels`."""

from visionattn.layers.embed import ConvDownsample, ConvStem
from visionattn.layers.neighborhood import NeighborhoodAttention

__all__ = ["ConvDownsample", "ConvStem", "NeighborhoodAttention"]
