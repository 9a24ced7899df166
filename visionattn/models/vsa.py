"""Swin with varied-size window attention (VSA) on the fused op.

Papers: "VSA: Learning Varied-Size Window Attention in Vision Transformers", arXiv 2204.08446; "Swin Transformer", arXiv
2103.14030. The models are those of the same authors' QFormer repository (github.com/ViTAE-Transformer/QFormer, MIT
licence), whose state dicts load; no weights are published where timm could fetch them.

Swin without shifts: every block adds a 7x7 depthwise convolution of the map, and its windows attend to tokens at places
that each head predicts. Images of any size: keys outside the map are zeros that take softmax weight, as in the official
code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import (
    ConvPositionEncoding,
    PatchMerging,
    PatchStem,
    TransformerBlock,
    VariedWindowAttention,
)
from visionattn.models import swin
from visionattn.models.checkpoints import unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg


class VsaBlock(TransformerBlock):
    """A transformer block behind a convolutional position encoding of 7x7.

    Arguments and shapes as in :class:`~visionattn.layers.TransformerBlock`.
    """

    def __init__(self, dim: int, attn: nn.Module, *args, device=None, dtype=None, **kwargs) -> None:
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, attn, *args, **dd, **kwargs)
        self.pos = ConvPositionEncoding(dim, 7, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pos(x))


class VsaSwin(Pyramid):
    """A pyramid of blocks of varied window attention.

    Args:
        dims, depths, num_heads: one entry a stage.
        window_size: of every block, an int or an (h, w) pair.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections to queries, keys and values.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of attention probabilities (slow on a GPU, see
            :class:`~visionattn.layers.VariedWindowAttention`).
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
        attn_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        def block(site: Site, **dd) -> VsaBlock:
            heads = num_heads[site.stage]
            drops = {"attn_drop": attn_drop_rate, "proj_drop": proj_drop_rate}
            attn = VariedWindowAttention(site.dim, heads, window_size, qkv_bias, **drops, **dd)
            return VsaBlock(site.dim, attn, mlp_ratio, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd)

        super().__init__(dims, depths, block, **{"stem": PatchStem, "downsample": PatchMerging, **pyramid})


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A Swin+VSA checkpoint for ``model``: ours or the official one; tables are resized for another window.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    renamed = {}
    for name, tensor in unwrap_state_dict(checkpoint).items():
        name = re.sub(r"\.attn\.transform\.2\.", ".attn.places.", name)
        renamed[re.sub(r"\.pos\.(weight|bias)$", r".pos.proj.\1", name)] = tensor
    return swin.checkpoint_filter_fn(renamed, model, "Swin+VSA")


def _cfg() -> dict:
    return model_cfg(
        first_conv="stem.proj",
        license="mit",
        origin_url="https://github.com/ViTAE-Transformer/QFormer",
        paper_ids="arXiv:2204.08446",
    )


default_cfgs = generate_default_cfgs({f"vsa_swin_{size}": _cfg() for size in ("tiny", "small", "base")})


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(VsaSwin, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def vsa_swin_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-T with VSA: 28.8 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
    return _create("vsa_swin_tiny", pretrained, **{**args, **kwargs})


@register_model
def vsa_swin_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-S with VSA: 50.5 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("vsa_swin_small", pretrained, **{**args, **kwargs})


@register_model
def vsa_swin_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-B with VSA: 89.2 M parameters."""
    args = {"dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("vsa_swin_base", pretrained, **{**args, **kwargs})
