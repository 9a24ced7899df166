"""The very kernels, run by Triton's interpreter, read timm's projections as fused modules hand them over."""

import importlib.util

import pytest
import torch
from timm.layers import RelPosBias, RelPosBiasTf, RelPosMlp
from timm.layers.halo_attn import HaloAttn
from timm.models import davit, gcvit, maxxvit, swin_transformer

from visionattn import fuse
from visionattn.kernels._dispatch import interpreted

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU here, without an interpreter"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
]


def _partition(rel_pos_type, head_first, **options):
    cfg = maxxvit.MaxxVitTransformerCfg(
        dim_head=8, head_first=head_first, rel_pos_type=rel_pos_type, window_size=(4, 2), grid_size=(4, 2), **options
    )
    return maxxvit.PartitionAttentionCl(16, "grid", cfg)


MODULES = {
    "swin": (lambda: swin_transformer.SwinTransformerBlock(16, (8, 8), 2, window_size=4, shift_size=2), (1, 8, 8, 16)),
    "maxvit tf": (lambda: _partition("bias_tf", False), (1, 8, 4, 16)),
    "maxvit rw": (lambda: _partition("bias", True), (1, 8, 4, 16)),
    "maxvit rmlp": (lambda: _partition("mlp", True, rel_pos_dim=16), (1, 8, 4, 16)),
    "gcvit": (lambda: gcvit.GlobalContextVitBlock(16, (8, 8), 2, 4, use_global=False), (1, 8, 8, 16)),
    "davit channels": (lambda: davit.ChannelAttention(16, 2), (1, 24, 16)),
    "davit channels v2": (lambda: davit.ChannelAttentionV2(16, 2), (1, 24, 16)),
    "halo": (lambda: HaloAttn(16, num_heads=2, block_size=4, halo_size=1, stride=2), (1, 16, 8, 8)),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_kernels_give_timms_outputs_and_gradients(name, outcome, same, interpreter):
    build, shape = MODULES[name]
    module, x = build().eval(), torch.randn(shape)
    with torch.no_grad():
        for rel_pos in (m for m in module.modules() if isinstance(m, RelPosBias | RelPosBiasTf | RelPosMlp)):
            for p in rel_pos.parameters():
                p.normal_()
    expected = outcome(module, x)
    assert fuse(module)
    with interpreted():
        same(outcome(module, x), expected)
