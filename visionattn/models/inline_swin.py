"""InLine-Swin: Swin whose first stages attend to the whole map with injective linear attention.

Paper: "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024, arXiv 2412.06590. Weights: the
authors' (github.com/LeapLabTHU/InLine, no licence file) are not named here; their files load.

Images of any size: linear attention takes the whole map, whatever its size (officially a window of the first stage's
size at the nominal resolution, which gives the same there); the other blocks have Swin's windows and its padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import LinearAttention, PatchMerging, PatchStem, TransformerBlock, WindowAttention
from visionattn.models import swin
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg


class InlineSwin(Pyramid):
    """A pyramid of blocks of linear attention first, then of blocks of window attention as in Swin.

    Args:
        dims, depths, num_heads: one entry a stage.
        linear_depths: how many blocks of each stage, from its first on, have linear attention.
        window_size: of the other blocks, an int or an (h, w) pair.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections to queries, keys and values.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of the windows' attention probabilities (slow
            on a GPU, see :class:`~visionattn.layers.WindowAttention`).
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
        window_size: int | tuple[int, int] = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        check_linear_depths(linear_depths, depths)
        half = window_size // 2 if isinstance(window_size, int) else tuple(n // 2 for n in window_size)

        def block(site: Site, **dd) -> TransformerBlock:
            heads = num_heads[site.stage]
            if site.index < linear_depths[site.stage]:
                attn = LinearAttention(site.dim, heads, qkv_bias, proj_drop=proj_drop_rate, **dd)
            else:
                attn = WindowAttention(
                    site.dim,
                    heads,
                    window_size,
                    half if site.index % 2 else 0,
                    qkv_bias,
                    attn_drop=attn_drop_rate,
                    proj_drop=proj_drop_rate,
                    **dd,
                )
            return TransformerBlock(
                site.dim, attn, mlp_ratio, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd
            )

        super().__init__(dims, depths, block, **{"stem": PatchStem, "downsample": PatchMerging, **pyramid})


def check_linear_depths(linear_depths: Sequence[int], depths: Sequence[int]) -> None:
    """Raises ValueError unless there is one entry a stage."""
    if len(linear_depths) != len(depths):
        raise ValueError(
            f"linear_depths must have one entry a stage, got {tuple(linear_depths)} for depths {tuple(depths)}"
        )


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """An InLine-Swin checkpoint for ``model``: ours or the official one; tables are resized for another window.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    return swin.checkpoint_filter_fn(checkpoint, model, "InLine-Swin")


def inline_cfg(first_conv: str = "stem.proj", **kwargs) -> dict:
    """What timm records of a model of the family; no weights are named."""
    return model_cfg(
        first_conv=first_conv,
        origin_url="https://github.com/LeapLabTHU/InLine",
        paper_ids="arXiv:2412.06590",
        **kwargs,
    )


default_cfgs = generate_default_cfgs({f"inline_swin_{size}": inline_cfg() for size in ("tiny", "small", "base")})


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(InlineSwin, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def inline_swin_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-Swin-T: 29.2 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
    return _create("inline_swin_tiny", pretrained, **{**args, "linear_depths": (2, 2, 6, 0), **kwargs})


@register_model
def inline_swin_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-Swin-S: 49.8 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("inline_swin_small", pretrained, **{**args, "linear_depths": (2, 2, 0, 0), **kwargs})


@register_model
def inline_swin_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-Swin-B: 88.4 M parameters."""
    args = {"dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("inline_swin_base", pretrained, **{**args, "linear_depths": (2, 2, 2, 0), **kwargs})
