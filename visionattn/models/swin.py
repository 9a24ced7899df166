"""Swin on fused window attention.

Paper: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", arXiv 2103.14030. Weights: the
authors' (github.com/microsoft/Swin-Transformer, MIT licence), as timm publishes them; timm's state dicts and the
official repository's own both load.

Images of any size: maps are padded at the bottom and right to whole windows, and padding is attended to, as in the
official detection code (timm rolls first and pads then, which puts the padding into other windows). Along an axis with
no more positions than a window nothing is shifted, as in the official classifier and in timm; timm also shrinks the
window to such a map when it is built for it, here it stays and the map is padded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import PatchMerging, PatchStem, TransformerBlock, WindowAttention
from visionattn.models.checkpoints import require_layout, resize_tables, unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg


class Swin(Pyramid):
    """A pyramid of blocks of window attention, every other one with its windows shifted by half.

    Args:
        dims, depths, num_heads: one entry a stage.
        window_size: of every block, an int or an (h, w) pair.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections to queries, keys and values.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of attention probabilities (slow on a GPU, see
            :class:`~visionattn.layers.WindowAttention`).
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
        half = window_size // 2 if isinstance(window_size, int) else tuple(n // 2 for n in window_size)

        def block(site: Site, **dd) -> TransformerBlock:
            attn = WindowAttention(
                site.dim,
                num_heads[site.stage],
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


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module, family: str = "Swin") -> dict[str, torch.Tensor]:
    """A Swin checkpoint for ``model``: ours, timm's or the official one; tables are resized for another window.

    The official one has each downsampler at the end of a stage, and buffers that follow from the window. ``family`` is
    what to call the expected layout.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    found = unwrap_state_dict(checkpoint)
    official = any(name.startswith("layers.0.downsample.") for name in found)
    state_dict = {}
    for name, tensor in found.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        if official:
            name = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", name)
            name = re.sub(r"^head\.(?!fc\.)", "head.fc.", name)
        name = re.sub(r"^layers\.", "stages.", re.sub(r"^patch_embed\.", "stem.", name))
        state_dict[name] = tensor
    require_layout(state_dict, model, family)
    resize_tables(state_dict, model, ".relative_position_bias_table")
    return state_dict


def _cfg(timm_id: str, **kwargs) -> dict:
    return model_cfg(
        hf_hub_id=f"timm/{timm_id}",
        first_conv="stem.proj",
        license="mit",
        origin_url="https://github.com/microsoft/Swin-Transformer",
        paper_ids="arXiv:2103.14030",
        **kwargs,
    )


def _cfgs(size: str, *tags: str) -> dict:
    """One configuration for each of timm's weights of a size with windows of 7, the default one first."""
    classes = {tag: 21841 if tag == "ms_in22k" else 1000 for tag in tags}
    return {
        f"fused_swin_{size}.{tag}": _cfg(f"swin_{size}_patch4_window7_224.{tag}", num_classes=classes[tag])
        for tag in tags
    }


default_cfgs = generate_default_cfgs(
    {
        **_cfgs("tiny", "ms_in1k", "ms_in22k_ft_in1k", "ms_in22k"),
        **_cfgs("small", "ms_in22k_ft_in1k", "ms_in1k", "ms_in22k"),
        **_cfgs("base", "ms_in22k_ft_in1k", "ms_in1k", "ms_in22k"),
        **_cfgs("large", "ms_in22k_ft_in1k", "ms_in22k"),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(Swin, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def fused_swin_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-T: 28.3 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
    return _create("fused_swin_tiny", pretrained, **{**args, **kwargs})


@register_model
def fused_swin_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-S: 49.6 M parameters."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("fused_swin_small", pretrained, **{**args, **kwargs})


@register_model
def fused_swin_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-B: 87.8 M parameters."""
    args = {"dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("fused_swin_base", pretrained, **{**args, **kwargs})


@register_model
def fused_swin_large(pretrained: bool = False, **kwargs) -> nn.Module:
    """Swin-L: 196.5 M parameters."""
    args = {"dims": (192, 384, 768, 1536), "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.2}
    return _create("fused_swin_large", pretrained, **{**args, **kwargs})
