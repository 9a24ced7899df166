"""InLine-CSwin: CSwin whose first stages attend to the whole map with injective linear attention.

Paper: "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024, arXiv 2412.06590, on the host of
"CSWin Transformer", arXiv 2107.00652. Weights: the authors' (github.com/LeapLabTHU/InLine, no licence file) are not
named here; their files load.

Images of any size: linear attention and the last stage's windows take the whole map, stripes its whole height or width,
as in the official code at the one size that it is built for. Stripes that reach beyond a map hold less.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from timm.layers import register_notrace_module
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn.functional import pad

from visionattn.layers import ConvDownsample, CrossShapedAttention, LinearAttention, TransformerBlock
from visionattn.layers.memory import channels_last
from visionattn.models.checkpoints import require_layout, unwrap_state_dict
from visionattn.models.inline_swin import check_linear_depths, inline_cfg
from visionattn.models.pyramid import Pyramid, Site, build_pyramid

KERNEL, PADDING = 7, 2  # of the stem


@register_notrace_module  # whether an image is smaller than the kernel depends on its size
class CswinStem(nn.Module):
    """A 7x7 convolution and a LayerNorm.

    Shapes: image [B, in_chans, H, W] -> [B, dim, (H - 3) // stride + 1, (W - 3) // stride + 1], channels-last in
    memory. Images of less than 3 pixels a side are filled up to that with zeros at the bottom and right.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, KERNEL, stride, PADDING, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        least = KERNEL - 2 * PADDING
        if x.shape[2] < least or x.shape[3] < least:
            x = pad(x, (0, max(0, least - x.shape[3]), 0, max(0, least - x.shape[2])))
        x = self.proj(channels_last(x))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CswinLinearBlock(TransformerBlock):
    """A block whose linear attention predicts its filters from the mean of the map before the norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), summary=x.mean((1, 2)))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class InlineCswin(Pyramid):
    """A pyramid of blocks of linear attention first, then of cross-shaped windows, and in the last stage of one window.

    Args:
        dims, depths, num_heads: one entry a stage.
        linear_depths: how many blocks of each stage, from its first on, have linear attention.
        stripe_widths: of the other blocks of each stage, None for one window that is the whole map.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections to queries, keys and values.
        proj_drop_rate: dropout behind projections.
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...

    Raises:
        ValueError: where linear_depths and depths differ in length.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        linear_depths: Sequence[int],
        stripe_widths: Sequence[int | None] = (1, 2, 7, None),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        check_linear_depths(linear_depths, depths)

        def block(site: Site, **dd) -> TransformerBlock:
            heads, more = num_heads[site.stage], {"qkv_bias": qkv_bias, "proj_drop": proj_drop_rate, **dd}
            if site.index < linear_depths[site.stage]:
                kind, attn = CswinLinearBlock, LinearAttention(site.dim, heads, lepe=True, **more)
            else:
                kind, attn = TransformerBlock, CrossShapedAttention(site.dim, heads, stripe_widths[site.stage], **more)
            return kind(site.dim, attn, mlp_ratio, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd)

        shape = {"stem": CswinStem, "downsample": functools.partial(ConvDownsample, bias=True)}
        super().__init__(dims, depths, block, **{**shape, **pyramid})


def _rename_official(name: str) -> str:
    """The official repository's name of a parameter as we have it, but for ``lepe``."""
    name = re.sub(r"^stage1_conv_embed\.(0|2)\.", lambda m: f"stem.{'norm' if m[1] == '2' else 'proj'}.", name)
    name = re.sub(r"^merge(\d)\.", r"stages.\1.downsample.", name)
    name = re.sub(r"^stage(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{m[2]}.", name)
    name = re.sub(r"\.(qkv|proj)\.(weight|bias)$", r".attn.\1.\2" if name.startswith("stages.") else r".\1.\2", name)
    name = re.sub(r"\.attns\.0\.residual\.", ".attn.residual.", name)
    name = re.sub(r"\.attns\.(\d)\.get_v\.", r".attn.lepe.\1.", name)
    return re.sub(r"^head\.(?!fc\.)", "head.fc.", name)


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """An InLine-CSwin checkpoint for ``model``: ours or the official one.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = unwrap_state_dict(checkpoint)
    if any(name.startswith("stage1_conv_embed.") for name in state_dict):
        state_dict = {_rename_official(name): tensor for name, tensor in state_dict.items()}
        linear = {name.partition(".residual.")[0] for name in state_dict if ".residual." in name}
        for name in [name for name in state_dict if ".lepe.0." in name and name.partition(".lepe.")[0] in linear]:
            state_dict[name.replace(".lepe.0.", ".lepe.")] = state_dict.pop(name)
    require_layout(state_dict, model, "InLine-CSwin")
    return state_dict


default_cfgs = generate_default_cfgs({f"inline_cswin_{size}": inline_cfg() for size in ("tiny", "small", "base")})


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(InlineCswin, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def inline_cswin_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-CSwin-T: 20.6 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (2, 4, 18, 1), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
    return _create("inline_cswin_tiny", pretrained, **{**args, "linear_depths": (2, 4, 0, 0), **kwargs})


@register_model
def inline_cswin_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-CSwin-S: 33.0 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (3, 6, 29, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.4}
    return _create("inline_cswin_small", pretrained, **{**args, "linear_depths": (3, 6, 0, 0), **kwargs})


@register_model
def inline_cswin_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-CSwin-B: 73.4 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("inline_cswin_base", pretrained, **{**args, "linear_depths": (3, 6, 0, 0), **kwargs})
