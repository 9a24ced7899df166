"""The reference is the definition: it must be right, differentiable twice, and linear in the map."""
import random

import pytest
import torch

from visionattn.kernels.halo import reference
from visionattn.kernels.halo.geometry import make_geometry


def _case(seed: int):
    """A drawn case: odd, rectangular, batch 1; blocks that do not divide the map, halos per axis, strided queries."""
    r = random.Random(seed)
    stride = r.choice(((1, 1), (1, 1), (2, 2), (1, 2), (3, 1)))
    block = tuple(s * r.randint(1, 5 // s) for s in stride)
    halo = tuple(r.randint(0, 3) for _ in block)
    height, width = (r.choice((b * r.randint(1, 3), r.randint(1, 11))) for b in block)
    geometry = make_geometry(block, halo, stride)
    shape = dict(batch=r.randint(1, 2), height=height, width=width, heads=r.randint(1, 3), d=r.choice((8, 9, 16)),
                 dv=r.choice((8, 11)), geometry=geometry, device="cpu")
    return geometry, shape


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_equals_a_loop_over_positions(first, halo_drawn, halo_loop, halo_all, monkeypatch):
    for seed in range(first, first + 40):
        geometry, shape = _case(seed)
        arguments = *halo_drawn(**shape).values(), geometry, 0.3
        expected = halo_loop(*arguments)
        case = f"case {seed}: {geometry} {shape}"
        torch.testing.assert_close(halo_all(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        torch.testing.assert_close(reference.halo_attention(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # rows of blocks one by one, which is for large maps
            patch.setattr(reference, "CHUNK", 1)
            chunked = reference.halo_attention(*arguments)
        torch.testing.assert_close(chunked, expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # what graphs of symbolic sizes hold
            patch.setattr(reference, "_static", lambda *sizes: False)
            indexed = reference.halo_attention(*arguments)
        torch.testing.assert_close(indexed, expected, rtol=0, atol=1e-12, msg=case)


@pytest.mark.parametrize("block, halo, stride", [(8, 3, 1), (8, 2, 2), (4, 0, 1), (5, 1, 1)])
def test_equals_timms_layer(block, halo, stride):
    from timm.layers.halo_attn import HaloAttn
    layer = HaloAttn(48, 24, stride=stride, num_heads=3, dim_head=16, block_size=block, halo_size=halo).double()
    x = torch.randn(2, 48, 2 * block, 3 * block, dtype=torch.float64)
    q, kv = (f(x).permute(0, 2, 3, 1).unflatten(-1, (3, -1)) for f in (layer.q, layer.kv))
    tables = layer.pos_embed.height_rel, layer.pos_embed.width_rel
    out = reference.halo_attention(q, *kv.split((16, 8), -1), *tables, make_geometry(block, halo, stride), 0.25)
    torch.testing.assert_close(out.flatten(-2).permute(0, 3, 1, 2), layer(x), rtol=0, atol=1e-12)


def test_gradients_equal_the_dense_ones(halo_drawn, halo_all, results):
    for seed in range(1000, 1030):
        geometry, shape = _case(seed)
        tensors = halo_drawn(**shape)
        grad = torch.randn(*tensors["q"].shape[:4], shape["dv"], dtype=torch.float64)
        expected, actual = (
            results(lambda f=f, g=geometry, **x: f(*x.values(), g, 0.3), tensors, grad)
            for f in (halo_all, reference.halo_attention))
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-11, msg=f"{name} of case {seed}")


CHECKED = [((2, 3), (1, 2), 1, (4, 3)), (2, 1, 2, (4, 5)), (3, 0, 1, (2, 4))]


@pytest.mark.parametrize("block, halo, stride, size", CHECKED)
def test_gradcheck_through_q_k_v_and_both_tables(block, halo, stride, size, halo_drawn):
    geometry = make_geometry(block, halo, stride)
    tensors = [x.requires_grad_() for x in halo_drawn(1, *size, 1, 8, 9, geometry, "cpu").values()]
    assert torch.autograd.gradcheck(lambda *x: reference.halo_attention(*x, geometry, 0.4), tensors, fast_mode=True)


@pytest.mark.parametrize("block, halo, stride, size", CHECKED)
def test_gradgradcheck_through_q_k_v_and_both_tables(block, halo, stride, size, halo_drawn):
    geometry = make_geometry(block, halo, stride)
    tensors = [x.requires_grad_() for x in halo_drawn(1, *size, 1, 8, 8, geometry, "cpu").values()]
    assert torch.autograd.gradgradcheck(
        lambda *x: reference.halo_attention(*x, geometry, 0.4), tensors, fast_mode=True)


def test_the_pairs_counted_for_flops_are_the_keys_of_a_window_for_every_query():
    from visionattn.kernels.halo import _pairs
    shape = (2, 7, 9, 3, 16)
    assert _pairs(shape, shape, None, None, make_geometry((4, 6), (1, 2), 2), 1.0) == 2 * 7 * 9 * 3 * 6 * 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, halo_drawn, halo_all, rule):
    geometry = make_geometry(8, 3)

    def call(function):
        return lambda q, k, v, rel_h, rel_w: function(q, k, v, rel_h, rel_w, geometry, 32**-0.5)

    rule(call(reference.halo_attention), halo_drawn(2, 19, 9, 2, 32, 24, geometry, "cpu"), dtype, call(halo_all))


def test_keys_outside_the_map_take_weight_and_give_nothing():
    q, v = torch.zeros(1, 1, 1, 1, 8), torch.ones(1, 1, 1, 1, 8)
    table = torch.zeros(9, 8)
    out = reference.halo_attention(q, q, v, table, table, make_geometry(1, 2), 1.0)
    torch.testing.assert_close(out, torch.full_like(out, 1 / 25))


def test_work_grows_linearly_with_the_map():
    from torch.utils.flop_counter import FlopCounterMode
    counts = []
    for side in (32, 64):
        x, table = torch.zeros(1, side, side, 1, 8), torch.zeros(27, 8)
        with FlopCounterMode(display=False) as counter:
            reference.halo_attention(x, x, x, table, table, make_geometry(8, 3), 1.0)
        counts.append(counter.get_total_flops())
    assert counts[1] == 4 * counts[0]
