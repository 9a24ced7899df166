"""What torch's own tools ask of a registered op, on the composite route and on the route of a GPU."""
import contextlib
import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import (
    halo_attention,
    halo_attention_packed_kv,
    neighborhood_attention,
    neighborhood_attention_packed,
    window_attention,
    window_attention_packed,
    window_attention_packed_kv,
)

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")


class Op(NamedTuple):
    """An op of the package at its smallest, since the interpreter takes its time: windows of 2 x 2."""

    name: str
    separate: Callable
    packed: Callable
    small: tuple          # what follows q, k, v in the public functions
    parameters: tuple     # the same in torch's operators
    table: Callable       # the bias's shape but for the heads, of a window's side
    forms: tuple          # suffixes of the operators' names; the second is what `packed` calls
    extras: int = 1       # how many tensors torch's operators take besides q, k and v; the bias is the first, or all
    kv: tuple = (1, 5, 4, 2, 2, 16)   # shape of packed keys and values


def _halos(q, k, v, block, halo, bias):
    """Both tables in one tensor, of at least as many numbers a row as q has."""
    return halo_attention(q, k, v, block, halo, *bias[:, :, :q.shape[-1]].unbind(0))


def _packed_halos(qkv, block, halo, bias):
    if has_torch_function((qkv, bias)):
        return handle_torch_function(_packed_halos, (qkv, bias), qkv, block, halo, bias=bias)
    q, kv = qkv[:, :, :, 0], qkv[:, :, :, 1:].transpose(3, 4).flatten(4)
    return halo_attention_packed_kv(q, kv, block, halo, *bias[:, :, :q.shape[-1]].unbind(0))


OPS = {op.name: op for op in (
    Op("neighborhood_attention", neighborhood_attention, neighborhood_attention_packed, (2,),
       ([2, 2], [1, 1], [1, 1], [False, False], 0.25), lambda n: (2 * n - 1, 2 * n - 1), ("", "_packed"), 3),
    Op("window_attention", window_attention, window_attention_packed, (2, 1), ([2, 2], [1, 1], False, 0.25),
       lambda n: (n * n, n * n), ("", "_packed", "_packed_kv")),
    Op("halo_attention", _halos, _packed_halos, (4, 1), ([4, 4], [1, 1], [1, 1], 0.25), lambda n: (2 * n + 3, 64),
       ("", "_packed_kv"), 2, (1, 5, 4, 2, 32)),
)}
FORMS = [(op, form) for op in OPS for form in OPS[op].forms]
NEIGHBORHOODS, WINDOWS, HALOS = OPS.values()


@pytest.fixture(params=OPS)
def op(request) -> Op:
    return OPS[request.param]


class Packed(torch.nn.Module):
    """A layer with a bias, as models have it."""

    def __init__(self, op: Op, *arguments: object) -> None:
        super().__init__()
        self.op, self.arguments = op, arguments or op.small
        self.bias = torch.nn.Parameter(torch.randn(2, *op.table(self.arguments[0])))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return self.op.packed(qkv, *self.arguments, bias=self.bias)


def _inputs(op: Op, form: str, device: str, bias: bool = True, grad: bool = True) -> list:
    one = (1, 5, 4, 2, 16)
    shapes = {"": [one] * 3, "_packed": [(1, 5, 4, 3, 2, 16)], "_packed_kv": [one, op.kv]}[form]
    tensors = [torch.randn(shape, device=device) for shape in shapes]
    tensors.append(torch.randn(2, *op.table(op.small[0]), device=device) if bias else None)
    return [x if x is None else x.requires_grad_(grad) for x in tensors]


def _operator_inputs(op: Op, *args: object, **kwargs: object) -> list:
    """The same as torch's operators take them."""
    *tensors, bias = _inputs(op, *args, **kwargs)
    if op is not HALOS:
        return [*tensors, bias, *[None] * (op.extras - 1)]
    return [*tensors, *(x.detach()[:, :16].clone().requires_grad_(bias.requires_grad) for x in bias)]


def _operator(name: str):
    return getattr(torch.ops.visionattn, name).default


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("name, form", FORMS)
def test_opcheck_of_the_op(name, form, bias, route):
    op = OPS[name]
    if op is HALOS and not bias:
        pytest.skip("halo attention always has its tables")
    torch.library.opcheck(_operator(name + form), (*_operator_inputs(op, form, route, bias), *op.parameters))


