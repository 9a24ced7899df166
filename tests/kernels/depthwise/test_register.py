"""What torch's own tools ask of the depthwise convolution, on the composite route and on the route of a GPU."""
import contextlib
import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import depthwise_conv

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")


class Encoded(torch.nn.Module):
    """A map plus a convolution of it, as models encode positions."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depthwise_conv(x, self.conv.weight, self.conv.bias, residual=True)


def _inputs(device: str, grad: bool = True) -> list[torch.Tensor]:
    shapes = (1, 3, 4, 8), (8, 1, 3, 3), (8,)
    return [torch.randn(shape, device=device).requires_grad_(grad) for shape in shapes]


def test_opcheck_of_the_op(route):
    torch.library.opcheck(torch.ops.visionattn.depthwise_conv.default, (*_inputs(route), True))


def test_opcheck_of_forward_and_backward(fused):
    tensors, name = _inputs(fused, grad=False), "depthwise_conv"
    forward, backward = (getattr(torch.ops.visionattn, name + part).default for part in ("_forward", "_backward"))
    torch.library.opcheck(forward, (*tensors, True))
    out, kept = forward(*tensors, True)
    torch.library.opcheck(backward, (torch.randn_like(out), *tensors, out, kept, True, [True, False]))


def test_compiles_whole_forward_and_backward(fused, fresh_compiler):
    _, weight, bias = _inputs(fused)

    def step(x):
        return depthwise_conv(2 * x, weight, bias, True).square()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="inductor" if fused == "cuda" else "aot_eager")
    for height in (4, 6):
        x = torch.randn(1, height, 5, 8, device=fused, requires_grad=True)
        expected = torch.autograd.grad(step(x).sum(), (x, weight, bias))
        for a, b in zip(torch.autograd.grad(compiled(x).sum(), (x, weight, bias)), expected, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_all_of_it(dtype, route):
    x, weight, bias = _inputs(route)
    with torch.autocast(route, dtype):
        found = depthwise_conv(x, weight, bias)
    assert found.dtype == dtype
    assert torch.equal(found, depthwise_conv(*(t.detach().to(dtype) for t in (x, weight, bias))))
    found.float().sum().backward()
    assert [t.grad.dtype for t in (x, weight, bias)] == [torch.float32] * 3


def test_flops_are_those_of_the_mathematics():
    x, weight = torch.empty(2, 9, 8, 6, device="meta", requires_grad=True), torch.empty(6, 1, 5, 5, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = depthwise_conv(x, weight)
    assert counter.get_total_flops() == 2 * 2 * 9 * 8 * 6 * 25
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 2 * 9 * 8 * 6 * 25


def test_the_compiled_graph_holds_one_opaque_node_each_way(fused, fresh_compiler):
    from torch._dynamo.backends.common import aot_autograd
    seen = []

    def note(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if "visionattn" in str(n.target)])
        return graph

    model = torch.compile(Encoded().to(fused), fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    model(torch.randn(1, 3, 4, 8, device=fused, requires_grad=True)).sum().backward()
    name = "visionattn.depthwise_conv"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


def test_exports_with_dynamic_sizes_into_plain_operators_and_onnx(tmp_path):
    model = Encoded()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=2, max=4096),
             2: torch.export.Dim("width", min=2, max=4096)}
    program = torch.export.export(model, (torch.randn(2, 7, 5, 8),), dynamic_shapes=(sizes,))
    plain = program.run_decompositions()
    assert not [node for node in plain.graph.nodes if "visionattn" in str(node.target)]
    shapes = ((1, 2, 2), (3, 9, 41))
    for shape in shapes:
        x = torch.randn(*shape, 8)
        torch.testing.assert_close(plain.module()(x), model(x), rtol=0, atol=1e-5)
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(program, f=path, dynamo=True, verbose=False, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in shapes:
        x = torch.randn(*shape, 8)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_fx_as_one_node():
    model = Encoded()
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [depthwise_conv]
    x = torch.randn(1, 3, 4, 8)
    assert torch.equal(traced(x), model(x))


def test_autocast_leaves_float64_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_conv(*(t.double() for t in _inputs("cpu"))).dtype == torch.float64


def test_meta_tensors_give_shapes_and_gradients_without_computing():
    model, x = Encoded(64).to("meta"), torch.empty(2, 300, 400, 64, device="meta", requires_grad=True)
    out = model(x)
    out.sum().backward()
    assert out.shape == x.shape and out.is_contiguous()
    assert x.grad.shape == x.shape and model.conv.weight.grad.shape == (64, 1, 3, 3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_every_grad_mode_gives_the_same(mode, route):
    inputs = _inputs(route)
    expected = depthwise_conv(*(t.detach().cpu().double() for t in inputs))
    with mode():
        found = depthwise_conv(*inputs)
    assert found.requires_grad == (mode is contextlib.nullcontext)
    assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_functional_transforms_off_the_gpu():
    x, weight, bias = _inputs("cpu", grad=False)
    found = torch.func.grad(lambda x: depthwise_conv(x, weight, bias).square().sum())(x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(depthwise_conv(leaf, weight, bias).square().sum(), leaf)[0])


def test_checkpointing_and_copies_of_a_module(route):
    from torch.utils.checkpoint import checkpoint
    model, x = Encoded().to(route), torch.randn(1, 3, 4, 8, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(x).square().sum(), x)[0]
    found = torch.autograd.grad(checkpoint(copy.deepcopy(model), x, use_reentrant=False).square().sum(), x)[0]
    assert torch.equal(found, expected)
