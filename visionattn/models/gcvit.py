"""GC ViT on fused window attention: local windows, and windows that all ask one global query.

Paper: "Global Context Vision Transformers", arXiv 2206.09959. Weights: the authors' (github.com/NVlabs/GCVit,
CC BY-NC-SA 4.0 licence: not for commercial use), as timm publishes them; timm's state dicts and the official
repository's own both load.

Images of any size, at any moment: windows that reach beyond a map hold less, so that padding is never attended to, and
a global query that does not come out in the size of a window is resized to it, bicubically as in the official detection
code. The windows are those that the model was built with: of 7, 7, 14 and 7 positions a side, or with ``img_size=`` a
32nd, 32nd, 16th and 32nd of that size, as in timm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from timm.layers import SEModule, register_notrace_module, to_ntuple
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

from visionattn.layers import TransformerBlock, WindowAttention
from visionattn.layers.embed import conv_strides
from visionattn.layers.memory import channels_last, nchw
from visionattn.models.checkpoints import require_layout, resize_tables, unwrap_state_dict
from visionattn.models.image_windows import image_window
from visionattn.models.pyramid import Pyramid, Site, Size, build_pyramid, model_cfg

RATIOS = (32, 32, 16, 32)  # pixels of the nominal image per position of a window, one a stage


class GcConv(nn.Module):
    """The paper's fused MBConv: a depthwise convolution, squeeze and excitation and a projection, with a residual.

    Shapes: [B, dim, H, W] -> [B, dim, H, W].
    """

    def __init__(self, dim: int, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv_dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False, **dd)
        self.act = nn.GELU()
        self.se = SEModule(dim, rd_channels=dim // 4, bias=False, act_layer=nn.GELU, **dd)
        self.conv_pw = nn.Conv2d(dim, dim, 1, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_pw(self.se(self.act(self.conv_dw(x))))


class GcDownsample(nn.Module):
    """A :class:`GcConv` and a 3x3 convolution without bias, between two LayerNorms.

    Shapes: [B, H, W, in_dim] -> [B, ceil(H / stride), ceil(W / stride), dim].
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 2, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(in_dim, **dd)
        self.conv_block = GcConv(in_dim, **dd)
        self.reduction = nn.Conv2d(in_dim, dim, 3, stride, 1, bias=False, **dd)
        self.norm2 = nn.LayerNorm(dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.reduction(self.conv_block(nchw(self.norm1(x))))
        return self.norm2(x.permute(0, 2, 3, 1))


class GcStem(nn.Module):
    """A 3x3 convolution and a :class:`GcDownsample` of the same width.

    Shapes: image [B, in_chans, H, W] -> [B, dim, ceil(H / stride), ceil(W / stride)], channels-last in memory.

    Raises:
        ValueError: for a stride other than 1, 2 and 4.
    """

    def __init__(self, in_chans: int, dim: int, stride: int = 4, device=None, dtype=None) -> None:
        super().__init__()
        first, second = conv_strides(stride)
        self.conv1 = nn.Conv2d(in_chans, dim, 3, first, 1, device=device, dtype=dtype)
        self.down = GcDownsample(dim, dim, second, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # channels-last from the first convolution on, so that every change of layout behind it is a free view
        x = self.conv1(channels_last(x))
        return self.down(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register_notrace_module  # whether to resize depends on sizes
class GlobalQuery(nn.Module):
    """The query that all windows of a stage share: its map, passed through convolutions and pooled to one window.

    Args:
        dim: channels of the map.
        pools: how often it is halved, each time behind a :class:`GcConv`; one of those, and no pooling, for 0.
        window_size: (h, w) of the result.

    Shapes: [B, H, W, dim] -> [B, window_h, window_w, dim].
    """

    def __init__(self, dim: int, pools: int, window_size: tuple[int, int], device=None, dtype=None) -> None:
        super().__init__()
        self.pools = pools
        self.window_size = window_size
        self.blocks = nn.ModuleList(GcConv(dim, device=device, dtype=dtype) for _ in range(max(pools, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nchw(x)
        for block in self.blocks:
            x = block(x)
            if self.pools:
                x = max_pool2d(x, 3, 2, 1)
        height, width = x.shape[2:]
        # a symbolic size is resized in any case, to itself or not: asking would tie a graph to the answer
        static = isinstance(height, int) and isinstance(width, int)
        if not static or (height, width) != self.window_size:
            x = interpolate(x, self.window_size, mode="bicubic")
        return x.permute(0, 2, 3, 1)


class LocalBlock(TransformerBlock):
    """A block whose windows ask their own queries; it has no use for the stage's."""

    def forward(self, x: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x)


class GcVit(Pyramid):
    """A pyramid of blocks that take turns: windows with queries of their own, windows with the stage's global query.

    Args:
        dims, depths, num_heads: one entry a stage.
        window_size: of every block of a stage, an int or an (h, w) pair, and an int for all or one entry a stage; if
            None ``img_size // 32``, and ``img_size // 16`` in the third stage.
        img_size: nominal size (h, w) of images, 224x224 unless given. It gives the windows their size, nothing else:
            images of any size are accepted at any moment.
        mlp_ratio: hidden width of the MLPs over the block's.
        layer_scale: initial layer scale, None for none.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of attention probabilities (slow on a GPU, see
            :class:`~visionattn.layers.WindowAttention`).
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...

    Raises:
        ValueError: for more than four stages, and for an ``img_size`` below 32 without ``window_size``.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int | Sequence[Size] | None = None,
        img_size: Size | None = None,
        mlp_ratio: float = 3.0,
        layer_scale: float | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        if len(dims) > len(RATIOS):
            raise ValueError(f"dims must have at most {len(RATIOS)} entries, one a stage, got {tuple(dims)}")
        if window_size is None:
            windows = _image_windows(img_size or 224, len(dims))
        else:
            windows = to_ntuple(len(dims))(window_size)

        def block(site: Site, **dd) -> TransformerBlock:
            shared = site.index % 2 == 1
            attn = WindowAttention(
                site.dim,
                num_heads[site.stage],
                windows[site.stage],
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                attend_padding=False,
                shared_query=shared,
                **dd,
            )
            return (TransformerBlock if shared else LocalBlock)(
                site.dim, attn, mlp_ratio, layer_scale, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd
            )

        def context(stage: int, dim: int, **dd) -> GlobalQuery | None:
            if depths[stage] < 2:  # no block would ask it
                return None
            pools = (RATIOS[stage] // (4 << stage)).bit_length() - 1
            return GlobalQuery(dim, pools, to_ntuple(2)(windows[stage]), **dd)

        shape = {"stem": GcStem, "downsample": GcDownsample, "context": context}
        super().__init__(dims, depths, block, **{**shape, **pyramid})
        self._windows_follow = window_size is None
        self._traits = {**getattr(self, "_traits", {}), "fixed_input_size": False}
        self.set_input_size(img_size)

    def set_input_size(self, img_size: Size | None = None) -> None:
        """Makes (h, w) the nominal size of images: the windows follow, unless ``window_size`` was given."""
        super().set_input_size(img_size)
        if img_size is None or not self._windows_follow:
            return
        for stage, window in zip(self.stages, _image_windows(img_size, len(self.stages))):
            for module in stage.modules():
                if isinstance(module, WindowAttention):
                    module.set_window_size(window)
                elif isinstance(module, GlobalQuery):
                    module.window_size = window


def _image_windows(img_size: Size, stages: int) -> list[tuple[int, int]]:
    return [image_window(img_size, ratio) for ratio in RATIOS[:stages]]


_PARTS = {"0": "conv_dw", "2.fc.0": "se.fc1", "2.fc.2": "se.fc2", "3": "conv_pw"}  # of an official GcConv


def _rename_official(name: str) -> str:
    """The official repository's name of a parameter as we have it."""
    name = re.sub(r"^patch_embed\.proj\.", "stem.conv1.", re.sub(r"^patch_embed\.conv_down\.", "stem.down.", name))
    name = re.sub(r"^levels\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample.", name)
    name = re.sub(r"^levels\.", "stages.", name).replace(".q_global_gen.to_q_global.", ".context.blocks.")
    name = re.sub(r"\.conv\.(0|2\.fc\.[02]|3)\.", lambda m: f".conv_block.{_PARTS[m[1]]}.", name)
    name = re.sub(r"\.context\.blocks\.(\d+)\.conv_block\.", r".context.blocks.\1.", name)
    name = re.sub(r"\.gamma([12])$", r".ls\1.gamma", name)
    return re.sub(r"^head\.(?!fc\.)", "head.fc.", name)


def _rename_timm(name: str) -> str:
    """timm's name of a parameter as we have it."""
    name = re.sub(r"\.global_block\.blocks\.conv(\d+)\.", lambda m: f".context.blocks.{int(m[1]) - 1}.", name)
    return re.sub(r"^stages\.\d+\.norm\.", "norm.", name).replace(".rel_pos.", ".")


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A GC ViT checkpoint for ``model``: ours, timm's or the official one; tables are resized for another window.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    found = unwrap_state_dict(checkpoint)
    rename = _rename_official if any(name.startswith("levels.") for name in found) else _rename_timm
    state_dict = {}
    for name, tensor in found.items():
        if name.endswith("relative_position_index"):  # follows from the window
            continue
        name = rename(name)
        if ".se.fc" in name and tensor.ndim == 2:  # linear in the official code, a 1x1 convolution here
            tensor = tensor[:, :, None, None]
        state_dict[name] = tensor
    require_layout(state_dict, model, "GC ViT")
    resize_tables(state_dict, model, ".relative_position_bias_table")
    return state_dict


def _cfg(file: str, **kwargs) -> dict:
    return model_cfg(
        url=f"https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights-morevit/{file}",
        crop_pct=0.875,
        first_conv="stem.conv1",
        license="cc-by-nc-sa-4.0",  # the weights'; timm's own code, not they, is under Apache-2.0
        origin_url="https://github.com/NVlabs/GCVit",
        paper_ids="arXiv:2206.09959",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "fused_gcvit_xxtiny.in1k": _cfg("gcvit_xxtiny_224_nvidia-d1d86009.pth"),
        "fused_gcvit_xtiny.in1k": _cfg("gcvit_xtiny_224_nvidia-274b92b7.pth"),
        "fused_gcvit_tiny.in1k": _cfg("gcvit_tiny_224_nvidia-ac783954.pth"),
        "fused_gcvit_small.in1k": _cfg("gcvit_small_224_nvidia-4e98afa2.pth"),
        "fused_gcvit_base.in1k": _cfg("gcvit_base_224_nvidia-f009139b.pth"),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(GcVit, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def fused_gcvit_xxtiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """GC ViT-XXT: 12.0 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
    return _create("fused_gcvit_xxtiny", pretrained, **{**args, **kwargs})


@register_model
def fused_gcvit_xtiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """GC ViT-XT: 20.0 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
    return _create("fused_gcvit_xtiny", pretrained, **{**args, **kwargs})


@register_model
def fused_gcvit_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """GC ViT-T: 28.2 M parameters."""
    args = {"dims": (64, 128, 256, 512), "depths": (3, 4, 19, 5), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
    return _create("fused_gcvit_tiny", pretrained, **{**args, **kwargs})


@register_model
def fused_gcvit_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """GC ViT-S: 51.1 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (3, 4, 19, 5), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("fused_gcvit_small", pretrained, **{**args, "mlp_ratio": 2.0, "layer_scale": 1e-5, **kwargs})


@register_model
def fused_gcvit_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """GC ViT-B: 90.3 M parameters."""
    args = {"dims": (128, 256, 512, 1024), "depths": (3, 4, 19, 5), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("fused_gcvit_base", pretrained, **{**args, "mlp_ratio": 2.0, "layer_scale": 1e-5, **kwargs})
