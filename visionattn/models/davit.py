"""DaViT on fused window attention and channel attention.

Paper: "DaViT: Dual Attention Vision Transformers", arXiv 2204.03645. Weights: the authors'
(github.com/dingmyu/davit, MIT licence), as timm publishes them; timm's state dicts and the official repository's own
both load.

Images of any size: maps are padded at the bottom and right to whole windows, behind the norm and before the projection,
and padding is attended to, as in the official code. Channels attend over the map as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import ClNormMlpClassifierHead
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import ChannelAttention, ConvPositionEncoding, TransformerBlock, WindowAttention
from visionattn.layers.memory import channels_last, nchw
from visionattn.layers.padding import pad_to_multiple
from visionattn.models.checkpoints import require_layout, unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg

KERNEL = 7  # of the stem's convolution


class DaVitStem(nn.Module):
    """A 7x7 convolution whose windows overlap, and a LayerNorm.

    Args:
        in_chans: channels of the image.
        dim: channels of the map.
        stride: pixels of the image per token of the map, 1 to 7.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory.

    Raises:
        ValueError: for another stride.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        if not 1 <= stride <= KERNEL:
            raise ValueError(f"stem_stride must lie in 1..{KERNEL}, got {stride!r}")
        dd = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(in_chans, dim, KERNEL, stride, KERNEL // 2, **dd)
        self.norm = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # channels-last from here on, so that every change of layout behind it is a free view
        x = self.conv(channels_last(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DaVitDownsample(nn.Module):
    """A LayerNorm and a convolution of patches that do not overlap.

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim]; maps that patches do not divide are
    filled up with zeros at the bottom and right, behind the norm.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 2, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(in_dim, **dd)
        self.conv = nn.Conv2d(in_dim, dim, stride, stride, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_multiple(self.norm(x), self.conv.stride)
        return self.conv(nchw(x)).permute(0, 2, 3, 1)


class DaVitBlock(TransformerBlock):
    """A transformer block with a convolutional position encoding in front of the attention and of the MLP.

    Arguments and shapes as in :class:`~visionattn.layers.TransformerBlock`.
    """

    def __init__(self, dim: int, attn: nn.Module, *args, device=None, dtype=None, **kwargs) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, attn, *args, **dd, **kwargs)
        self.cpe1 = ConvPositionEncoding(dim, **dd)
        self.cpe2 = ConvPositionEncoding(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe1(x)
        x = self.cpe2(x + self.drop_path1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class DaVit(Pyramid):
    """A pyramid of pairs of blocks: attention within windows, then attention between channels.

    Args:
        dims, num_heads: one entry a stage; there are as many groups of channels as heads.
        depths: pairs of blocks of each stage.
        window_size: of every block of window attention, an int or an (h, w) pair.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections to queries, keys and values.
        proj_drop_rate: dropout behind projections.
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        def block(site: Site, **dd) -> DaVitBlock:
            dim, heads = site.dim, num_heads[site.stage]
            common = {"qkv_bias": qkv_bias, "proj_drop": proj_drop_rate, **dd}
            if site.index % 2:
                attn = ChannelAttention(dim, heads, **common)
            else:
                attn = WindowAttention(dim, heads, window_size, rel_bias=False, **common)
            return DaVitBlock(dim, attn, mlp_ratio, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd)

        head = partial(ClNormMlpClassifierHead, norm_layer=nn.LayerNorm)  # whose epsilon is not that of timm's default
        parts = {"stem": DaVitStem, "downsample": DaVitDownsample, "norm_layer": None, "head": head}
        super().__init__(dims, tuple(2 * n for n in depths), block, **{**parts, **pyramid})


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A DaViT checkpoint for ``model``: ours, timm's or the official one.

    Theirs number blocks within pairs, and the official one has the stem and the downsamplers in one list.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = {}
    for name, tensor in unwrap_state_dict(checkpoint).items():
        name = re.sub(r"^patch_embeds\.0\.", "stem.", name)
        name = re.sub(r"^patch_embeds\.(\d+)\.", r"stages.\1.downsample.", name)
        name = re.sub(r"^(stem|stages\.\d+\.downsample)\.proj\.", r"\1.conv.", name)
        name = re.sub(r"^main_blocks\.(\d+)\.", r"stages.\1.blocks.", name)
        name = re.sub(r"^(stages\.\d+\.blocks)\.(\d+)\.([01])\.", _pair_to_block, name)
        name = re.sub(r"\.cpe\.([01])\.", lambda m: f".cpe{int(m[1]) + 1}.", name)
        name = re.sub(r"^norms\.", "head.norm.", re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name))
        state_dict[name] = tensor
    require_layout(state_dict, model, "DaViT")
    return state_dict


def _pair_to_block(found: re.Match) -> str:
    return f"{found[1]}.{2 * int(found[2]) + int(found[3])}."


def _cfg(**kwargs) -> dict:
    return model_cfg(
        crop_pct=0.95,
        first_conv="stem.conv",
        license="mit",
        origin_url="https://github.com/dingmyu/davit",
        paper_ids="arXiv:2204.03645",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "fused_davit_tiny.msft_in1k": _cfg(hf_hub_id="timm/davit_tiny.msft_in1k"),
        "fused_davit_small.msft_in1k": _cfg(hf_hub_id="timm/davit_small.msft_in1k"),
        "fused_davit_base.msft_in1k": _cfg(hf_hub_id="timm/davit_base.msft_in1k"),
        "fused_davit_large": _cfg(),  # without published weights
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(DaVit, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def fused_davit_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """DaViT-T: 28.4 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (1, 1, 3, 1), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.1}
    return _create("fused_davit_tiny", pretrained, **{**args, **kwargs})


@register_model
def fused_davit_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """DaViT-S: 49.7 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (1, 1, 9, 1), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
    return _create("fused_davit_small", pretrained, **{**args, **kwargs})


@register_model
def fused_davit_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """DaViT-B: 88.0 M parameters."""
    args = {"dims": (128, 256, 512, 1024), "depths": (1, 1, 9, 1), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.4}
    return _create("fused_davit_base", pretrained, **{**args, **kwargs})


@register_model
def fused_davit_large(pretrained: bool = False, **kwargs) -> nn.Module:
    """DaViT-L: 196.8 M parameters."""
    args = {"dims": (192, 384, 768, 1536), "depths": (1, 1, 9, 1), "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.4}
    return _create("fused_davit_large", pretrained, **{**args, **kwargs})
