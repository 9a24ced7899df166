"""BiFormer on fused routed attention.

Paper: "BiFormer: Vision Transformer with Bi-Level Routing Attention", arXiv 2303.08810. Weights: the authors'
(github.com/rayleizhu/BiFormer, MIT licence); their files load with ``pretrained_cfg_overlay=dict(file=...)``.

Images of any size: the map is cut into 7x7 regions whatever its size, and filled up with zeros at the bottom and right
where these do not divide it, as with the official code's ``auto_pad``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import register_notrace_module
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn.functional import pad

from visionattn.layers import GlobalAttention, RoutedAttention, TransformerBlock
from visionattn.layers.embed import conv_strides
from visionattn.layers.memory import channels_last, nchw
from visionattn.layers.position import filtered
from visionattn.layers.routing import local_conv, on_map
from visionattn.models.checkpoints import require_layout, unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg


@register_notrace_module  # its base looks at the number of dimensions
class MapBatchNorm(nn.BatchNorm2d):
    """Batch norm of [B, H, W, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nchw(x)).permute(0, 2, 3, 1)


class BiFormerStem(nn.Module):
    """Two 3x3 convolutions with batch norms, and an activation between them.

    Args:
        in_chans: channels of the image.
        dim: channels of the map; the first convolution gives half of them.
        stride: pixels of the image per token of the map: 4, 2 or 1.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory.

    Raises:
        ValueError: for another stride.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        first, second = conv_strides(stride)
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, first, 1, **dd)
        self.norm1 = nn.BatchNorm2d(dim // 2, **dd)
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, second, 1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # channels-last from here on, so that every change of layout behind it is a free view
        x = channels_last(x)
        return self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


class BiFormerDownsample(nn.Module):
    """A 3x3 convolution and a batch norm.

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim].
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 2, device=None, dtype=None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride, 1, device=device, dtype=dtype)
        self.norm = nn.BatchNorm2d(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return on_map(self.norm, on_map(self.conv, x))


@register_notrace_module  # padding branches on sizes
class PatchConv(nn.Conv2d):
    """A convolution of patches that do not overlap, as large as its stride, on [B, H, W, in_dim].

    Shapes: [B, H, W, in_dim] -> [B, max(H // stride, 1), max(W // stride, 1), dim]. Rows and columns that fill no patch
    are left out, as in the official code; a map smaller than a patch is filled up with zeros at the bottom and right.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, device=None, dtype=None) -> None:
        super().__init__(in_dim, dim, stride, stride, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = (torch.sym_max(s - n, 0) for n, s in zip(x.shape[1:3], self.stride))
        # a symbolic size is padded by a symbolic number, zero or not: asking which would tie a graph to the answer
        if not isinstance(rows, int) or not isinstance(columns, int) or rows or columns:
            x = pad(x, (0, 0, 0, columns, 0, rows))
        x = channels_last(x.permute(0, 3, 1, 2))
        return super().forward(x).permute(0, 2, 3, 1)


class StlStem(nn.Module):
    """Patches and a batch norm (Swin's layout).

    Shapes: image [B, in_chans, H, W] -> [B, dim, H', W'] as of :class:`PatchConv`, channels-last in memory.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        self.conv = PatchConv(in_chans, dim, stride, device=device, dtype=dtype)
        self.norm = MapBatchNorm(dim, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class StlDownsample(nn.Module):
    """A batch norm and patches (Swin's layout); shapes as of :class:`PatchConv`."""

    def __init__(self, in_dim: int, dim: int, stride: int = 2, device=None, dtype=None) -> None:
        super().__init__()
        self.norm = MapBatchNorm(in_dim, device=device, dtype=dtype)
        self.conv = PatchConv(in_dim, dim, stride, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class BiFormerBlock(TransformerBlock):
    """A transformer block behind a depthwise 3x3 convolution that tells positions; arguments and shapes as of it."""

    def __init__(self, dim: int, attn: nn.Module, device=None, dtype=None, **kwargs) -> None:
        super().__init__(dim, attn, device=device, dtype=dtype, **kwargs)
        self.pos_embed = local_conv(dim, 3, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(filtered(self.pos_embed, x, residual=True))


class BiFormer(Pyramid):
    """A pyramid of blocks of routed attention, of global attention where a stage routes to nothing.

    Args:
        dims, depths: one entry a stage.
        topk: of each stage, how many regions a region attends to; None for global attention.
        num_heads: of each stage.
        regions: into how many maps are cut along each axis.
        mlp_ratio: hidden width of the MLPs over the block's.
        pos_conv: a depthwise convolution in front of each block.
        proj_drop_rate: dropout behind projections.
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        topk: Sequence[int | None] = (1, 4, 16, None),
        num_heads: Sequence[int] = (2, 4, 8, 8),
        regions: int | tuple[int, int] = 7,
        mlp_ratio: float = 3.0,
        pos_conv: bool = True,
        proj_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        make = BiFormerBlock if pos_conv else TransformerBlock
        norm_layer = partial(nn.LayerNorm, eps=1e-6)

        def block(site: Site, **dd) -> TransformerBlock:
            heads, many = num_heads[site.stage], topk[site.stage]
            if many is None:
                attn = GlobalAttention(site.dim, heads, proj_drop=proj_drop_rate, **dd)
            else:
                attn = RoutedAttention(site.dim, heads, regions, many, proj_drop=proj_drop_rate, **dd)
            rates = {"proj_drop": proj_drop_rate, "drop_path": site.drop_path}
            return make(site.dim, attn, mlp_ratio=mlp_ratio, norm_layer=norm_layer, **rates, **dd)

        own = {"stem": BiFormerStem, "downsample": BiFormerDownsample, "norm_layer": MapBatchNorm}
        super().__init__(dims, depths, block, **{**own, **pyramid})


_STEM = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2"}  # places in the official nn.Sequential
_DOWN = {"0": "conv", "1": "norm"}
_STL_STEM = {"0": "conv", "1": "norm"}
_STL_DOWN = {"0": "norm", "1": "conv"}


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A BiFormer checkpoint for ``model``, ours or the official one.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    found = unwrap_state_dict(checkpoint)
    stl = any(name.startswith("stages.0.blocks.") for name in found)
    stem, down = (_STL_STEM, _STL_DOWN) if stl else (_STEM, _DOWN)

    def downsampler(m: re.Match) -> str:
        stage, place = int(m[1]), m[2]
        return f"stages.{stage}.downsample.{down.get(place, place)}." if stage else f"stem.{stem.get(place, place)}."

    state_dict = {}
    for name, tensor in found.items():
        name = re.sub(r"^downsample_layers\.(\d+)\.(\d+)\.", downsampler, name)
        name = re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name)
        name = re.sub(r"\.mlp\.(\d+)\.", lambda m: ".mlp.fc1." if m[1] == "0" else ".mlp.fc2.", name)
        name = re.sub(r"^head\.(?!fc\.)", "head.fc.", name.replace(".attn.wo.", ".attn.proj."))
        if ".attn.qkv.qkv." in name:
            qk, v = tensor.tensor_split([tensor.shape[0] // 3 * 2])
            state_dict[name.replace(".qkv.qkv.", ".qk.")] = qk
            state_dict[name.replace(".qkv.qkv.", ".v.")] = v
        else:
            state_dict[name] = tensor
    require_layout(state_dict, model, "BiFormer")
    return state_dict


def _cfg(first_conv: str = "stem.conv1", **kwargs) -> dict:
    return model_cfg(
        crop_pct=0.875,
        first_conv=first_conv,
        license="mit",
        origin_url="https://github.com/rayleizhu/BiFormer",
        paper_ids="arXiv:2303.08810",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "biformer_tiny.untrained": _cfg(),
        "biformer_small.untrained": _cfg(),
        "biformer_base.untrained": _cfg(),
        "biformer_stl.untrained": _cfg(first_conv="stem.conv"),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(BiFormer, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """BiFormer-T: 13.1 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (2, 2, 8, 2), "drop_path_rate": 0.1}
    return _create("biformer_tiny", pretrained, **{**args, **kwargs})


@register_model
def biformer_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """BiFormer-S: 25.5 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (4, 4, 18, 4), "drop_path_rate": 0.15}
    return _create("biformer_small", pretrained, **{**args, **kwargs})


@register_model
def biformer_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """BiFormer-B: 56.8 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (4, 4, 18, 4), "num_heads": (3, 6, 12, 8), "drop_path_rate": 0.4}
    return _create("biformer_base", pretrained, **{**args, **kwargs})


@register_model
def biformer_stl(pretrained: bool = False, **kwargs) -> nn.Module:
    """BiFormer-STL, Swin-T's layout: 28.4 M parameters."""
    args = {
        "dims": (96, 192, 384, 768),
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 8),
        "mlp_ratio": 4.0,
        "pos_conv": False,
        "stem": StlStem,
        "downsample": StlDownsample,
        "drop_path_rate": 0.1,
    }
    return _create("biformer_stl", pretrained, **{**args, **kwargs})
