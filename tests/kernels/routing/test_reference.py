"""The reference is the definition: it must be right, differentiable twice, and linear in the map."""
import pytest
import torch

from visionattn.kernels.routing import reference
from visionattn.kernels.routing.geometry import make_geometry


@pytest.mark.parametrize("first", range(0, 240, 40))
def test_equals_a_loop_over_positions(first, case_drawn, drawn, routed_loop, routed_all, monkeypatch):
    for seed in range(first, first + 40):
        regions, routes, shape = case_drawn(seed)
        arguments = *drawn(**shape).values(), routes
        expected = routed_loop(*arguments, regions, 0.3)
        case = f"case {seed}: {regions} {routes.shape} {shape}"
        torch.testing.assert_close(routed_all(*arguments, regions, 0.3), expected, rtol=0, atol=1e-12, msg=case)
        arguments = *arguments, make_geometry(regions), 0.3
        torch.testing.assert_close(reference.routed_attention(*arguments), expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # regions one by one, which is for large maps
            patch.setattr(reference, "CHUNK", 1)
            chunked = reference.routed_attention(*arguments)
        torch.testing.assert_close(chunked, expected, rtol=0, atol=1e-12, msg=case)
        with monkeypatch.context() as patch:        # what graphs of symbolic sizes hold
            patch.setattr(reference, "_static", lambda height, width: False)
            indexed = reference.routed_attention(*arguments)
        torch.testing.assert_close(indexed, expected, rtol=0, atol=1e-12, msg=case)


def test_gradients_equal_the_dense_ones(case_drawn, drawn, routed_all, results):
    for seed in range(1000, 1030):
        regions, routes, shape = case_drawn(seed)
        tensors = drawn(**shape)
        grad = torch.randn(tensors["v"].shape, dtype=torch.float64)
        expected = results(lambda q, k, v, r=regions, a=routes: routed_all(q, k, v, a, r, 0.3), tensors, grad)
        actual = results(lambda q, k, v, r=regions, a=routes: reference.routed_attention(
            q, k, v, a, make_geometry(r), 0.3), tensors, grad)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=0, atol=1e-11, msg=f"{name} of case {seed}")


@pytest.mark.parametrize("regions, size, kind", [((2, 2), (4, 5), "distinct"), ((3, 2), (4, 3), "any"),
                                                 ((2, 1), (3, 4), "popular")])
def test_gradcheck_and_gradgradcheck_through_q_k_and_v(regions, size, kind, drawn, routes_drawn):
    routes = routes_drawn(1, regions, 2, kind, "cpu")
    tensors = [x.requires_grad_() for x in drawn(1, *size, 1, 8, 9, None, "cpu").values()]

    def call(*x):
        return reference.routed_attention(*x, routes, make_geometry(regions), 0.4)

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_obeys_the_rule(dtype, drawn, routes_drawn, routed_all, rule):
    routes = routes_drawn(2, (7, 7), 4, "distinct", "cpu")
    rule(lambda q, k, v: reference.routed_attention(q, k, v, routes, make_geometry(7), 0.1),
         drawn(2, 16, 14, 2, 32, 24, None, "cpu"), dtype, lambda q, k, v: routed_all(q, k, v, routes, (7, 7), 0.1))


def test_int32_routes_give_the_same(drawn, routes_drawn):
    tensors, routes = drawn(1, 6, 6, 1, 8, 8, None, "cpu").values(), routes_drawn(1, (3, 3), 2, "any", "cpu")
    found = [reference.routed_attention(*tensors, r, make_geometry(3), 0.3) for r in (routes, routes.int())]
    assert torch.equal(*found)


def test_the_pairs_counted_for_flops_are_whole_regions():
    from visionattn.kernels.routing import _pairs
    shape = (2, 14, 10, 3, 16)
    assert _pairs(shape, shape, (2, 49, 4), make_geometry(7), 1.0) == 2 * 14 * 10 * 3 * 4 * (2 * 2)


def test_work_grows_with_the_map_and_what_a_region_holds():
    from torch.utils.flop_counter import FlopCounterMode
    counts = []
    for side in (16, 32):
        x, routes = torch.zeros(1, side, side, 1, 8), torch.zeros(1, 64, 2, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            reference.routed_attention(x, x, x, routes, make_geometry(8), 1.0)
        counts.append(counter.get_total_flops())
    assert counts[0] == 2 * 16**2 * 2 * 4 * (8 + 8) and counts[1] == 16 * counts[0]   # four times the queries and keys
