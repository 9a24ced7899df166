"""Token mixers and the small parts that the backbones share; with :mod:`visionattn.fusing`, which puts the kernels into
timm's own mixers, the only callers of :mod:`visionattn.kernels`."""

from visionattn.layers.channel import ChannelAttention
from visionattn.layers.embed import ConvDownsample, ConvStem, PatchMerging, PatchStem
from visionattn.layers.halo import HaloAttention
from visionattn.layers.linear import LinearAttention
from visionattn.layers.neighborhood import NeighborhoodAttention
from visionattn.layers.position import ConvPositionEncoding
from visionattn.layers.routing import GlobalAttention, RoutedAttention
from visionattn.layers.stripes import CrossShapedAttention
from visionattn.layers.transformer import TransformerBlock
from visionattn.layers.varied_window import VariedWindowAttention
from visionattn.layers.window import WindowAttention

__all__ = [
    "ChannelAttention",
    "ConvDownsample",
    "ConvPositionEncoding",
    "ConvStem",
    "CrossShapedAttention",
    "GlobalAttention",
    "HaloAttention",
    "LinearAttention",
    "NeighborhoodAttention",
    "PatchMerging",
    "PatchStem",
    "RoutedAttention",
    "TransformerBlock",
    "VariedWindowAttention",
    "WindowAttention",
]
