"""InLine-DeiT: a plain vision transformer with injective linear attention, and so with many tokens.

Paper: "Bridging the Divide: Reconsidering Softmax and Linear Attention", NeurIPS 2024, arXiv 2412.06590, on the host of
"Training data-efficient image transformers", arXiv 2012.12877; the widths and sizes of images are not DeiT's. Weights:
the authors' (github.com/LeapLabTHU/InLine, no licence file) are not named here; their files load.

Images of any size (the official code takes one): they are filled up to whole patches with zeros at the bottom and
right, and the position embedding is resized to their map, bicubically.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, get_device_dtype, register_notrace_module, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from visionattn.layers import LinearAttention, TransformerBlock
from visionattn.layers.memory import nchw
from visionattn.layers.padding import pad_to_multiple
from visionattn.models.checkpoints import require_layout, unwrap_state_dict
from visionattn.models.inline_pvt import resize_embedding, resize_embeddings
from visionattn.models.inline_swin import inline_cfg
from visionattn.models.pyramid import PyramidFeatures, Size, draw_weights

POOLS = ("token", "avg", "")


@register_notrace_module  # padding and the embedding's resizing depend on sizes
class DeitStem(nn.Module):
    """A convolution of patches, a class token in front of them, and a learned position embedding of both.

    Args:
        in_chans, dim: channels of the image, and of the tokens.
        patch_size: side of a patch.
        grid: nominal rows and columns of the patches; ``pos_embed`` is [1, 1 + rows * columns, dim].

    Shapes: image [B, in_chans, H, W] -> tokens [B, 1, 1 + ceil(H / patch_size) * ceil(W / patch_size), dim].
    """

    def __init__(
        self, in_chans: int, dim: int, patch_size: int, grid: tuple[int, int], device=None, dtype=None
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grid = grid
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + grid[0] * grid[1], dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the class token and the position embedding anew; the convolution belongs to itself."""
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(nchw(pad_to_multiple(x.permute(0, 2, 3, 1), self.proj.stride)))
        places = resize_embedding(self.pos_embed[:, 1:], self.grid, tuple(x.shape[2:]), "bicubic")
        x = x.flatten(2).transpose(1, 2) + places
        token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat((token, x), 1)[:, None]