@pytest.mark.filterwarnings("error:.*must not also be an input to this custom operator")
@pytest.mark.parametrize("name, form", FORMS)
def test_opcheck_of_forward_and_backward(name, form, fused):
    op = OPS[name]
    tensors = _operator_inputs(op, form, fused, grad=False)
    forward, backward = (_operator(f"{name}{form}{part}") for part in ("_forward", "_backward"))
    torch.library.opcheck(forward, (*tensors, *op.parameters))
    out, lse = forward(*tensors, *op.parameters)
    for wanted in (True, False):
        asked = [wanted and x is not None for x in tensors[-op.extras:]]
        arguments = (torch.randn_like(out), *tensors, out, lse, *op.parameters, asked)
        torch.library.opcheck(backward, arguments)


def test_opcheck_with_one_query_window_for_all(fused):
    q, kv, bias = torch.randn(1, 2, 2, 2, 16), torch.randn(1, 5, 4, 2, 2, 16), torch.randn(2, 4, 4)
    tensors = [x.to(fused) for x in (q, kv, bias)]
    parameters = ([2, 2], [0, 0], False, 0.25)
    forward, backward = (_operator(f"window_attention_packed_kv{part}") for part in ("_forward", "_backward"))
    torch.library.opcheck(forward, (*tensors, *parameters))
    out, lse = forward(*tensors, *parameters)
    torch.library.opcheck(backward, (torch.randn_like(out), *tensors, out, lse, *parameters, [True]))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_whole_forward_and_backward(op, dynamic, route, fresh_compiler):
    model = Packed(op).to(route)
    compiled = torch.compile(lambda x: model(2 * x).square(), fullgraph=True, dynamic=dynamic,
                             backend="inductor" if route == "cuda" else "aot_eager")
    for height in (4, 6) if dynamic else (4,):
        qkv = torch.randn(2, height, 5, 3, 2, 16, device=route, requires_grad=True)
        wanted = qkv, model.bias
        expected = torch.autograd.grad(model(2 * qkv).square().sum(), wanted)
        for x, y in zip(torch.autograd.grad(compiled(qkv).sum(), wanted), expected, strict=True):
            assert (x - y).norm() <= 1e-5 * y.norm()


@pytest.mark.slow
def test_inductor_compiles_the_reference_whole(op, fresh_compiler):
    model, qkv = Packed(op), torch.randn(1, 5, 4, 3, 2, 16, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True)
    expected = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
    found = torch.autograd.grad(compiled(qkv).square().sum(), qkv)[0]
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_compiled_graph_holds_one_opaque_node_each_way(op, fused, fresh_compiler):
    from torch._dynamo.backends.common import aot_autograd
    seen = []

    def note(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if "visionattn" in str(n.target)])
        return graph

    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    model = torch.compile(Packed(op).to(fused), fullgraph=True, backend=backend)
    model(torch.randn(1, 4, 4, 3, 2, 16, device=fused, requires_grad=True)).sum().backward()
    name = f"visionattn.{op.name}{op.forms[1]}"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


@pytest.mark.parametrize("op, arguments, least", [
    *((NEIGHBORHOODS, x, x[0] * x[1]) for x in ((7, 1, 1), (5, 2, 1), (7, 1, 4), (7, 1, 7), (4, 1, 2))),
    *((WINDOWS, x, x[0] + 1) for x in ((7, 0), (7, 3), (4, 0, "grid"))),    # one window is a graph of its own
    (HALOS, (4, 1), 5)], ids=lambda x: getattr(x, "name", str(x)))
def test_exports_with_dynamic_sizes_into_plain_operators(op, arguments, least):
    model = Packed(op, *arguments)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=least, max=4096),
             2: torch.export.Dim("width", min=least, max=4096)}
    program = torch.export.export(model, (torch.randn(2, least + 5, least + 3, 3, 2, 8),), dynamic_shapes=(sizes,))
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if "visionattn" in str(node.target)]
    for shape in ((1, least, least), (3, least + 1, 41)):
        qkv = torch.randn(*shape, 3, 2, 8)
        torch.testing.assert_close(program.module()(qkv), model(qkv), rtol=0, atol=1e-5)


@pytest.mark.parametrize("op, arguments, least", [
    (NEIGHBORHOODS, (7, 1, 1), 7), (NEIGHBORHOODS, (3, 2, 2), 6), (WINDOWS, (7, 3), 8), (WINDOWS, (4, 0, "grid"), 5),
    (HALOS, (4, 1), 5)], ids=lambda x: getattr(x, "name", str(x)))
