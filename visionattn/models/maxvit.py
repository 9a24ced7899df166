"""MaxViT on fused window attention: blocks and grids.

Paper: "MaxViT: Multi-Axis Vision Transformer", arXiv 2204.01697. Weights: the authors'
(github.com/google-research/maxvit, Apache-2.0 licence), as timm publishes them under ``maxvit_*_tf_*``.

Images of any size, at any moment: convolutions pad like TensorFlow's "SAME", and windows that reach beyond a map hold
less, so that padding is never attended to. The windows are those that the model was built with: of 7x7 positions, or
with ``img_size=`` a thirty-second of that size, as in timm and in the authors' fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import ClNormMlpClassifierHead, DropPath, SEModule
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn.functional import avg_pool2d, pad

from visionattn.layers import TransformerBlock, WindowAttention
from visionattn.layers.memory import channels_last, nchw
from visionattn.models.checkpoints import require_layout, resize_tables, unwrap_state_dict
from visionattn.models.image_windows import image_window
from visionattn.models.pyramid import Pyramid, Site, Size, build_pyramid, model_cfg

RATIO = 32  # pixels of the nominal image per position of a window
GELU = partial(nn.GELU, approximate="tanh")
BatchNorm = partial(nn.BatchNorm2d, eps=1e-3)


class SameConv(nn.Conv2d):
    """A 3x3 convolution with TensorFlow's "SAME" padding: of an even map, stride 2 pads only the bottom and right.

    Shapes: [B, in_channels, H, W] -> [B, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int = 1, bias: bool = True, **dd):
        super().__init__(in_channels, out_channels, 3, stride, stride % 2, groups=groups, bias=bias, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride != (1, 1):
            height, width = x.shape[2:]
            x = pad(x, (width % 2, 1, height % 2, 1))
        return super().forward(x)


class MaxVitStem(nn.Module):
    """Two 3x3 convolutions, the first with stride, batch norm and activation between them.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory.

    Raises:
        ValueError: for a stride other than 1 and 2.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 2, device=None, dtype=None) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stem_stride must be one of [1, 2], got {stride!r}")
        dd = {"device": device, "dtype": dtype}
        self.conv1 = SameConv(in_chans, dim, stride, **dd)
        self.norm1 = BatchNorm(dim, **dd)
        self.act = GELU()
        self.conv2 = SameConv(dim, dim, 1, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # channels-last from here on, so that every change of layout behind it is a free view
        x = channels_last(x)
        return self.conv2(self.act(self.norm1(self.conv1(x))))


class MaxVitShortcut(nn.Module):
    """The map beside an :class:`MbConv`: averaged where that strides, projected where that widens.

    Shapes: [B, in_dim, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)]; at the border of an odd map the mean is
    of what is there, as in TensorFlow.
    """

    def __init__(self, in_dim: int, dim: int, stride: int, device=None, dtype=None) -> None:
        super().__init__()
        self.stride = stride
        self.expand = nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1:
            x = avg_pool2d(x, self.stride, ceil_mode=True)
        return self.expand(x)


class MbConv(nn.Module):
    """An inverted residual of convolutions with squeeze and excitation, batch norm first.

    Args:
        in_dim, dim: channels that come in and go out; four times ``dim`` in between.
        stride: of the depthwise convolution.
        drop_path: rate of stochastic depth.

    Shapes: [B, in_dim, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_dim: int, dim: int, stride: int, drop_path: float = 0.0, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        hidden = 4 * dim
        self.shortcut = MaxVitShortcut(in_dim, dim, stride, **dd)
        self.pre_norm = BatchNorm(in_dim, **dd)
        self.conv1_1x1 = nn.Conv2d(in_dim, hidden, 1, bias=False, **dd)
        self.norm1 = BatchNorm(hidden, **dd)
        self.act1 = GELU()
        self.conv2_kxk = SameConv(hidden, hidden, stride, groups=hidden, bias=False, **dd)
        self.norm2 = BatchNorm(hidden, **dd)
        self.act2 = GELU()
        self.se = SEModule(hidden, rd_channels=dim // 4, act_layer=nn.SiLU, **dd)
        self.conv3_1x1 = nn.Conv2d(hidden, dim, 1, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.norm1(self.conv1_1x1(self.pre_norm(x))))  # [B, 4 * dim, H, W]
        y = self.act2(self.norm2(self.conv2_kxk(y)))  # [B, 4 * dim, H', W']
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(self.se(y)))


class MaxVitBlock(nn.Module):
    """An :class:`MbConv`, then attention within blocks, then within grids.

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim].
    """

    def __init__(
        self,
        site: Site,
        num_heads: int,
        window_size: int | tuple[int, int],
        mlp_ratio: float,
        proj_drop: float,
        attn_drop: float,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        dim = site.dim

        def attend(partition: str) -> TransformerBlock:
            attn = WindowAttention(
                dim,
                num_heads,
                window_size,
                attn_drop=attn_drop,
                proj_drop=proj_drop,
                partition=partition,
                attend_padding=False,
                **dd,
            )
            return TransformerBlock(
                dim, attn, mlp_ratio, act_layer=GELU, proj_drop=proj_drop, drop_path=site.drop_path, **dd
            )

        self.conv = MbConv(site.in_dim, dim, site.stride, site.drop_path, **dd)
        self.attn_block = attend("block")
        self.attn_grid = attend("grid")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(nchw(x)).permute(0, 2, 3, 1)
        return self.attn_grid(self.attn_block(x))


class MaxVit(Pyramid):
    """A pyramid of :class:`MaxVitBlock`; the first block of each stage halves the map.

    Args:
        dims, depths, num_heads: one entry a stage.
        stem_dim: channels of the stem.
        window_size: positions of a block, and of a grid, an int or an (h, w) pair; ``img_size // 32`` if None.
        img_size: nominal size (h, w) of images, 224x224 unless given. It gives the windows their size, nothing else:
            images of any size are accepted at any moment.
        mlp_ratio: hidden width of the MLPs over the block's.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of attention probabilities (slow on a GPU, see
            :class:`~visionattn.layers.WindowAttention`).
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...

    Raises:
        ValueError: for an ``img_size`` below 32 without ``window_size``.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        stem_dim: int = 64,
        window_size: int | tuple[int, int] | None = None,
        img_size: Size | None = None,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        window = image_window(img_size or 224, RATIO) if window_size is None else window_size

        def block(site: Site, **dd) -> MaxVitBlock:
            return MaxVitBlock(
                site, num_heads[site.stage], window, mlp_ratio, proj_drop_rate, attn_drop_rate, **dd
            )

        shape = {"stem": MaxVitStem, "stem_stride": 2, "stem_dim": stem_dim, "stage_strides": (2,) * len(dims)}
        head = partial(ClNormMlpClassifierHead, hidden_size=dims[-1], norm_layer=nn.LayerNorm, act_layer="tanh")
        super().__init__(
            dims, depths, block, **{**shape, "downsample": None, "norm_layer": None, "head": head, **pyramid}
        )
        self._windows_follow = window_size is None
        self._traits = {**getattr(self, "_traits", {}), "fixed_input_size": False}
        self.set_input_size(img_size)

    def set_input_size(self, img_size: Size | None = None) -> None:
        """Makes (h, w) the nominal size of images: windows follow as in timm, unless ``window_size`` was given."""
        super().set_input_size(img_size)
        if img_size is not None and self._windows_follow:
            for module in self.modules():
                if isinstance(module, WindowAttention):
                    module.set_window_size(image_window(img_size, RATIO))


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A MaxViT checkpoint for ``model``: ours or timm's ``maxvit_*_tf_*``; tables are resized for another window.

    TensorFlow's tables, and so timm's, are [heads, 2h - 1, 2w - 1] of displacements key minus query.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = {}
    for name, tensor in unwrap_state_dict(checkpoint).items():
        if name.endswith(".rel_pos.relative_position_bias_table") and tensor.ndim == 3:
            name, tensor = name.replace(".rel_pos.", "."), tensor.flip(1, 2).flatten(1).t().contiguous()
        state_dict[name] = tensor
    require_layout(state_dict, model, "MaxViT")
    resize_tables(state_dict, model, ".relative_position_bias_table")
    return state_dict


def _cfg(size: str, pixels: int, tag: str, **kwargs) -> dict:
    fine = pixels != 224
    half = (0.5, 0.5, 0.5)
    plain = not fine and tag == "in1k"
    return model_cfg(
        hf_hub_id=f"timm/maxvit_{size}_tf_{pixels}.{tag}",
        num_classes=21843 if tag == "in21k" else 1000,
        input_size=(3, pixels, pixels),
        pool_size=(pixels // 32, pixels // 32),
        crop_pct=1.0 if fine else 0.95,
        crop_mode="squash" if fine else "center",
        # to timm: build the model for this size, so that its windows are those that the weights were trained with
        fixed_input_size=fine,
        mean=(0.485, 0.456, 0.406) if plain else half,
        std=(0.229, 0.224, 0.225) if plain else half,
        first_conv="stem.conv1",
        license="apache-2.0",
        origin_url="https://github.com/google-research/maxvit",
        paper_ids="arXiv:2204.01697",
        **kwargs,
    )


def _cfgs(size: str, *tags: str) -> dict:
    """One configuration for each of timm's weights of a size, the default one first; a tag may end in a size."""
    cfgs = {}
    for tag in tags:
        trained, _, pixels = tag.rpartition("_") if tag.endswith(("_384", "_512")) else (tag, "", "224")
        cfgs[f"fused_maxvit_{size}.{tag}"] = _cfg(size, int(pixels), trained)
    return cfgs


_BIG = ("in1k", "in1k_384", "in1k_512", "in21k_ft_in1k_384", "in21k_ft_in1k_512", "in21k")

default_cfgs = generate_default_cfgs(
    {
        **_cfgs("tiny", *_BIG[:3]),
        **_cfgs("small", *_BIG[:3]),
        **_cfgs("base", *_BIG),
        **_cfgs("large", *_BIG),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(MaxVit, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def fused_maxvit_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """MaxViT-T: 30.9 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (2, 2, 5, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
    return _create("fused_maxvit_tiny", pretrained, **{**args, **kwargs})


@register_model
def fused_maxvit_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """MaxViT-S: 68.9 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 5, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("fused_maxvit_small", pretrained, **{**args, **kwargs})


@register_model
def fused_maxvit_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """MaxViT-B: 119.5 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 6, 14, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.4}
    return _create("fused_maxvit_base", pretrained, **{**args, **kwargs})


@register_model
def fused_maxvit_large(pretrained: bool = False, **kwargs) -> nn.Module:
    """MaxViT-L: 211.8 M parameters."""
    args = {"dims": (128, 256, 512, 1024), "depths": (2, 6, 14, 2), "num_heads": (4, 8, 16, 32), "stem_dim": 128}
    return _create("fused_maxvit_large", pretrained, **{**args, "drop_path_rate": 0.6, **kwargs})