class InlineDeit(nn.Module):
    """Blocks of linear attention on the tokens of one map and a class token, with timm's whole model contract.

    Args:
        dim, depth, num_heads: channels, blocks, attention heads.
        patch_size: pixels per token along an axis.
        mlp_ratio: hidden width of the MLPs over ``dim``.
        qkv_bias: bias of the projections to queries, keys and values.
        img_size: nominal size (h, w) of images: of the position embedding. Images of any size are accepted at any
            moment.
        in_chans, num_classes, drop_rate: as everywhere in timm.
        global_pool: "token" (the class token), "avg" (the mean of the others) or "" (all tokens).
        proj_drop_rate: dropout behind projections.
        drop_path_rate: stochastic depth, rising linearly over all blocks from 0 to this.
        device, dtype: of every parameter.

    Shapes: [B, in_chans, H, W] -> [B, num_classes]. Any H and W of at least one pixel.

    Raises:
        TypeError: for an unknown keyword.
        ValueError: for an unknown ``global_pool``.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        img_size: Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = dim
        self.patch_size = patch_size
        self.grad_checkpointing = False
        grid = tuple(-(-n // patch_size) for n in to_2tuple(img_size))
        self.stem = DeitStem(in_chans, dim, patch_size, grid, **dd)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                LinearAttention(dim, num_heads, qkv_bias, proj_drop=proj_drop_rate, **dd),
                mlp_ratio,
                proj_drop=proj_drop_rate,
                drop_path=rate,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                **dd,
            )
            for rate in calculate_drop_path_rates(drop_path_rate, depth)
        )
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.norm = nn.LayerNorm(dim, 1e-6, **dd)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.init_weights(needs_reset=False)

    def init_weights(self, needs_reset: bool = True) -> None:
        """Draws the weights anew: Linear from a normal of deviation 0.02 cut at two absolute units, biases zero.

        Args:
            needs_reset: also let every module draw its own first; not needed right after construction.
        """
        draw_weights(self, needs_reset)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay."""
        return {"stem.pos_embed", "stem.cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for layer-wise learning rates: the stem, then each block."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: Size | None = None) -> None:
        """Records the nominal size (h, w) of images for timm's tools; no weight changes, any size keeps working."""
        from timm.models._input import update_model_input_size

        if img_size is not None:
            update_model_input_size(self, img_size)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an Identity for ``num_classes=0``."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new classifier in; the pooling stays as it is where ``global_pool`` is None."""
        if global_pool is not None:
            if global_pool not in POOLS:
                raise ValueError(f"global_pool must be one of {POOLS}, got {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes, **get_device_dtype(self)) if num_classes else nn.Identity()
        if num_classes:
            trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
        self.head = head.train(self.training)

    def _grid(self, x: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of an image's patches."""
        p = self.patch_size
        return (x.shape[2] + p - 1) // p, (x.shape[3] + p - 1) // p

    def _run(self, block: nn.Module, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return checkpoint(block, x, grid) if self.grad_checkpointing else block(x, grid)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_chans, H, W] -> the normed tokens [B, 1 + rows * columns, dim], the class token first."""
        grid, x = self._grid(x), self.stem(x)
        for block in self.blocks:
            x = self._run(block, x, grid)
        return self.norm(x).squeeze(1)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The normed tokens -> [B, num_classes], or pooled features with ``pre_logits``; all tokens without pooling."""
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_chans, H, W] -> [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps behind chosen blocks, without the class token, and the final tokens.

        Args:
            x: images [B, in_chans, H, W].
            indices: the last so many blocks for an int, those for a sequence (negative from the end), all for None.
            norm: apply the final norm to every map.
            stop_early: run no block behind the last one chosen.
            output_fmt: "NCHW" or "NHWC", of the maps.
            intermediates_only: leave the final tokens out.

        Returns:
            The maps, or (final tokens, maps).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f'output_fmt must be "NCHW" or "NHWC", got {output_fmt!r}')
        take, furthest = feature_take_indices(len(self.blocks), indices)
        maps = []
        grid, x = self._grid(x), self.stem(x)
        for i, block in enumerate(self.blocks[: furthest + 1] if stop_early else self.blocks):
            x = self._run(block, x, grid)
            if i in take:
                tap = (self.norm(x) if norm else x)[:, 0, 1:].unflatten(1, grid)
                maps.append(tap.permute(0, 3, 1, 2) if output_fmt == "NCHW" else tap)
        return maps if intermediates_only else (self.norm(x).squeeze(1), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the chosen blocks' maps do not need, and returns the chosen indices, counted from 0.

        Args:
            indices: as in forward_intermediates.
            prune_norm: remove the final norm.
            prune_head: remove pooling and classifier.
        """
        take, furthest = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: furthest + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """An InLine-DeiT checkpoint for ``model``: ours or the official one; the embedding is resized for other images.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = {
        re.sub(r"^patch_embed\.", "stem.", re.sub(r"^(cls_token|pos_embed)$", r"stem.\1", name)): tensor
        for name, tensor in unwrap_state_dict(checkpoint).items()
    }
    require_layout(state_dict, model, "InLine-DeiT")
    resize_embeddings(state_dict, model, "bicubic", before=1)
    return state_dict


def _cfg(size: int) -> dict:
    return inline_cfg(input_size=(3, size, size), pool_size=None, classifier="head")


default_cfgs = generate_default_cfgs(
    {"inline_deit_tiny": _cfg(224), "inline_deit_small": _cfg(288), "inline_deit_base": _cfg(448)}
)


def _create(variant: str, dim: int, num_heads: int, img_size: int, pretrained: bool, kwargs: dict) -> nn.Module:
    args = {"dim": dim, "depth": 12, "num_heads": num_heads, "img_size": img_size, "drop_path_rate": 0.1}
    features = {"out_indices": 3, "feature_cls": PyramidFeatures}  # timm's for plain transformers: the last three
    return build_model_with_cfg(
        InlineDeit,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=features,
        **{**args, **kwargs},
    )


@register_model
def inline_deit_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-DeiT-T, for images of 224 pixels: 6.5 M parameters."""
    return _create("inline_deit_tiny", 192, 6, 224, pretrained, kwargs)


@register_model
def inline_deit_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-DeiT-S, for images of 288 pixels: 16.7 M parameters."""
    return _create("inline_deit_small", 320, 10, 288, pretrained, kwargs)


@register_model
def inline_deit_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """InLine-DeiT-B, for images of 448 pixels: 23.8 M parameters."""
    return _create("inline_deit_base", 384, 12, 448, pretrained, kwargs)
