"""The reference is the definition: it must be right, differentiable twice, and linear in the map."""
import random

import pytest
import torch

from visionattn.kernels.neighborhood import reference
from visionattn.kernels.neighborhood.geometry import make_geometry


def _case(seed: int):
    """A drawn case: odd, rectangular, batch 1; kernels odd, even, per axis; dilations that do not divide the map."""
    r = random.Random(seed)
    kernel = (r.randint(1, 7), r.randint(1, 7)) if r.random() < 0.7 else (r.randint(1, 7),) * 2
    dilation = (r.randint(1, 3), r.randint(1, 3)) if r.random() < 0.6 else (1, 1)
    stride = tuple(r.randint(1, k) for k in kernel) if r.random() < 0.6 else (1, 1)
    height, width = (k * d + r.randint(0, 11) for k, d in zip(kernel, dilation, strict=True))
    shape = dict(batch=r.randint(1, 2), height=height, width=width, heads=r.randint(1, 3), d=r.choice((8, 9, 16)),
                 dv=r.choice((8, 11)), kernel=kernel if r.random() < 0.6 else None, device="cpu")
    causal = (r.random() < 0.5, r.random() < 0.5) if r.random() < 0.6 else False
    shape["tokens"] = r.randint(1, 5) if r.random() < 0.4 else 0
    return make_geometry(kernel, dilation, stride, causal), shape


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_equals_a_loop_over_positions(first, drawn, by_loop, to_all, monkeypatch):
    for seed in range(first, first + 40):
        geometry, shape = _case(seed)
        tensors = drawn(**shape)
        arguments = *(tensors.get(name) for name in ("q", "k", "v", "bias")), geometry, 0.3, *(
            tensors.get(name) for name in ("extra_k", "extra_v"))
        expected = by_loop(*arguments)
        case = f"case {seed}: {geometry} {shape}"
        torch.testing.assert_close(to_all(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        torch.testing.assert_close(reference.neighborhood_attention(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # the same map cut into tiles, in chunks, which is for large maps
            patch.setattr(reference, "tile_size", lambda n, k, d, s: s * max(1, 4 // s))
            patch.setattr(reference, "CHUNK", 5000)
            tiled = reference.neighborhood_attention(*arguments)
        torch.testing.assert_close(tiled, expected, rtol=0, atol=1e-12, msg=case)


@pytest.mark.parametrize("tiled", [False, True], ids=["whole", "tiled"])
def test_gradients_equal_the_dense_ones(tiled, drawn, to_all, results, monkeypatch):
    if tiled:
        monkeypatch.setattr(reference, "tile_size", lambda n, k, d, s: s * max(1, 3 // s))
    for seed in range(1000, 1030):
        geometry, shape = _case(seed)
        tensors = drawn(**shape)
        grad = torch.randn(*tensors["q"].shape[:4], shape["dv"], dtype=torch.float64)

        def call(function, q, k, v, bias=None, extra_k=None, extra_v=None, geometry=geometry):
            return function(q, k, v, bias, geometry, 0.3, extra_k, extra_v)

        expected = results(lambda call=call, **x: call(to_all, **x), tensors, grad)
        actual = results(lambda call=call, **x: call(reference.neighborhood_attention, **x), tensors, grad)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-11, msg=f"{name} of case {seed}")


# kernel, dilation, stride, causal, size, extra tokens
GRADCHECKS = [((3, 2), 1, 1, False, (4, 3), 0), (2, 2, 2, False, (5, 4), 0), (3, 1, 2, False, (5, 3), 0),
              (3, 1, 2, (True, False), (5, 3), 0), ((3, 2), 1, 1, (False, True), (4, 3), 2)]


def _checked(q, k, v, bias, extra_k=None, extra_v=None, *, geometry):
    return reference.neighborhood_attention(q, k, v, bias, geometry, 0.4, extra_k, extra_v)


@pytest.mark.parametrize("kernel, dilation, stride, causal, size, tokens", GRADCHECKS)
def test_gradcheck_through_all_tensors(kernel, dilation, stride, causal, size, tokens, drawn):
    geometry = make_geometry(kernel, dilation, stride, causal)
    tensors = [x.requires_grad_() for x in drawn(1, *size, 1, 8, 9, geometry.kernel, "cpu", tokens).values()]
    assert torch.autograd.gradcheck(lambda *x: _checked(*x, geometry=geometry), tensors)


@pytest.mark.parametrize("kernel, dilation, stride, causal, size, tokens", GRADCHECKS)
def test_gradgradcheck_through_all_tensors(kernel, dilation, stride, causal, size, tokens, drawn):
    geometry = make_geometry(kernel, dilation, stride, causal)
    tensors = [x.requires_grad_() for x in drawn(1, *size, 1, 8, 8, geometry.kernel, "cpu", tokens).values()]
    assert torch.autograd.gradgradcheck(lambda *x: _checked(*x, geometry=geometry), tensors, fast_mode=True)


def test_keys_ahead_of_a_causal_query_leave_their_places_in_the_table_without_gradient(drawn):
    geometry = make_geometry((3, 4), 1, 2, (True, False))
    tensors = drawn(1, 7, 8, 2, 8, 8, geometry.kernel, "cpu")
    bias = tensors["bias"].requires_grad_()
    reference.neighborhood_attention(*tensors.values(), geometry, 0.4).square().sum().backward()
    ahead, rest = bias.grad[:, 3:], bias.grad[:, :3]                   # rows of the table: key - query + 2
    assert not ahead.any() and rest.abs().sum((0, 2)).all()


def _pairs_of_an_axis(n: int, k: int, d: int, s: int, causal: bool) -> int:
    mask = reference.axis_tiles(n, k, d, s, None, torch.device("cpu"), causal).mask    # [group, query, key]
    return sum(mask[g, :len(range(g, n, d))].sum().item() for g in range(d))


def test_the_pairs_that_flops_count_are_those_that_attend():
    for seed in range(40):
        geometry, shape = _case(seed)
        sizes = shape["height"], shape["width"]
        rows, columns = (_pairs_of_an_axis(*axis) for axis in zip(sizes, *geometry, strict=True))
        assert geometry.pairs(*sizes) == rows * columns, f"case {seed}: {geometry} {sizes}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, drawn, to_all, rule):
    geometry = make_geometry(7, 1, 2)

    def call(function):
        return lambda q, k, v, bias: function(q, k, v, bias, geometry, 32**-0.5)

    rule(call(reference.neighborhood_attention), drawn(2, 19, 9, 2, 32, 24, (7, 7), "cpu"), dtype, call(to_all))


def test_padded_queries_give_no_nan_in_any_gradient(drawn, monkeypatch):
    monkeypatch.setattr(reference, "tile_size", lambda n, k, d, s: 8)       # groups of 3 and 4 in tiles of 8
    geometry = make_geometry(3, 2, 1)
    tensors = [x.requires_grad_() for x in drawn(1, 7, 7, 2, 8, 8, (3, 3), "cpu").values()]
    out = reference.neighborhood_attention(*tensors, geometry, 1.0)
    once = torch.autograd.grad(out.square().sum(), tensors, create_graph=True)
    twice = torch.autograd.grad(sum(x.square().sum() for x in once), tensors)
    assert all(x.isfinite().all() for x in (out, *once, *twice))


def test_work_grows_linearly_with_the_map():
    counts = []
    for side in (64, 128):
        from torch.utils.flop_counter import FlopCounterMode
        x = torch.zeros(1, side, side, 1, 8)
        with FlopCounterMode(display=False) as counter:
            reference.neighborhood_attention(x, x, x, None, make_geometry(7), 1.0)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 4.01 * counts[0]


def test_a_small_map_is_one_dense_product_without_gathers():
    x = torch.randn(2, 16, 16, 2, 8)
    graph = torch.fx.experimental.proxy_tensor.make_fx(
        lambda q, k, v: reference.neighborhood_attention(q, k, v, None, make_geometry(7), 1.0))(x, x, x).graph
    targets = {str(node.target) for node in graph.nodes}
    assert not {t for t in targets if "index" in t or "gather" in t}
