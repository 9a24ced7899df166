"""What torch's own tools ask of a registered op, on the composite route and on the route of a GPU."""
import contextlib
import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import neighborhood_attention, neighborhood_attention_packed
from visionattn.kernels.neighborhood import reference
from visionattn.kernels.neighborhood.geometry import make_geometry

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")
PARAMETERS = ([2, 2], [1, 1], [1, 1], 0.25)       # small, since the interpreter takes its time


class Packed(torch.nn.Module):
    """A layer with a relative table, as models have it."""

    def __init__(self, kernel: int = 2, dilation: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.geometry = kernel, dilation, stride
        self.bias = torch.nn.Parameter(torch.randn(2, 2 * kernel - 1, 2 * kernel - 1))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        return neighborhood_attention_packed(qkv, *self.geometry, bias=self.bias)


def _inputs(form: str, device: str, bias: bool = True, grad: bool = True) -> list:
    shape = (1, 5, 4, 3, 2, 16) if form == "_packed" else (1, 5, 4, 2, 16)
    tensors = [torch.randn(shape, device=device) for _ in range(1 if form == "_packed" else 3)]
    tensors.append(torch.randn(2, 3, 3, device=device) if bias else None)
    return [x if x is None else x.requires_grad_(grad) for x in tensors]


def _operator(name: str):
    return getattr(torch.ops.visionattn, name).default


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("form", ["", "_packed"], ids=["separate", "packed"])
def test_opcheck_of_the_op(form, bias, route):
    torch.library.opcheck(_operator("neighborhood_attention" + form), (*_inputs(form, route, bias), *PARAMETERS))


@pytest.mark.parametrize("form", ["", "_packed"], ids=["separate", "packed"])
def test_opcheck_of_forward_and_backward(form, fused):
    tensors = _inputs(form, fused, grad=False)
    forward, backward = (_operator(f"neighborhood_attention{form}{part}") for part in ("_forward", "_backward"))
    torch.library.opcheck(forward, (*tensors, *PARAMETERS))
    out, lse = forward(*tensors, *PARAMETERS)
    torch.library.opcheck(backward, (torch.randn_like(out), *tensors, out, lse, *PARAMETERS, [True]))
    torch.library.opcheck(backward, (torch.randn_like(out), *tensors, out, lse, *PARAMETERS, [False]))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_whole_forward_and_backward(dynamic, route, fresh_compiler):
    model = Packed().to(route)
    compiled = torch.compile(lambda x: model(2 * x).square(), fullgraph=True, dynamic=dynamic,
                             backend="inductor" if route == "cuda" else "aot_eager")
    for height in (4, 6) if dynamic else (4,):
        qkv = torch.randn(2, height, 5, 3, 2, 16, device=route, requires_grad=True)
        wanted = qkv, model.bias
        expected = torch.autograd.grad(model(2 * qkv).square().sum(), wanted)
        for x, y in zip(torch.autograd.grad(compiled(qkv).sum(), wanted), expected, strict=True):
            assert (x - y).norm() <= 1e-5 * y.norm()


@pytest.mark.slow
def test_inductor_compiles_the_reference_whole(fresh_compiler):
    model, qkv = Packed(), torch.randn(1, 5, 4, 3, 2, 16, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True)
    expected = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
    found = torch.autograd.grad(compiled(qkv).square().sum(), qkv)[0]
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_the_compiled_graph_holds_one_opaque_node_each_way(fused, fresh_compiler):
    from torch._dynamo.backends.common import aot_autograd
    seen = []

    def note(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if "visionattn" in str(n.target)])
        return graph

    model = torch.compile(Packed().to(fused), fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    model(torch.randn(1, 4, 4, 3, 2, 16, device=fused, requires_grad=True)).sum().backward()
    name = "visionattn.neighborhood_attention_packed"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


@pytest.mark.parametrize("kernel, dilation, stride", [(7, 1, 1), (5, 2, 1), (7, 1, 4), (7, 1, 7), (4, 1, 2)])
def test_exports_with_dynamic_sizes_into_plain_operators(kernel, dilation, stride):
    model, least = Packed(kernel, dilation, stride), kernel * dilation
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=least, max=4096),
             2: torch.export.Dim("width", min=least, max=4096)}
    program = torch.export.export(model, (torch.randn(2, least + 5, least + 3, 3, 2, 8),), dynamic_shapes=(sizes,))
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if "visionattn" in str(node.target)]
    for shape in ((1, least, least), (3, least + 1, 41)):
        qkv = torch.randn(*shape, 3, 2, 8)
        torch.testing.assert_close(program.module()(qkv), model(qkv), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel, dilation, stride", [(7, 1, 1), (3, 2, 2)])
def test_onnx_agrees_to_1e_5_at_sizes_it_was_not_exported_at(kernel, dilation, stride, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    model, least = Packed(kernel, dilation, stride).eval(), kernel * dilation
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
def test_traced_by_torch_fx_as_one_node():
    model, qkv = Packed(), torch.randn(1, 5, 4, 3, 2, 16)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [neighborhood_attention_packed]
    assert torch.equal(traced(qkv), model(qkv))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_q_k_and_v_but_not_the_bias(dtype, route):
    q, k, v, bias = _inputs("", route)
    with torch.autocast(route, dtype):
        found = neighborhood_attention(q.double().float(), k.to(dtype), v, 2, bias=bias)     # mixed dtypes too
    low = [x.detach().to(dtype) for x in (q, k, v)]
    assert found.dtype == dtype
    assert torch.equal(found, neighborhood_attention(*low, 2, bias=bias))
    found.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v, bias)] == [torch.float32] * 4


def test_autocast_leaves_float64_alone():
    q, k, v, _ = _inputs("", "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert neighborhood_attention(q.double(), k.double(), v.double(), 3).dtype == torch.float64


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


def test_meta_tensors_give_shapes_and_gradients_without_computing():
    model, qkv = Packed().to("meta"), torch.empty(2, 300, 400, 3, 2, 64, device="meta", requires_grad=True)
    out = model(qkv)
    out.sum().backward()
    assert out.shape == (2, 300, 400, 2, 64) and out.is_contiguous()
    assert qkv.grad.shape == qkv.shape and model.bias.grad.shape == model.bias.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_every_grad_mode_gives_the_same(mode, route):
    inputs = _inputs("_packed", route)
    expected = reference.neighborhood_attention(*inputs[0].detach().cpu().unbind(3), inputs[1].detach().cpu(),
                                                make_geometry(2), 16**-0.5)
    with mode():
        found = neighborhood_attention_packed(inputs[0], 2, bias=inputs[1])
    assert found.requires_grad == (mode is contextlib.nullcontext)
    assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_functional_transforms_off_the_gpu():
    q, k, v, bias = _inputs("", "cpu", grad=False)
    found = torch.func.grad(lambda x: neighborhood_attention(x, k, v, 2, bias=bias).square().sum())(q)
    leaf = q.clone().requires_grad_()
    expected = torch.autograd.grad(neighborhood_attention(leaf, k, v, 2, bias=bias).square().sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


def test_checkpointing_and_copies_of_a_module(route):
    from torch.utils.checkpoint import checkpoint
    model, qkv = Packed().to(route), torch.randn(1, 5, 4, 3, 2, 16, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
    found = torch.autograd.grad(checkpoint(copy.deepcopy(model), qkv, use_reentrant=False).square().sum(), qkv)[0]
    assert torch.equal(found, expected)
