"""What torch's own tools ask of linear attention, on the composite route and on the route of a GPU."""
import contextlib
import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import linear_attention, linear_attention_packed

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")


class Predicted(torch.nn.Module):
    """A layer whose residual's filters follow from its input, as models have it."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.taps = torch.nn.Parameter(torch.randn(2, d, 3, 3))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return linear_attention_packed(qkv, qkv.mean((1, 2, 3))[..., None, None] + self.taps)


def _inputs(form: str, device: str, residual: bool = True, grad: bool = True) -> list:
    one = (1, 3, 4, 2, 16)
    shapes = {"": [one] * 3, "_packed": [(1, 3, 4, 3, 2, 16)]}[form]
    tensors = [torch.randn(shape, device=device) for shape in shapes]
    tensors.append(torch.randn(1, 2, 16, 3, 3, device=device) if residual else None)
    return [x if x is None else x.requires_grad_(grad) for x in tensors]


def _operator(name: str):
    return getattr(torch.ops.visionattn, name).default


@pytest.mark.parametrize("form, residual, route", [
    ("", False, "reference"), pytest.param("_packed", True, "reference", marks=pytest.mark.slow),
    ("_packed", True, "fused"), pytest.param("", False, "fused", marks=pytest.mark.slow)], indirect=["route"])
def test_opcheck_of_the_op(form, residual, route):
    torch.library.opcheck(_operator(f"linear_attention{form}"), (*_inputs(form, route, residual), [3, 3], 0.25))


@pytest.mark.parametrize("form", [pytest.param("", marks=pytest.mark.slow), "_packed"])
def test_opcheck_of_forward_and_backward(form, fused):
    tensors, parameters = _inputs(form, fused, grad=False), ([3, 4], 0.25)
    forward, backward = (_operator(f"linear_attention{form}{part}") for part in ("_forward", "_backward"))
    torch.library.opcheck(forward, (*tensors, *parameters))
    out, sums = forward(*tensors, *parameters)
    for wanted in (True, False):
        torch.library.opcheck(backward, (torch.randn_like(out), *tensors, out, sums, *parameters, [wanted]))


@pytest.mark.parametrize("dynamic, route", [
    (True, "fused"), *(pytest.param(*case, marks=pytest.mark.slow)
                       for case in ((True, "reference"), (False, "fused"), (False, "reference")))], indirect=["route"])
def test_compiles_whole_forward_and_backward(dynamic, route, fresh_compiler):
    model = Predicted().to(route)
    compiled = torch.compile(lambda x: model(2 * x).square(), fullgraph=True, dynamic=dynamic,
                             backend="inductor" if route == "cuda" else "aot_eager")
    for height in (4, 6) if dynamic else (4,):
        qkv = torch.randn(2, height, 5, 3, 2, 16, device=route, requires_grad=True)
        wanted = qkv, model.taps
        expected = torch.autograd.grad(model(2 * qkv).square().sum(), wanted)
        for x, y in zip(torch.autograd.grad(compiled(qkv).sum(), wanted), expected, strict=True):
            assert (x - y).norm() <= 1e-5 * y.norm()


def test_the_compiled_graph_holds_one_opaque_node_each_way(fused, fresh_compiler):
    from torch._dynamo.backends.common import aot_autograd
    seen = []

    def note(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if "visionattn" in str(n.target)])
        return graph

    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    model = torch.compile(Predicted().to(fused), fullgraph=True, backend=backend)
    model(torch.randn(1, 3, 4, 3, 2, 16, device=fused, requires_grad=True)).sum().backward()
    name = "visionattn.linear_attention_packed"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


def test_exports_with_dynamic_sizes_into_plain_operators_and_onnx(tmp_path):
    model = Predicted(8)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=2, max=4096),
             2: torch.export.Dim("width", min=2, max=4096)}
    program = torch.export.export(model, (torch.randn(2, 7, 5, 3, 2, 8),), dynamic_shapes=(sizes,))
    plain = program.run_decompositions()
    assert not [node for node in plain.graph.nodes if "visionattn" in str(node.target)]
    shapes = ((1, 2, 2), (3, 9, 41))
    for shape in shapes:
        qkv = torch.randn(*shape, 3, 2, 8)
        torch.testing.assert_close(plain.module()(qkv), model(qkv), rtol=0, atol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(program, f=path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in shapes:
        qkv = torch.randn(*shape, 3, 2, 8)
        found = session.run(None, {session.get_inputs()[0].name: qkv.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(qkv).detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_fx_as_one_node():
    def layer(qkv, residual):
        return linear_attention_packed(qkv, residual, (2, 4))

    traced = torch.fx.symbolic_trace(layer)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [linear_attention_packed]
    inputs = _inputs("_packed", "cpu")
    assert torch.equal(traced(*inputs), layer(*inputs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_q_k_and_v_but_not_the_residual(dtype, route):
    q, k, v, residual = _inputs("", route)
    with torch.autocast(route, dtype):
        found = linear_attention(q.double().float(), k.to(dtype), v, residual)     # mixed dtypes too
    low = [x.detach().to(dtype) for x in (q, k, v)]
    assert found.dtype == dtype
    assert torch.equal(found, linear_attention(*low, residual))
    found.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v, residual)] == [torch.float32] * 4


def test_flops_are_those_of_the_mathematics():
    qkv = torch.empty(2, 9, 8, 3, 4, 16, device="meta", requires_grad=True)
    entries = 2 * 9 * 8 * 4 * 16
    with FlopCounterMode(display=False) as counter:
        out = linear_attention_packed(qkv)
    assert counter.get_total_flops() == 2 * entries * 2 * 16
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * entries * 2 * 16
    with FlopCounterMode(display=False) as counter:
        linear_attention_packed(qkv, torch.empty(2, 4, 16, 3, 3, device="meta"))
    assert counter.get_total_flops() == 2 * entries * (2 * 16 + 9)


def test_autocast_leaves_float64_alone():
    tensors = (x.double() for x in _inputs("", "cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear_attention(*tensors).dtype == torch.float64


def test_meta_tensors_give_shapes_and_gradients_without_computing():
    model, qkv = Predicted(64).to("meta"), torch.empty(2, 300, 400, 3, 2, 64, device="meta", requires_grad=True)
    out = model(qkv)
    out.sum().backward()
    assert out.shape == (2, 300, 400, 2, 64) and out.is_contiguous()
    assert qkv.grad.shape == qkv.shape and model.taps.grad.shape == model.taps.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_every_grad_mode_gives_the_same(mode, route):
    inputs = _inputs("_packed", route)
    expected = linear_attention_packed(*(x.detach().cpu().double() for x in inputs))
    with mode():
        found = linear_attention_packed(*inputs)
    assert found.requires_grad == (mode is contextlib.nullcontext)
    assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_functional_transforms_off_the_gpu():
    q, k, v, residual = _inputs("", "cpu", grad=False)
    found = torch.func.grad(lambda x: linear_attention(x, k, v, residual).square().sum())(q)
    leaf = q.clone().requires_grad_()
    expected = torch.autograd.grad(linear_attention(leaf, k, v, residual).square().sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


def test_checkpointing_and_copies_of_a_module(route):
    from torch.utils.checkpoint import checkpoint
    model, qkv = Predicted().to(route), torch.randn(1, 3, 4, 3, 2, 16, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
    found = torch.autograd.grad(checkpoint(copy.deepcopy(model), qkv, use_reentrant=False).square().sum(), qkv)[0]
    assert torch.equal(found, expected)
