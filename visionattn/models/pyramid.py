"""The skeleton of every backbone: a stem, stages of blocks on ever smaller maps, a norm and a head.

A family describes its blocks, and its stem and downsampler where they differ; :class:`Pyramid` owns everything that
timm asks of a model. Inside a stage maps are [B, H, W, C]; between modules and at the outside they are
[B, C, H, W] in channels-last memory, so that each change of layout is a free view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint
from timm.models._features import FeatureGetterNet, feature_take_indices
from torch import nn

from visionattn.layers import ConvDownsample, ConvStem

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Site:
    """Where a block stands in the pyramid, and what falls to it there.

    ``in_dim`` and ``stride`` differ from ``dim`` and 1 only for the first block of a stage in pyramids without a
    downsampler of their own, where that block shrinks the map itself (MaxViT, HaloNet).
    """

    stage: int  # 0, 1, ...
    index: int  # in its stage
    depth: int  # blocks of its stage
    in_dim: int  # channels that come in
    dim: int  # channels that go out
    stride: int  # by which this block itself shrinks the map
    drop_path: float  # rate of stochastic depth


def model_cfg(**own: Any) -> dict[str, Any]:
    """What timm records of a model's weights: what all backbones here have in common, under what is its ``own``."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "fixed_input_size": False,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head.fc",
        **own,
    }


class Stage(nn.Module):
    """Shrinks the map if that is its task, makes the context of its blocks if it has one, runs its blocks.

    Shapes: [B, in_dim, H, W] -> [B, dim, H', W'], channels-last in memory; blocks work on [B, H', W', dim] and are
    called ``block(x)``, or ``block(x, context)`` where the stage has a ``context`` module, which sees the map before
    the first block (GC ViT's global query).
    """

    def __init__(self, downsample: nn.Module | None, context: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.context = context
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x.permute(0, 2, 3, 1))
        extra = () if self.context is None else (self.context(x),)
        for block in self.blocks:
            x = checkpoint(block, x, *extra) if self.grad_checkpointing else block(x, *extra)
        return x.permute(0, 3, 1, 2)


