"""Fused 2-D attention ops for vision. Needs torch alone; Triton is loaded on the first call on a GPU."""
if __name__ == "kernels":
    raise ImportError(
        "import visionattn.kernels, not kernels: the bare name belongs to another well-known distribution, which timm "
        "and transformers import; the folder at the root of visionattn's repository must not stand in for it")

from ._dispatch import explain, referenced
from .channel import channel_attention, channel_attention_packed
from .depthwise import depthwise_conv
from .halo import halo_attention, halo_attention_packed_kv
from .linear import linear_attention, linear_attention_packed
from .neighborhood import neighborhood_attention, neighborhood_attention_packed
from .routing import routed_attention, routed_attention_packed, routed_attention_packed_qk
from .varied_window import varied_window_attention, varied_window_attention_packed
from .window import window_attention, window_attention_packed, window_attention_packed_kv

__all__ = [
    "channel_attention",
    "channel_attention_packed",
    "depthwise_conv",
    "explain",
    "halo_attention",
    "halo_attention_packed_kv",
    "linear_attention",
    "linear_attention_packed",
    "neighborhood_attention",
    "neighborhood_attention_packed",
    "referenced",
    "routed_attention",
    "routed_attention_packed",
    "routed_attention_packed_qk",
    "varied_window_attention",
    "varied_window_attention_packed",
    "window_attention",
    "window_attention_packed",
    "window_attention_packed_kv",
]
