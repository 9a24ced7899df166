"""Causal axes and extra tokens on the Triton kernels: the GPU's where there is one, else under Triton's interpreter."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import explain, neighborhood_attention, neighborhood_attention_packed
from visionattn.kernels.neighborhood.geometry import make_geometry

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
ROWS, COLUMNS, BOTH = (True, False), (False, True), (True, True)
# batch, height, width, heads, D, Dv, kernel, dilation, stride, causal, extra tokens, bias, dtype
CASES = {
    "causal": (1, 6, 7, 1, 16, 16, 3, 1, 1, BOTH, 0, True, SINGLE),
    "causal-rows-strided": (1, 9, 5, 1, 16, 16, (5, 3), 1, (3, 2), ROWS, 0, True, HALF),
    "causal-columns-dilated": (1, 5, 9, 1, 16, 16, (2, 3), (2, 2), (1, 3), COLUMNS, 0, False, BRAIN),
    "causal-one-window": (1, 5, 4, 1, 16, 16, (5, 4), 1, 1, BOTH, 0, True, HALF),
    "extra": (1, 5, 6, 2, 16, 16, 3, 1, 1, False, 3, True, SINGLE),
    "extra-without-bias": (2, 5, 4, 1, 16, 24, 3, 1, 2, False, 2, False, HALF),
    "extra-one-window": (1, 4, 4, 1, 16, 16, 4, 1, 1, False, 1, True, BRAIN),
    "extra-many-shares": (1, 9, 15, 1, 16, 16, 2, 1, 1, False, 17, False, HALF),
    "extra-many-causal": (1, 6, 5, 1, 16, 8, 3, 1, 2, ROWS, 37, True, HALF),
}
QUICK = ("causal", "causal-rows-strided", "extra", "extra-one-window")
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK]
EVERY = [(d, dtype, *rest) for d in (8, 24, 32, 64, 128) for dtype in (HALF, BRAIN, SINGLE)
         for rest in ((ROWS, 0, 2, 1), (BOTH, 5, 3, 1), (False, 20, 1, 2))]


def _function(kernel, dilation, stride, causal, scale=None):
    def function(q, k, v, bias=None, extra_k=None, extra_v=None):
        return neighborhood_attention(q, k, v, kernel, dilation, stride, bias, scale, causal, extra_k, extra_v)

    return function


def _eager(to_all, kernel, dilation, stride, causal, scale):
    geometry = make_geometry(kernel, dilation, stride, causal)

    def eager(q, k, v, bias=None, extra_k=None, extra_v=None):
        return to_all(q, k, v, bias, geometry, scale, extra_k, extra_v)

    return geometry, eager


@pytest.mark.parametrize("case", [*QUICK, *SLOW])
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, drawn, to_all, rule):
    *shape, kernel, dilation, stride, causal, tokens, bias, dtype = CASES[case]
    geometry, eager = _eager(to_all, kernel, dilation, stride, causal, shape[4]**-0.5)
    tensors = drawn(*shape, geometry.kernel if bias else None, fused, tokens)
    rule(_function(kernel, dilation, stride, causal), tensors, dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("d, dtype, causal, tokens, stride, dilation", EVERY, ids=str)
def test_obeys_the_rule_at_every_dimension_and_dtype(d, dtype, causal, tokens, stride, dilation, fused, poisoned, drawn,
                                                     to_all, rule):
    geometry, eager = _eager(to_all, 3, dilation, stride, causal, d**-0.5)
    rule(_function(3, dilation, stride, causal), drawn(1, 7, 6, 2, d, d, geometry.kernel, fused, tokens), dtype, eager)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
def test_any_scale(scale, dtype, fused, poisoned, drawn, to_all, rule):
    _, eager = _eager(to_all, 3, 1, 1, ROWS, scale)
    rule(_function(3, 1, 1, ROWS, scale), drawn(4, 5, 6, 1, 16, 16, None, fused, 3), dtype, eager)


@pytest.mark.parametrize("towards", [1, -1], ids=["extra", "window"])
def test_one_part_may_take_all_the_weight(towards, fused, poisoned):
    """Logits so far apart that either part's sum of exponentials vanishes beside the other's."""
    q = torch.ones(1, 3, 3, 1, 16, device=fused)
    k, extra_k = torch.zeros_like(q), torch.full((1, 2, 1, 16), 200.0 * towards, device=fused)
    v, extra_v = torch.ones_like(q), torch.full((1, 2, 1, 16), 5.0, device=fused)
    tensors = [x.requires_grad_() for x in (q, k, v, extra_k, extra_v)]
    out = _function(3, 1, 1, True)(q, k, v, extra_k=extra_k, extra_v=extra_v)
    assert (out == (5 if towards > 0 else 1)).all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), tensors))


def test_repeats_and_packed_calls_are_bitwise_equal(fused, poisoned, drawn, results):
    tensors = {name: x.half() for name, x in drawn(1, 5, 4, 1, 16, 16, (3, 3), fused, 2).items()}
    grad = torch.randn(1, 5, 4, 1, 16, device=fused)
    first, second = (results(_function(3, 1, 2, ROWS), tensors, grad) for _ in range(2))
    q, k, v, *others = tensors.values()
    packed = results(lambda qkv, bias, extra_k, extra_v: neighborhood_attention_packed(
        qkv, 3, 1, 2, bias, None, ROWS, extra_k, extra_v),
        {"qkv": torch.stack((q, k, v), 3), **dict(zip(("bias", "extra_k", "extra_v"), others, strict=True))}, grad)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if name not in ("dq", "dk", "dv"):
            assert torch.equal(value, packed[name]), name
    assert torch.equal(packed["dqkv"], torch.stack([first["dq"], first["dk"], first["dv"]], 3))


def test_only_what_is_asked_for_gets_a_gradient(fused, drawn, results):
    tensors = {name: x.float() for name, x in drawn(1, 4, 4, 1, 16, 16, None, fused, 2).items()}
    whole = results(_function(3, 1, 1, False), tensors, torch.ones(1, 4, 4, 1, 16, device=fused))
    extra_v = tensors["extra_v"].requires_grad_()
    _function(3, 1, 1, False)(**tensors).sum().backward()
    assert torch.equal(extra_v.grad, whole["dextra_v"])
    assert all(x.grad is None for name, x in tensors.items() if name != "extra_v")


def test_an_empty_batch(fused, drawn, results):
    tensors = {name: x.float() for name, x in drawn(0, 4, 4, 1, 16, 16, (3, 3), fused, 2).items()}
    found = results(_function(3, 1, 1, BOTH), tensors, torch.empty(0, 4, 4, 1, 16, device=fused))
    assert found["out"].shape == (0, 4, 4, 1, 16)
    assert not found["dbias"].any()


def _operator_inputs(device: str, bias: bool, grad: bool = True) -> list:
    tensors = [torch.randn(1, 3, 4, 1, 16, device=device) for _ in range(3)]
    tensors.append(torch.randn(1, 3, 3, device=device) if bias else None)
    tensors += [torch.randn(1, 2, 1, 16, device=device) for _ in range(2)]
    return [x if x is None else x.requires_grad_(grad) for x in tensors]


PARAMETERS = ([2, 2], [1, 1], [1, 2], [True, False], 0.25)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_opcheck_of_the_op(bias, route):
    torch.library.opcheck(torch.ops.visionattn.neighborhood_attention.default,
                          (*_operator_inputs(route, bias), *PARAMETERS))


@pytest.mark.filterwarnings("error:.*must not also be an input to this custom operator")
def test_opcheck_of_forward_and_backward(fused):
    operators = torch.ops.visionattn
    tensors = _operator_inputs(fused, True, grad=False)
    torch.library.opcheck(operators.neighborhood_attention_forward.default, (*tensors, *PARAMETERS))
    out, lse = operators.neighborhood_attention_forward(*tensors, *PARAMETERS)
    for wanted in ([True, True, True], [False, True, False], [False] * 3):
        torch.library.opcheck(operators.neighborhood_attention_backward.default,
                              (torch.randn_like(out), *tensors, out, lse, *PARAMETERS, wanted))


def test_compiles_whole_forward_and_backward(route, fresh_compiler):
    tensors = _operator_inputs(route, True)

    def step(q, k, v, bias, extra_k, extra_v):
        return neighborhood_attention(2 * q, k, v, 2, 1, (1, 2), bias, None, ROWS, extra_k, extra_v).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="inductor" if route == "cuda" else "aot_eager")
    found, expected = (torch.autograd.grad(f(*tensors), tensors) for f in (compiled, step))
    for x, y in zip(found, expected, strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()


class _Layer(torch.nn.Module):
    def forward(self, qkv: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention_packed(qkv, (3, 2), 1, 2, None, None, ROWS, extra[:, :, 0], extra[:, :, 1])


def test_exports_with_dynamic_sizes_into_plain_operators():
    batch = torch.export.Dim("batch")
    sizes = {0: batch, 1: torch.export.Dim("height", min=3, max=4096), 2: torch.export.Dim("width", min=3, max=4096)}
    example = torch.randn(2, 8, 6, 3, 2, 8), torch.randn(2, 4, 2, 2, 8)
    program = torch.export.export(_Layer(), example, dynamic_shapes=(sizes, {0: batch}))
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if "visionattn" in str(node.target)]
    for shape in ((1, 3, 3), (3, 4, 41)):
        given = torch.randn(*shape, 3, 2, 8), torch.randn(shape[0], 4, 2, 2, 8)
        torch.testing.assert_close(program.module()(*given), _Layer()(*given), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_fx_as_one_node():
    given = torch.randn(1, 5, 4, 3, 2, 16), torch.randn(1, 4, 2, 2, 16)
    traced = torch.fx.symbolic_trace(_Layer())
    assert neighborhood_attention_packed in [n.target for n in traced.graph.nodes]
    assert torch.equal(traced(*given), _Layer()(*given))


def test_autocast_casts_extra_tokens_as_it_does_q_k_and_v(route):
    q, k, v, bias, extra_k, extra_v = tensors = _operator_inputs(route, True)
    with torch.autocast(route, BRAIN):
        found = neighborhood_attention(q, k, v, 2, 1, 1, bias, None, False, extra_k, extra_v.to(HALF))
    low = [x.detach().to(BRAIN) for x in (q, k, v, extra_k, extra_v.to(HALF))]
    assert torch.equal(found, neighborhood_attention(*low[:3], 2, 1, 1, bias, None, False, *low[3:]))
    found.float().sum().backward()
    assert [x.grad.dtype for x in tensors] == [SINGLE] * 6


def test_a_graph_of_the_gradient_equals_the_references(fused, drawn, to_all):
    tensors = {name: x.float().requires_grad_() for name, x in drawn(1, 4, 3, 1, 8, 8, (3, 3), fused, 2).items()}
    leaves = list(tensors.values())

    def penalty(function):
        once = torch.autograd.grad(function(**tensors).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), leaves)

    expected = penalty(_eager(to_all, 3, 1, 1, ROWS, 8**-0.5)[1])
    for name, x, y in zip(tensors, penalty(_function(3, 1, 1, ROWS)), expected, strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name


def test_flops_are_those_of_the_pairs_that_attend():
    q, v = torch.empty(2, 4, 5, 3, 16, device="meta"), torch.empty(2, 4, 5, 3, 24, device="meta")
    extra_k, extra_v = torch.empty(2, 7, 3, 16, device="meta"), torch.empty(2, 7, 3, 24, device="meta")
    with FlopCounterMode(display=False) as counter:
        neighborhood_attention(q, q, v, 3, is_causal=(True, False), extra_k=extra_k, extra_v=extra_v)
    pairs = (1 + 2 + 3 + 3) * (5 * 3) + 20 * 7                       # rows see 1, 2, 3, 3 rows; columns 3 each
    assert counter.get_total_flops() == 2 * (2 * 3 * pairs) * (16 + 24)


def test_explain_takes_the_same_arguments():
    q, extra = torch.randn(1, 5, 5, 1, 16), torch.randn(1, 2, 1, 16)
    found = explain("neighborhood_attention", q, q, q, 3, is_causal=True, extra_k=extra, extra_v=extra)
    assert found.runs == "reference"
