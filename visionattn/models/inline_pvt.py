"""InLine-PVT: the first pyramid vision transformer with injective linear attention in every block.

Paper: "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024, arXiv 2412.06590, on the host of
"Pyramid Vision Transformer", arXiv 2102.12122. Weights: the authors' (github.com/LeapLabTHU/InLine, no licence file)
are not named here; their files load. ``inline_pvt_large`` is the one that their configuration calls ``inline_pvt_b``.

Images of any size: patches that the image does not fill are left out, as in the official code, and each stage's
position embedding is resized bilinearly to its map, as there (there also where the size differs from the nominal one
but the number of tokens does not, whose embedding the official code takes unresized, in reading order).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch
from timm.layers import register_notrace_module, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn.functional import interpolate, pad

from visionattn.layers import LinearAttention, TransformerBlock
from visionattn.layers.memory import channels_last
from visionattn.models.checkpoints import require_layout, unwrap_state_dict
from visionattn.models.inline_swin import inline_cfg
from visionattn.models.pyramid import Pyramid, Site, Size, build_pyramid


def resize_embedding(table: torch.Tensor, old: tuple[int, int], new: tuple[int, int], mode: str) -> torch.Tensor:
    """A position embedding [1, old_h * old_w, C] for another map: [1, new_h * new_w, C]; ``mode`` of interpolate."""
    # a symbolic size is resized in any case, to itself or not: asking would tie a graph to the answer
    if all(isinstance(n, int) for n in new) and tuple(new) == tuple(old):
        return table
    maps = table.float().unflatten(1, old).permute(0, 3, 1, 2)
    return interpolate(maps, new, mode=mode, align_corners=False).flatten(2).transpose(1, 2).to(table.dtype)


@register_notrace_module  # whether the embedding is resized depends on sizes
class PvtEmbed(nn.Module):
    """A convolution of patches that do not overlap, a LayerNorm and a learned position embedding.

    Args:
        in_chans, dim: channels of what comes in, and of the map.
        stride: side of a patch.
        grid: nominal rows and columns of the map, of which the embedding ``pos_embed`` [1, rows * columns, dim] is.
        image: work on [B, C, H, W], as a stem, and not on [B, H, W, C].

    Shapes: [B, in_chans, H, W] -> [B, dim, H // stride, W // stride], and with channels last likewise. What is smaller
    than a patch is filled up to one with zeros.
    """

    def __init__(
        self, in_chans: int, dim: int, stride: int, grid: tuple[int, int], image: bool, device=None, dtype=None
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grid = grid
        self.image = image
        self.proj = nn.Conv2d(in_chans, dim, stride, stride=stride, **dd)
        self.norm = nn.LayerNorm(dim, **dd)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the position embedding anew; the rest belongs to itself."""
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.image else x.permute(0, 3, 1, 2)
        (least_h, least_w), (height, width) = self.proj.kernel_size, x.shape[2:]
        if height < least_h or width < least_w:
            x = pad(x, (0, max(0, least_w - width), 0, max(0, least_h - height)))
        x = self.proj(channels_last(x)).permute(0, 2, 3, 1)
        size = tuple(x.shape[1:3])
        x = self.norm(x) + resize_embedding(self.pos_embed, self.grid, size, "bilinear").unflatten(1, size)
        return x.permute(0, 3, 1, 2) if self.image else x


class InlinePvt(Pyramid):
    """A pyramid of blocks of linear attention, with a position embedding in front of each stage and no final norm.

    Args:
        dims, depths, num_heads: one entry a stage.
        mlp_ratios: hidden width of the MLPs over the block's, one entry a stage.
        qkv_bias: bias of the projections to queries, keys and values.
        proj_drop_rate: dropout behind projections.
        img_size: nominal size (h, w) of images, 224x224 unless given: of the position embeddings. Images of any size
            are accepted at any moment.
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratios: Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        qkv_bias: bool = True,
        proj_drop_rate: float = 0.0,
        img_size: Size | None = None,
        **pyramid,
    ) -> None:
        grid = to_2tuple(img_size or 224)

        def embed(image: bool):
            def make(in_chans: int, dim: int, stride: int, **dd) -> PvtEmbed:
                nonlocal grid  # stages are made one after the other
                grid = tuple(max(1, n // stride) for n in grid)
                return PvtEmbed(in_chans, dim, stride, grid, image, **dd)

            return make

        def block(site: Site, **dd) -> TransformerBlock:
            attn = LinearAttention(site.dim, num_heads[site.stage], qkv_bias, proj_drop=proj_drop_rate, **dd)
            return TransformerBlock(
                site.dim,
                attn,
                mlp_ratios[site.stage],
                proj_drop=proj_drop_rate,
                drop_path=site.drop_path,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                **dd,
            )

        shape = {"stem": embed(True), "downsample": embed(False), "norm_layer": None, "img_size": img_size}
        super().__init__(dims, depths, block, **{**shape, **pyramid})


def _rename_official(name: str) -> str:
    """The official repository's name of a parameter as we have it, but for ``q`` and ``kv``."""

    def place(match: re.Match) -> str:
        stage = int(match[2]) - 1
        rest = "pos_embed" if match[1] == "pos_embed" else match[3].removeprefix(".")
        return f"stem.{rest}" if stage == 0 else f"stages.{stage}.downsample.{rest}"

    name = re.sub(r"^(pos_embed|patch_embed)(\d)(\..*)?$", place, name)
    name = re.sub(r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.", name)
    return re.sub(r"^head\.(?!fc\.)", "head.fc.", name)


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """An InLine-PVT checkpoint for ``model``: ours or the official one; embeddings are resized for another image size.

    The official one has projections to queries and to keys and values apart.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = unwrap_state_dict(checkpoint)
    if "patch_embed1.proj.weight" in state_dict:
        state_dict = {_rename_official(name): tensor for name, tensor in state_dict.items()}
        for name in [name for name in state_dict if ".attn.q." in name]:
            queries = state_dict.pop(name)
            keys = state_dict.pop(name.replace(".q.", ".kv."), queries[:0])
            state_dict[name.replace(".q.", ".qkv.")] = torch.cat((queries, keys))
    require_layout(state_dict, model, "InLine-PVT")
    resize_embeddings(state_dict, model, "bilinear")
    return state_dict


def resize_embeddings(state_dict: dict[str, torch.Tensor], model: nn.Module, mode: str, before: int = 0) -> None:
    """Fits position embeddings ``pos_embed``, of square maps, to the grids of the model's modules, in place.

    ``before``: how many tokens in front of the map's have an embedding too.
    """
    own = dict(model.named_parameters())
    for name, table in state_dict.items():
        if name.endswith("pos_embed") and name in own and table.shape != own[name].shape:
            side = round((table.shape[1] - before) ** 0.5)
            grid = model.get_submodule(name.rpartition(".")[0]).grid
            if table.ndim != 3 or side * side != table.shape[1] - before:
                raise ValueError(f"{name} must be of a square map to be resized to {grid}, got {list(table.shape)}")
            resized = resize_embedding(table[:, before:], (side, side), grid, mode)
            state_dict[name] = torch.cat((table[:, :before], resized), 1)


default_cfgs = generate_default_cfgs(
    {f"inline_pvt_{size}": inline_cfg() for size in ("tiny", "small", "medium", "large")}
)


def _create(variant: str, depths: Sequence[int], drop_path_rate: float, pretrained: bool, kwargs: dict) -> nn.Module:
    args = {"dims": (64, 128, 320, 512), "depths": depths, "num_heads": (2, 4, 10, 16)}
    args["drop_path_rate"] = drop_path_rate
    return build_pyramid(InlinePvt, variant, pretrained, checkpoint_filter_fn, **{**args, **kwargs})


@register_model
def inline_pvt_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-PVT-T: 12.0 M parameters."""
    return _create("inline_pvt_tiny", (2, 2, 2, 2), 0.1, pretrained, kwargs)


@register_model
def inline_pvt_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-PVT-S: 21.6 M parameters."""
    return _create("inline_pvt_small", (3, 4, 6, 3), 0.1, pretrained, kwargs)


@register_model
def inline_pvt_medium(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-PVT-M: 37.6 M parameters."""
    return _create("inline_pvt_medium", (3, 4, 18, 3), 0.3, pretrained, kwargs)


@register_model
def inline_pvt_large(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-PVT-L: 51.2 M parameters."""
    return _create("inline_pvt_large", (3, 8, 27, 3), 0.3, pretrained, kwargs)