def draw_weights(model: nn.Module, needs_reset: bool) -> None:
    """What :meth:`Pyramid.init_weights` does to a model."""
    for module in model.modules():
        if needs_reset and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for module in model.modules():
        # on the meta device nothing is drawn, and to find that out takes longer than all else in making a model
        if isinstance(module, nn.Linear) and not module.weight.is_meta:
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Pyramid(nn.Module):
    """A hierarchical backbone with timm's whole model contract.

    Args:
        dims: channels of each stage.
        depths: blocks of each stage.
        block: ``block(site, device=, dtype=)`` makes the block of a :class:`Site`.
        stem: ``stem(in_chans, dim, stride, device=, dtype=)`` makes the stem, image -> [B, dim, H', W'].
        stem_stride: image pixels per token behind the stem.
        stem_dim: channels behind the stem; the first stage's if None.
        stage_strides: by which each stage shrinks the map that it gets; 1, 2, 2, ... if None.
        downsample: ``downsample(in_dim, dim, stride, device=, dtype=)``, [B, H, W, in_dim] -> [B, H', W', dim], made
            for each stage that changes the size or the channels; None leaves both to the stage's first block.
        context: ``context(stage, dim, device=, dtype=)`` makes the module, or None, whose result on the stage's map
            every block of that stage gets as its second argument.
        norm_layer: ``norm_layer(dim, device=, dtype=)``, the norm behind the last stage; None for no norm there.
        head: timm's ClassifierHead, or ClNormMlpClassifierHead (given by functools.partial) for norms behind the pool.
        in_chans, num_classes, global_pool, drop_rate: as everywhere in timm; ``num_classes=0`` gives pooled features,
            ``global_pool=""`` a map.
        drop_path_rate: stochastic depth, rising linearly over all blocks from 0 to this.
        img_size: nominal size of images. Nothing depends on it, images of any size are accepted at any moment; it is
            recorded for timm's tools.
        device, dtype: of every parameter.

    Shapes: [B, in_chans, H, W] -> [B, num_classes]. Any H and W of at least one pixel.

    Raises:
        TypeError: for an unknown keyword.
        ValueError: where dims, depths and stage_strides differ in length.
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        block: Callable[..., nn.Module],
        *,
        stem: Callable[..., nn.Module] = ConvStem,
        stem_stride: int = 4,
        stem_dim: int | None = None,
        stage_strides: Sequence[int] | None = None,
        downsample: Callable[..., nn.Module] | None = ConvDownsample,
        context: Callable[..., nn.Module | None] | None = None,
        norm_layer: Callable[..., nn.Module] | None = nn.LayerNorm,
        head: Callable[..., nn.Module] = ClassifierHead,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        img_size: Size | None = None,
        device=None,
        dtype=None,
    ) -> None:
        super().__init__()
        if stage_strides is None:
            stage_strides = (1,) + (2,) * (len(dims) - 1)
        if not len(dims) == len(depths) == len(stage_strides):
            raise ValueError(
                "dims, depths and stage_strides must have one entry a stage, got "
                f"{tuple(dims)}, {tuple(depths)} and {tuple(stage_strides)}"
            )
        dd = {"device": device, "dtype": dtype}
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.output_fmt = "NCHW"
        self.num_features = dims[-1]

        dim = dims[0] if stem_dim is None else stem_dim
        self.stem = stem(in_chans, dim, stem_stride, **dd)
        rates = iter(calculate_drop_path_rates(drop_path_rate, sum(depths)))
        stages, reduction = [], stem_stride
        self.feature_info: list[dict[str, Any]] = []
        for i, (out_dim, depth, stride) in enumerate(zip(dims, depths, stage_strides)):
            shrink = None
            if downsample is not None and (stride != 1 or dim != out_dim):
                shrink = downsample(dim, out_dim, stride, **dd)
                dim, stride_left = out_dim, 1
            else:
                stride_left = stride
            blocks = []
            for j in range(depth):
                site = Site(i, j, depth, dim, out_dim, stride_left, next(rates))
                blocks.append(block(site, **dd))
                dim, stride_left = out_dim, 1
            stages.append(Stage(shrink, None if context is None else context(i, out_dim, **dd), blocks))
            reduction *= stride
            self.feature_info.append({"num_chs": out_dim, "reduction": reduction, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)

        self.norm = nn.Identity() if norm_layer is None else norm_layer(self.num_features, **dd)
        self.head = head(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC", **dd
        )
        self.head_hidden_size = self.head.num_features
        self.init_weights(needs_reset=False)
        if img_size is not None:
            self.set_input_size(img_size)

    # -- weights ------------------------------------------------------------------------------------------------------

    def init_weights(self, needs_reset: bool = True) -> None:
        """Draws the weights anew: Linear from a normal of deviation 0.02 cut at two absolute units, biases zero.

        Args:
            needs_reset: also let every module draw its own first; not needed right after construction.
        """
        draw_weights(self, needs_reset)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, as the modules that own them say."""
        return {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if module is not self and hasattr(module, "no_weight_decay")
            for name in module.no_weight_decay()
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for layer-wise learning rates: the stem, then each block (coarse: each stage)."""
        blocks = [
            (r"^stages\.(\d+)\.(?:downsample|context)", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),  # timm's number for "with the group before"
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def set_input_size(self, img_size: Size | None = None) -> None:
        """Records the nominal size (h, w) of images for timm's tools; no weight changes, any size keeps working."""
        # timm has this for its own models and exports it nowhere; needed only here, so fetched only here
        from timm.models._input import update_model_input_size

        if img_size is not None:
            update_model_input_size(self, img_size)

    # -- head ---------------------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an Identity for ``num_classes=0``."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new classifier in; the pooling stays as it is where ``global_pool`` is None."""
        self._reset_head(num_classes, global_pool)

    def _reset_head(self, num_classes: int, global_pool: str | None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head.reset(
            num_classes,
            pool_type=global_pool,
            reset_other=reset_other,
            in_features=self.num_features,
            **get_device_dtype(self),
        )
        self.head_hidden_size = self.head.num_features

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_chans, H, W] -> the normed last map [B, num_features, H', W']."""
        return self._normed(self.stages(self.stem(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The normed last map -> [B, num_classes], or pooled features with ``pre_logits``; a map without pooling."""
        x = self.head(x.permute(0, 2, 3, 1), pre_logits=pre_logits)
        return x if self.global_pool else x.permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_chans, H, W] -> [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def _normed(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The maps of chosen stages, and the final one.

        Args:
            x: images [B, in_chans, H, W].
            indices: the last so many stages for an int, those for a sequence (negative from the end), all for None.
            norm: apply the final norm to the last stage's map; the others have none.
            stop_early: run no stage behind the last one chosen.
            output_fmt: "NCHW" or "NHWC", of the stages' maps; the final map is NCHW like that of forward_features.
            intermediates_only: leave the final map out.

        Returns:
            The stages' maps, or (final map, stages' maps).
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f'output_fmt must be "NCHW" or "NHWC", got {output_fmt!r}')
        last = len(self.stages) - 1
        take, furthest = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: furthest + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                tap = self._normed(x) if norm and i == last else x
                maps.append(tap if output_fmt == "NCHW" else tap.permute(0, 2, 3, 1))
        if intermediates_only:
            return maps
        ran_all = not stop_early or furthest == last  # the norm is made for the last stage alone
        return self._normed(x) if ran_all else x, maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what the chosen stages' maps do not need, and returns the chosen indices, counted from 0.

        Args:
            indices: as in forward_intermediates.
            prune_norm: remove the final norm; it goes in any case when the last stage goes.
            prune_head: remove pooling and classifier; they go in any case when the last stage goes.
        """
        take, furthest = feature_take_indices(len(self.stages), indices)
        cut = furthest < len(self.stages) - 1
        if cut:
            self.stages = self.stages[: furthest + 1]
            self.num_features = self.feature_info[furthest]["num_chs"]
        if cut or prune_norm:
            self.norm = nn.Identity()
        if cut or prune_head:
            self._reset_head(0, "", reset_other=cut or prune_norm)
        return take


class PyramidFeatures(FeatureGetterNet):
    """What ``features_only=True`` gives: a list of NCHW maps, and the parts of the contract that training needs."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As on the pyramid itself."""
        self.model.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """As on the pyramid itself, under the names that its parameters have here."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}


def build_pyramid(
    cls: Callable[..., Pyramid],
    variant: str,
    pretrained: bool,
    checkpoint_filter: Callable[[dict, nn.Module], dict],
    stages: int = 4,
    **kwargs,
) -> nn.Module:
    """timm's factory behind each variant's function.

    Args:
        cls: the family's class.
        variant: the model's name, under which its configuration is registered.
        pretrained: load weights; RuntimeError where the configuration names none.
        checkpoint_filter: turns any known checkpoint into the model's state dict, ValueError for another.
        stages: how many maps ``features_only=True`` gives unless ``out_indices`` says.
        kwargs: of the class, and of timm's build_model_with_cfg.
    """
    return build_model_with_cfg(
        cls,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter,
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": PyramidFeatures, "flatten_sequential": True},
        **kwargs,
    )
