"""HaloNet on fused halo attention: residual networks whose bottlenecks attend to blocks and a halo around them.

Paper: "Scaling Local Self-Attention for Parameter Efficient Visual Backbones", arXiv 2103.12731. The authors published
neither code nor weights. ``fused_halonet_h0`` to ``h7`` follow the paper's table as third parties' code reads it (see
:data:`TABLE`). ``fused_halonet26t`` and ``fused_halonet50ts`` are timm's architectures, and load its weights
(Apache-2.0 licence). timm's halonet_h1 is ``fused_halonet_h1``; there are no weights of it.

Images of any size: a block that reaches beyond the map attends to zeros there, as it does to the halo outside the map,
and gives no output. timm accepts only maps that blocks divide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from timm.layers import BatchNormAct2d, ConvNormAct, DropPath, make_divisible
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import HaloAttention
from visionattn.layers.embed import conv_strides
from visionattn.layers.head import ConvClassifierHead
from visionattn.layers.memory import channels_last, nchw
from visionattn.models.checkpoints import require_layout, unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg

# The paper's table as third parties' code reads it, which gives the parameters that it prints (cut off, not rounded: H6
# has 43.457 M). They read 4 heads for the first stage; here it has 8, as in timm's H1. Of each variant: block, halo,
# value ratio, width of a block's output over its middle's, blocks of the third stage, final width, image size, and
# parameters in M as printed.
TABLE = {
    "h0": (8, 3, 1.0, 0.5, 7, None, 256, 5.5),
    "h1": (8, 3, 1.0, 1.0, 10, None, 256, 8.1),
    "h2": (8, 3, 1.0, 1.25, 11, None, 256, 9.4),
    "h3": (10, 3, 1.0, 1.5, 12, 1024, 320, 11.8),
    "h4": (12, 2, 1.0, 3.0, 12, 1280, 384, 19.1),
    "h5": (14, 2, 2.5, 2.0, 23, 1536, 448, 30.7),
    "h6": (8, 4, 3.0, 2.75, 24, 1536, 512, 43.4),
    "h7": (10, 3, 4.0, 3.5, 26, 2048, 600, 67.4),
}
_ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class HaloStem(nn.Module):
    """Convolutions with normalisation and activation, of which the first has a stride, and a pool (ResNet's stem).

    Args:
        in_chans: channels of the image.
        dim: channels of the map.
        stride: pixels of the image per token of the map: 4, or 2 without the pool, or 1 without the stride too.
        kernel_size: of each convolution.
        widths: channels of the convolutions in front of the last.
        act_layer: the activation.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory.

    Raises:
        ValueError: for another stride.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        stride: int = 4,
        kernel_size: int = 7,
        widths: Sequence[int] = (),
        act_layer: type[nn.Module] = nn.ReLU,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        first, pool = conv_strides(stride)
        for i, width in enumerate((*widths, dim)):
            conv = ConvNormAct(in_chans, width, kernel_size, 1 if i else first, act_layer=act_layer, **dd)
            self.add_module(f"conv{i + 1}", conv)
            in_chans = width
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if pool == 2 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # channels-last from the first convolution on, so that every change of layout behind it is a free view
        x = channels_last(x)
        for layer in self.children():
            x = layer(x)
        return x


class HaloBlock(nn.Module):
    """ResNet's bottleneck, with a 3x3 convolution or halo attention in its middle.

    Args:
        in_dim, dim: channels in and out.
        mid_dim: channels of the middle.
        stride: by which the middle shrinks the map.
        attention: ``attention(dim, stride=, device=, dtype=)`` makes the attention and says its ``dim_out``; None for a
            convolution.
        act_layer: the activation.
        drop_path: rate of stochastic depth.

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim].
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        mid_dim: int,
        stride: int,
        attention: Callable[..., HaloAttention] | None,
        act_layer: type[nn.Module],
        drop_path: float,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.shortcut = nn.Identity()
        if in_dim != dim or stride != 1:
            self.shortcut = ConvNormAct(in_dim, dim, 1, stride=stride, apply_act=False, **dd)
        self.conv1_1x1 = ConvNormAct(in_dim, mid_dim, 1, act_layer=act_layer, **dd)
        if attention is None:
            self.conv2_kxk = ConvNormAct(mid_dim, mid_dim, 3, stride=stride, act_layer=act_layer, **dd)
            wide = mid_dim
        else:
            self.self_attn = attention(mid_dim, stride=stride, **dd)
            wide = self.self_attn.dim_out
            self.post_attn = BatchNormAct2d(wide, act_layer=act_layer, **dd)
        self.conv3_1x1 = ConvNormAct(wide, dim, 1, apply_act=False, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.act = act_layer(inplace=True)

    def zero_init_last(self) -> None:
        """Starts the block as its shortcut: the last normalisation gives nothing."""
        nn.init.zeros_(self.conv3_1x1.bn.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nchw(x)
        y = self.conv1_1x1(x)
        if hasattr(self, "self_attn"):
            y = nchw(self.self_attn(y.permute(0, 2, 3, 1)))
            y = self.post_attn(y)
        else:
            y = self.conv2_kxk(y)
        y = self.drop_path(self.conv3_1x1(y)) + self.shortcut(x)
        return self.act(y).permute(0, 2, 3, 1)


class HaloNet(Pyramid):
    """A pyramid of :class:`HaloBlock`, whose first block in a stage shrinks the map.

    Args:
        dims, depths: one entry a stage.
        mid_dims: channels of the blocks' middles, one entry a stage.
        halos: blocks of each stage that attend: a sequence of their numbers, or None for all.
        num_heads: of each stage.
        block_size, halo_size: of every attention.
        value_ratio: channels of the values over those of the middle.
        stem_kernel, stem_widths: of :class:`HaloStem`.
        act: "relu" or "silu".
        final_dim: channels of a normalised 1x1 convolution in front of the pooling; None for none.
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...

    Raises:
        ValueError: for another activation.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        mid_dims: Sequence[int],
        halos: Sequence[Sequence[int] | None] | None = None,
        num_heads: Sequence[int] = (8, 8, 8, 8),
        block_size: int | tuple[int, int] = 8,
        halo_size: int | tuple[int, int] = 3,
        value_ratio: float = 1.0,
        stem_kernel: int = 7,
        stem_widths: Sequence[int] = (),
        act: str = "relu",
        final_dim: int | None = None,
        **pyramid,
    ) -> None:
        if act not in _ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(_ACTIVATIONS)}, got {act!r}")
        act_layer = _ACTIVATIONS[act]

        def block(site: Site, **dd) -> HaloBlock:
            mid = mid_dims[site.stage]
            attends = halos is None or halos[site.stage] is None or site.index in halos[site.stage]
            attention = partial(
                HaloAttention,
                dim_out=make_divisible(mid * value_ratio),
                dim_head=mid // num_heads[site.stage],
                num_heads=num_heads[site.stage],
                block_size=block_size,
                halo_size=halo_size,
            )
            return HaloBlock(
                site.in_dim, site.dim, mid, site.stride, attention if attends else None, act_layer, site.drop_path, **dd
            )

        own = {
            "stem": partial(HaloStem, kernel_size=stem_kernel, widths=stem_widths, act_layer=act_layer),
            "stem_dim": 64,
            "downsample": None,
            "norm_layer": None,
        }
        if final_dim is not None:
            own["head"] = partial(ConvClassifierHead, hidden_size=final_dim, act_layer=act_layer)
        super().__init__(dims, depths, block, **{**own, **pyramid})

    def init_weights(self, needs_reset: bool = True) -> None:
        """Draws the weights anew, in ResNet's way: convolutions by what they give, the last norm of each block zero.

        Args:
            needs_reset: also let every module draw its own first; not needed right after construction.
        """
        super().init_weights(needs_reset)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if isinstance(module, HaloAttention):
                module.reset_parameters()
            elif isinstance(module, HaloBlock):
                module.zero_init_last()


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A HaloNet checkpoint for ``model``, ours or timm's.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    found = unwrap_state_dict(checkpoint)
    state_dict = {re.sub(r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2.", name): t for name, t in found.items()}
    require_layout(state_dict, model, "HaloNet")
    return state_dict


def _cfg(size: int, crop_pct: float = 0.95, **kwargs) -> dict:
    return model_cfg(
        input_size=(3, size, size),
        pool_size=(-(-size // 32), -(-size // 32)),
        crop_pct=crop_pct,
        first_conv="stem.conv1.conv",
        license="apache-2.0",
        paper_ids="arXiv:2103.12731",
        **kwargs,
    )


def _timms(name: str, **kwargs) -> dict:
    origin = "https://github.com/huggingface/pytorch-image-models"
    return _cfg(256, hf_hub_id=f"timm/{name}.a1h_in1k", origin_url=origin, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        **{f"fused_halonet_{name}.untrained": _cfg(row[6]) for name, row in TABLE.items()},
        "fused_halonet26t.a1h_in1k": _timms("halonet26t"),
        "fused_halonet50ts.a1h_in1k": _timms("halonet50ts", crop_pct=0.94),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(HaloNet, variant, pretrained, checkpoint_filter_fn, **kwargs)


def _create_paper(name: str, pretrained: bool = False, **kwargs) -> nn.Module:
    block, halo, value_ratio, width_ratio, depth, final_dim, _, _ = TABLE[name]
    mid_dims = (64, 128, 256, 512)
    args = {
        "dims": tuple(make_divisible(n * width_ratio) for n in mid_dims),
        "depths": (3, 3, depth, 3),
        "mid_dims": mid_dims,
        "block_size": block,
        "halo_size": halo,
        "value_ratio": value_ratio,
        "final_dim": final_dim,
    }
    return _create(f"fused_halonet_{name}", pretrained, **{**args, **kwargs})


@register_model
def fused_halonet_h0(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H0: 5.5 M parameters."""
    return _create_paper("h0", pretrained, **kwargs)


@register_model
def fused_halonet_h1(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H1: 8.1 M parameters."""
    return _create_paper("h1", pretrained, **kwargs)


@register_model
def fused_halonet_h2(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H2: 9.4 M parameters."""
    return _create_paper("h2", pretrained, **kwargs)


@register_model
def fused_halonet_h3(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H3: 11.8 M parameters."""
    return _create_paper("h3", pretrained, **kwargs)


@register_model
def fused_halonet_h4(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H4: 19.1 M parameters."""
    return _create_paper("h4", pretrained, **kwargs)


@register_model
def fused_halonet_h5(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H5: 30.7 M parameters."""
    return _create_paper("h5", pretrained, **kwargs)


@register_model
def fused_halonet_h6(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H6: 43.5 M parameters, where the paper prints 43.4."""
    return _create_paper("h6", pretrained, **kwargs)


@register_model
def fused_halonet_h7(pretrained: bool = False, **kwargs) -> nn.Module:
    """HaloNet-H7: 67.4 M parameters."""
    return _create_paper("h7", pretrained, **kwargs)


@register_model
def fused_halonet26t(pretrained: bool = False, **kwargs) -> nn.Module:
    """timm's halonet26t, which attends in the second block of stage 3 and in stage 4: 12.5 M parameters."""
    args = {
        "dims": (256, 512, 1024, 2048),
        "depths": (2, 2, 2, 2),
        "mid_dims": (64, 128, 256, 512),
        "halos": ((), (), (1,), None),
        "halo_size": 2,
        "stem_kernel": 3,
        "stem_widths": (24, 32),
    }
    return _create("fused_halonet26t", pretrained, **{**args, **kwargs})


@register_model
def fused_halonet50ts(pretrained: bool = False, **kwargs) -> nn.Module:
    """timm's halonet50ts, which attends in one block of stage 2, every other one of stage 3, one of stage 4: 22.7 M
    parameters."""
    args = {
        "dims": (256, 512, 1024, 2048),
        "depths": (3, 4, 6, 3),
        "mid_dims": (64, 128, 256, 512),
        "halos": ((), (3,), (1, 3, 5), (1,)),
        "num_heads": (4, 4, 8, 8),
        "stem_kernel": 3,
        "stem_widths": (24, 32),
        "act": "silu",
    }
    return _create("fused_halonet50ts", pretrained, **{**args, **kwargs})
