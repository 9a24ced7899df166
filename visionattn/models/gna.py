"""GNA: NAT's recipe on strided and dilated neighborhoods.

Papers: "Neighborhood Attention Transformer", arXiv 2204.07143 (the recipe: overlapping convolutional stem and
downsamplers, 7x7 windows, relative bias); "Dilated Neighborhood Attention Transformer", arXiv 2209.15001 (dilation);
"Generalized Neighborhood Attention", arXiv 2504.16922 (stride). The combination is this project's own, and there are no
published weights.

Which neighborhood a block has (nominal numbers, for images of 224x224; the layer fits them to smaller maps):

=====  =======  ============================  =============================================================
stage  map      blocks alternate between      why
=====  =======  ============================  =============================================================
1      56x56    dilation 1, stride 2          Local. The four queries of a 2x2 patch share one window, so a
                                              tile of queries has a quarter of the distinct windows to mask
                                              and a smaller box of keys, and on a map this fine such
                                              neighbours are nearly the same query.
                dilation 8, stride 1          Global. 56 / 8 = 7: each dilation group is exactly one dense
                                              7x7 window, so nothing is masked, and every query reaches the
                                              whole map at a spacing of 8. No stride: all queries of a group
                                              share that one window already.
2      28x28    dilation 1, stride 2          As above, local.
                dilation 4, stride 1          As above, 28 / 4 = 7.
3      14x14    dilation 1, stride 1          Stride 2 would leave 7 leaders an axis for windows that take
                                              half the map: nearly blocked attention, where sliding windows
                                              earn their keep.
                dilation 2, stride 1          14 / 2 = 7, dense groups again.
4      7x7      dilation 1, stride 1          The window is the map: full attention.
=====  =======  ============================  =============================================================

A stage begins with a local block, so that the fresh tokens of a downsampler first look around, and the global ones mix
what the local ones gathered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from visionattn.layers import NeighborhoodAttention, TransformerBlock
from visionattn.models.checkpoints import require_layout, resize_tables, unwrap_state_dict
from visionattn.models.pyramid import Pyramid, Site, build_pyramid, model_cfg

# (dilation, stride) per stage, taken in turn by its blocks; the table above says why
NEIGHBORHOODS = (((1, 2), (8, 1)), ((1, 2), (4, 1)), ((1, 1), (2, 1)), ((1, 1),))


class Gna(Pyramid):
    """A pyramid of blocks of neighborhood attention.

    Args:
        dims, depths, num_heads: one entry a stage.
        mlp_ratio: hidden width of the MLPs over the block's.
        kernel_size: window of every block.
        neighborhoods: per stage the (dilation, stride) that its blocks take in turn.
        layer_scale: initial layer scale, None for none.
        proj_drop_rate, attn_drop_rate: dropout behind projections, and of attention probabilities (slow on a GPU, see
            :class:`~visionattn.layers.NeighborhoodAttention`).
        pyramid: of :class:`Pyramid`: stem_stride, in_chans, num_classes, global_pool, drop_rate, drop_path_rate, ...
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float = 3.0,
        kernel_size: int | tuple[int, int] = 7,
        neighborhoods: Sequence[Sequence[tuple[int, int]]] = NEIGHBORHOODS,
        layer_scale: float | None = None,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        **pyramid,
    ) -> None:
        def block(site: Site, **dd) -> TransformerBlock:
            turns = neighborhoods[site.stage]
            dilation, stride = turns[site.index % len(turns)]
            attn = NeighborhoodAttention(
                site.dim,
                num_heads[site.stage],
                kernel_size,
                dilation,
                stride,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                **dd,
            )
            return TransformerBlock(
                site.dim, attn, mlp_ratio, layer_scale, proj_drop=proj_drop_rate, drop_path=site.drop_path, **dd
            )

        super().__init__(dims, depths, block, **pyramid)


def checkpoint_filter_fn(checkpoint: dict, model: nn.Module) -> dict[str, torch.Tensor]:
    """A GNA checkpoint, bare or as a training run saved it, for ``model``; tables are resized for another window.

    Raises:
        ValueError: for the checkpoint of another family or variant.
    """
    state_dict = unwrap_state_dict(checkpoint)
    require_layout(state_dict, model, "GNA")
    resize_tables(state_dict, model, ".rpb")
    return state_dict


def _cfg(**kwargs) -> dict:
    return model_cfg(
        # no published weights: pretrained=True without a file is timm's RuntimeError
        first_conv="stem.conv1",
        license="apache-2.0",
        **kwargs,
    )


default_cfgs = generate_default_cfgs(
    {
        "gna_nano.untrained": _cfg(),
        "gna_tiny.untrained": _cfg(),
        "gna_small.untrained": _cfg(),
        "gna_base.untrained": _cfg(),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    return build_pyramid(Gna, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def gna_nano(pretrained: bool = False, **kwargs) -> nn.Module:
    """GNA-Nano: 4.4 M parameters, for small images and quick runs."""
    args = {"dims": (32, 64, 128, 256), "depths": (2, 2, 6, 4), "num_heads": (1, 2, 4, 8)}
    return _create("gna_nano", pretrained, **{**args, **kwargs})


@register_model
def gna_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """GNA-Tiny: the widths and depths of NAT-Tiny."""
    args = {"dims": (64, 128, 256, 512), "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2}
    return _create("gna_tiny", pretrained, **{**args, **kwargs})


@register_model
def gna_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """GNA-Small: the widths and depths of NAT-Small, with its layer scale."""
    args = {"dims": (96, 192, 384, 768), "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.3}
    return _create("gna_small", pretrained, **{**args, "mlp_ratio": 2.0, "layer_scale": 1e-5, **kwargs})


@register_model
def gna_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """GNA-Base: the widths and depths of NAT-Base, with its layer scale."""
    args = {"dims": (128, 256, 512, 1024), "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("gna_base", pretrained, **{**args, "mlp_ratio": 2.0, "layer_scale": 1e-5, **kwargs})
