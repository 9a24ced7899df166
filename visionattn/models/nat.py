"""NAT, DiNAT and DiNAT_s: neighborhood attention with relative biases, as the published weights have it.

Papers: "Neighborhood Attention Transformer", arXiv 2204.07143 (NAT), and "Dilated Neighborhood Attention Transformer",
arXiv 2209.15001 (DiNAT: every other block dilated; DiNAT_s: the same in Swin's layout). Weights: the authors'
(github.com/SHI-Labs/Neighborhood-Attention-Transformer, MIT licence), in the layout of that repository. The addresses
below are those that it names; its host has been out of reach at times, and a file that came another way loads through
``pretrained_cfg_overlay=dict(file=...)``. The same weights in the layout of Transformers load too, from a file or from
the authors' uploads to Hugging Face: ``pretrained_cfg_overlay=dict(hf_hub_id="shi-labs/nat-mini-in1k-224")``.

Dilated blocks reach over the whole map: their dilation is that of the nominal image, map // kernel_size, 8, 4, 2 and 1
for images of 224x224. ``img_size=384`` makes it 13, 6, 3 and 1, the published models for such images, and the 11x11
one is ``dinat_large`` with ``img_size=384, kernel_size=11``. Images of any size are accepted at any moment. The
dilation stays, and maps smaller than kernel_size * dilation are filled up with zeros at the bottom and right before
the projection; padding is attended to, which is what the published weights were run with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from timm.layers import to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import NeighborhoodAttention, PatchMerging, PatchStem, TransformerBlock
from visionattn.models.checkpoints import require_layout, resize_tables, unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, Size, build_pyramid, model_cfg


class Nat(Pyramid):
    """A pyramid of blocks of neighborhood attention, dilated or not.

    Args:
        dims, depths, num_heads: one entry a stage.
        kernel_size: window of every block, an int or an (h, w) pair.
        dilated: every other block of a stage, from the second on, has the largest dilation with which a map of the
            nominal image holds whole windows, at least 1.
        dilations: per stage those that its blocks take in turn, in place of ``dilated``'s (the published detectors
            have some of their own).
        img_size: nominal size (h, w) of images, 224x224 unless given. It gives ``dilated`` its dilations, nothing
            else: images of any size are accepted at any moment.
        mlp_ratio: hidden width of the MLPs over the block's.
        qkv_bias: bias of the projections to queries, keys and values.
        rel_bias: whether attention has its table of relative positions.
        layer_scale: initial layer scale, None for none.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of attention probabilities (slow on a GPU, see
            :class:`~visionattn.layers.NeighborhoodAttention`).
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...

    Raises:
        ValueError: where ``dilations`` has another number of stages than ``dims``.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        kernel_size: Size = 7,
        dilated: bool = False,
        dilations: Sequence[Sequence[int]] | None = None,
        img_size: Size | None = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        rel_bias: bool = True,
        layer_scale: float | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        if dilations is not None and len(dilations) != len(dims):
            raise ValueError(f"dilations must have {len(dims)} entries, one a stage, got {dilations}")

        def block(site: Site, **dd) -> TransformerBlock:
            turns = (1,) if dilations is None else dilations[site.stage]
            attn = NeighborhoodAttention(
                site.dim,
                num_heads[site.stage],
                kernel_size,
                turns[site.index % len(turns)],
                qkv_bias=qkv_bias,
                rel_bias=rel_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                pad_small=True,
                **dd,
            )
            return TransformerBlock(
                site.dim, attn, mlp_ratio, layer_scale, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd
            )

        super().__init__(dims, depths, block, **pyramid)
        self._dilations_follow = dilated and dilations is None
        self._traits = {**getattr(self, "_traits", {}), "fixed_input_size": False}
        self._dilate(img_size or 224)
        self.set_input_size(img_size)

    def set_input_size(self, img_size: Size | None = None) -> None:
        """Makes (h, w) the nominal size of images: dilations follow, unless they were given."""
        super().set_input_size(img_size)
        if img_size is not None:
            self._dilate(img_size)

    def _dilate(self, img_size: Size) -> None:
        if not self._dilations_follow:
            return
        for stage, info in zip(self.stages, self.feature_info):
            for block in list(stage.blocks)[1::2]:
                attn, maps = block.attn, (-(-n // info["reduction"]) for n in to_2tuple(img_size))
                attn.dilation = tuple(max(1, n // kernel) for n, kernel in zip(maps, attn.kernel_size))


_TRANSFORMERS = (  # patterns of Transformers' names, and the official repository's
    (r"^(?:di)?nat\.", ""),
    (r"^embeddings\.(?:patch_embeddings\.projection\.)?", lambda m: f"patch_embed.{'proj.' * ('proj' in m[0])}"),
    (r"^encoder\.levels\.(\d+)\.(layers\.)?", lambda m: f"levels.{m[1]}.{'blocks.' * bool(m[2])}"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_OFFICIAL = (  # patterns of the official repository's names, and what we call them
    (r"^patch_embed\.proj\.([01])\.", lambda m: f"stem.conv{int(m[1]) + 1}."),
    (r"^patch_embed\.", "stem."),
    (r"^levels\.(\d+)\.downsample\.reduction\.", r"levels.\1.downsample.conv."),
    (r"^(?:levels|layers)\.(\d+)\.downsample\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"^(?:levels|layers)\.", "stages."),
    (r"\.gamma([12])$", r".ls\1.gamma"),
    (r"^head\.(?!fc\.)", "head.fc."),
)


def _rename(name: str, rules: Sequence[tuple]) -> str:
    for theirs, ours in rules:
        name = re.sub(theirs, ours, name)
    return name


def _from_transformers(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the official repository's names, with queries, keys and values of a block in one projection."""
    found = {_rename(name, _TRANSFORMERS): tensor for name, tensor in found.items()}
    for name in [name for name in found if ".attn.query." in name]:
        parts = [found.pop(name.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        if all(part is not None for part in parts):  # else the layout is refused for what is missing
            found[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    for name in [name for name in found if name.endswith(".layer_scale_parameters")]:
        both, block = found.pop(name), name.removesuffix("layer_scale_parameters")  # [2, dim]
        found[f"{block}gamma1"], found[f"{block}gamma2"] = both
    return found


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint of NAT, DiNAT or DiNAT_s for ``model``; tables are resized for another window.

    It may have our layout, the official repository's or Transformers'; these two have each downsampler at the end of a
    stage.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = unwrap_state_dict(checkpoint)
    if any(".attention.self.query." in name for name in state_dict):
        state_dict = _from_transformers(state_dict)
    if any(name.startswith("patch_embed.") for name in state_dict):
        state_dict = {_rename(name, _OFFICIAL): tensor for name, tensor in state_dict.items()}
    require_layout(state_dict, model, "NAT")
    resize_tables(state_dict, model, ".rpb")
    return state_dict


def _cfg(file: str, crop_pct: float = 0.875, **kwargs) -> dict:
    return model_cfg(
        url=f"https://shi-labs.com/projects/{file}.pth",
        crop_pct=crop_pct,
        first_conv="stem.proj" if "dinat_s_" in file else "stem.conv1",
        license="mit",
        origin_url="https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
        paper_ids="arXiv:2204.07143" if file.startswith("nat/") else "arXiv:2209.15001",
        **kwargs,
    )


def _nat(size: str) -> dict:
    return {f"nat_{size}.in1k": _cfg(f"nat/checkpoints/CLS/nat_{size}")}


def _dinat(name: str) -> dict:
    return {f"{name}.in1k": _cfg(f"dinat/checkpoints/imagenet1k/{name}_in1k_224")}


def _large(name: str, trained: str) -> dict:
    """ImageNet-22K's, and what was tuned from them on ImageNet-1K; ``trained``: the files' word for the latter."""
    # to timm: build the model for this size, so that its dilations are those that the weights were trained with
    fine = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0, "fixed_input_size": True}
    folder = "dinat/checkpoints"
    return {
        f"{name}.in22k_ft_in1k": _cfg(f"{folder}/imagenet1k/{name}_{trained}_224"),
        f"{name}.in22k_ft_in1k_384": _cfg(f"{folder}/imagenet1k/{name}_{trained}_384", **fine),
        f"{name}.in22k": _cfg(f"{folder}/imagenet22k/{name}_in22k_224", num_classes=21841),
    }


default_cfgs = generate_default_cfgs(
    {
        **_nat("mini"),
        **_nat("tiny"),
        **_nat("small"),
        **_nat("base"),
        **_dinat("dinat_mini"),
        **_dinat("dinat_tiny"),
        **_dinat("dinat_small"),
        **_dinat("dinat_base"),
        **_large("dinat_large", "in22k_in1k"),
        **_dinat("dinat_s_tiny"),
        **_dinat("dinat_s_small"),
        **_dinat("dinat_s_base"),
        **_large("dinat_s_large", "in1k"),
    }
)

_TINY = {"dims": (64, 128, 256, 512), "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
_MINI = {**_TINY, "depths": (3, 4, 6, 5)}
_SMALL = {**_TINY, "dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3, "mlp_ratio": 2.0}
_BASE = {**_SMALL, "dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
_LARGE = {**_SMALL, "dims": (192, 384, 768, 1536), "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.35}
_SWIN = {"stem": PatchStem, "downsample": PatchMerging, "mlp_ratio": 4.0, "dilated": True}


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(Nat, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def nat_mini(pretrained: bool = False, **kwargs) -> nn.Module:
    """NAT-Mini: 20.0 M parameters."""
    return _create("nat_mini", pretrained, **{**_MINI, **kwargs})


@register_model
def nat_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """NAT-Tiny: 27.9 M parameters."""
    return _create("nat_tiny", pretrained, **{**_TINY, **kwargs})


@register_model
def nat_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """NAT-Small: 50.7 M parameters, with layer scale."""
    return _create("nat_small", pretrained, **{**_SMALL, "layer_scale": 1e-5, **kwargs})


@register_model
def nat_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """NAT-Base: 89.8 M parameters, with layer scale."""
    return _create("nat_base", pretrained, **{**_BASE, "layer_scale": 1e-5, **kwargs})


@register_model
def dinat_mini(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT-Mini: 20.0 M parameters."""
    return _create("dinat_mini", pretrained, **{**_MINI, "dilated": True, **kwargs})


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT-Tiny: 27.9 M parameters."""
    return _create("dinat_tiny", pretrained, **{**_TINY, "dilated": True, **kwargs})


@register_model
def dinat_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT-Small: 50.7 M parameters; without layer scale, unlike NAT-Small."""
    return _create("dinat_small", pretrained, **{**_SMALL, "dilated": True, **kwargs})


@register_model
def dinat_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT-Base: 89.8 M parameters, with layer scale."""
    return _create("dinat_base", pretrained, **{**_BASE, "layer_scale": 1e-5, "dilated": True, **kwargs})


@register_model
def dinat_large(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT-Large: 200.9 M parameters."""
    return _create("dinat_large", pretrained, **{**_LARGE, "dilated": True, **kwargs})


@register_model
def dinat_s_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT_s-Tiny: 28.3 M parameters, Swin-T's widths and depths."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.2}
    return _create("dinat_s_tiny", pretrained, **{**_SWIN, **args, **kwargs})


@register_model
def dinat_s_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT_s-Small: 49.6 M parameters, Swin-S's widths and depths."""
    args = {"dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("dinat_s_small", pretrained, **{**_SWIN, **args, **kwargs})


@register_model
def dinat_s_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT_s-Base: 87.8 M parameters, Swin-B's widths and depths."""
    args = {"dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("dinat_s_base", pretrained, **{**_SWIN, **args, **kwargs})


@register_model
def dinat_s_large(pretrained: bool = False, **kwargs) -> nn.Module:
    """DiNAT_s-Large: 196.5 M parameters, Swin-L's widths and depths."""
    args = {"dims": (192, 384, 768, 1536), "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
    return _create("dinat_s_large", pretrained, **{**_SWIN, **args, "drop_path_rate": 0.35, **kwargs})
