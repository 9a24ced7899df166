"""Token mixers and the small parts that the backbones share; the only callers of :mod:`visionattn.kernels`."""

from visionattn.layers.embed import ConvDownsample, ConvStem, PatchMerging, PatchStem
from visionattn.layers.linear import LinearAttention
from visionattn.layers.neighborhood import NeighborhoodAttention
from visionattn.layers.stripes import CrossShapedAttention
from visionattn.layers.transformer import TransformerBlock
from visionattn.layers.window import WindowAttention

__all__ = [
    "ConvDownsample",
    "ConvStem",
    "CrossShapedAttention",
    "LinearAttention",
    "NeighborhoodAttention",
    "PatchMerging",
    "PatchStem",
    "TransformerBlock",
    "WindowAttention",
]