def test_onnx_agrees_to_1e_5_at_sizes_it_was_not_exported_at(op, arguments, least, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    model = Packed(op, *arguments).eval()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=least, max=4096),
             2: torch.export.Dim("width", min=least, max=4096)}
    program = torch.onnx.export(model, (torch.randn(2, least + 3, least + 2, 3, 2, 8),), dynamic_shapes=(sizes,),
                                dynamo=True, opset_version=18, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((2, least + 3, least + 2), (1, least, least), (3, 17, 31)):
        qkv = torch.randn(*shape, 3, 2, 8)
        found = session.run(None, {session.get_inputs()[0].name: qkv.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(qkv).detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_fx_as_one_node(op):
    model, qkv = Packed(op), torch.randn(1, 5, 4, 3, 2, 16)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [op.packed]
    assert torch.equal(traced(qkv), model(qkv))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_q_k_and_v_but_not_the_bias(op, dtype, route):
    q, k, v, bias = _inputs(op, "", route)
    with torch.autocast(route, dtype):
        found = op.separate(q.double().float(), k.to(dtype), v, *op.small, bias=bias)     # mixed dtypes too
    low = [x.detach().to(dtype) for x in (q, k, v)]
    assert found.dtype == dtype
    assert torch.equal(found, op.separate(*low, *op.small, bias=bias))
    found.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v, bias)] == [torch.float32] * 4


def test_autocast_leaves_float64_alone(op):
    q, k, v, bias = (x.double() for x in _inputs(op, "", "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert op.separate(q, k, v, *op.small, bias=bias).dtype == torch.float64


def test_flops_are_those_of_the_mathematics():
    qkv = torch.empty(2, 9, 8, 3, 4, 16, device="meta", requires_grad=True)
    pairs = 2 * 9 * 8 * 4 * 7 * 5
    with FlopCounterMode(display=False) as counter:
        out = neighborhood_attention_packed(qkv, (7, 5))
    assert counter.get_total_flops() == 2 * pairs * (16 + 16)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 16 + 2 * 16)
    q, v = torch.empty(2, 9, 8, 4, 16, device="meta"), torch.empty(2, 9, 8, 4, 24, device="meta")
    with FlopCounterMode(display=False) as counter:
        neighborhood_attention(q, q, v, (7, 5))
    assert counter.get_total_flops() == 2 * pairs * (16 + 24)
    pairs = 2 * 4 * (4 + 49 + 16) * (25 + 16)             # 13 x 9 in windows of 7 x 5 that start at 2 and 0
    qkv = torch.empty(2, 13, 9, 3, 4, 16, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        out = window_attention_packed(qkv, (7, 5), (2, 0))
    assert counter.get_total_flops() == 2 * pairs * (16 + 16)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 16 + 2 * 16)
    with FlopCounterMode(display=False) as counter:
        window_attention_packed_kv(qkv[:, :7, :5, 0], qkv[:, :, :, 1:], (7, 5))
    assert counter.get_total_flops() == 2 * 2 * 4 * (49 + 36) * (25 + 16) * (16 + 16)


def test_meta_tensors_give_shapes_and_gradients_without_computing(op):
    model, qkv = Packed(op).to("meta"), torch.empty(2, 300, 400, 3, 2, 64, device="meta", requires_grad=True)
    out = model(qkv)
    out.sum().backward()
    assert out.shape == (2, 300, 400, 2, 64) and out.is_contiguous()
    assert qkv.grad.shape == qkv.shape and model.bias.grad.shape == model.bias.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_every_grad_mode_gives_the_same(op, mode, route):
    inputs = _inputs(op, "_packed", route)
    expected = op.packed(inputs[0].detach().cpu().double(), *op.small, bias=inputs[1].detach().cpu())
    with mode():
        found = op.packed(inputs[0], *op.small, bias=inputs[1])
    assert found.requires_grad == (mode is contextlib.nullcontext)
    assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_checkpointing_and_copies_of_a_module(op, route):
    from torch.utils.checkpoint import checkpoint
    model, qkv = Packed(op).to(route), torch.randn(1, 5, 4, 3, 2, 16, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
    found = torch.autograd.grad(checkpoint(copy.deepcopy(model), qkv, use_reentrant=False).square().sum(), qkv)[0]
    assert torch.equal(found, expected)
