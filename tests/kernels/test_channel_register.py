"""What torch's own tools ask of channel attention, on the composite route and on the route of a GPU."""
import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import channel_attention, channel_attention_packed

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")
SHAPES = {"": [(1, 3, 4, 2, 16)] * 3, "_packed": [(1, 3, 4, 3, 2, 16)]}


class Mix(torch.nn.Module):
    """A layer around the packed op."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return channel_attention_packed(self.qkv(x), 2, 0.05).square()


def _operator(name: str):
    return getattr(torch.ops.visionattn, f"channel_attention{name}").default


def _inputs(form: str, device: str, grad: bool) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device).requires_grad_(grad) for shape in SHAPES[form]]


@pytest.mark.parametrize("form", SHAPES)
def test_opcheck_of_the_op(form, route):
    torch.library.opcheck(_operator(form), (*_inputs(form, route, True), 0.25))


@pytest.mark.parametrize("form", SHAPES)
def test_opcheck_of_forward_and_backward(form, fused):
    tensors = _inputs(form, fused, False)
    torch.library.opcheck(_operator(f"{form}_forward"), (*tensors, 0.25))
    out, weights = _operator(f"{form}_forward")(*tensors, 0.25)
    torch.library.opcheck(_operator(f"{form}_backward"), (torch.randn_like(out), *tensors, out, weights, 0.25, []))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_whole_forward_and_backward(dynamic, route, fresh_compiler):
    model = Mix().to(route)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic,
                             backend="inductor" if route == "cuda" else "aot_eager")
    for height in (4, 6) if dynamic else (4,):
        x = torch.randn(2, height, 5, 32, device=route, requires_grad=True)
        wanted = x, *model.parameters()
        expected = torch.autograd.grad(model(x).sum(), wanted)
        for a, b in zip(torch.autograd.grad(compiled(x).sum(), wanted), expected, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


def test_the_compiled_graph_holds_one_opaque_node_each_way(fused, fresh_compiler):
    from torch._dynamo.backends.common import aot_autograd
    seen = []

    def note(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if "visionattn" in str(n.target)])
        return graph

    model = torch.compile(Mix().to(fused), fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    model(torch.randn(1, 3, 3, 32, device=fused)).sum().backward()
    name = "visionattn.channel_attention_packed"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


def _any_size() -> dict:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", max=4096),
            2: torch.export.Dim("width", max=4096)}


def test_exports_with_dynamic_sizes_into_plain_operators():
    model = Mix().eval()
    program = torch.export.export(model, (torch.randn(2, 6, 5, 32),), dynamic_shapes=(_any_size(),))
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if "visionattn" in str(node.target)]
    for shape in ((1, 1, 1, 32), (3, 7, 41, 32)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-5)


def test_onnx_agrees_to_1e_5_at_sizes_it_was_not_exported_at(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    model = Mix().eval()
    program = torch.onnx.export(model, (torch.randn(2, 6, 5, 32),), dynamic_shapes=(_any_size(),), dynamo=True,
                                opset_version=18, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((2, 6, 5, 32), (1, 1, 1, 32), (3, 17, 31, 32)):
        x = torch.randn(shape)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_fx_as_one_node():
    model, x = Mix(), torch.randn(1, 5, 4, 32)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [channel_attention_packed]
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_q_k_and_v(dtype, route):
    q, k, v = (torch.randn(1, 3, 4, 32, device=route, requires_grad=True) for _ in range(3))
    with torch.autocast(route, dtype):
        found = channel_attention(q, k.to(dtype), v, 2)     # mixed dtypes too
    assert found.dtype == dtype
    assert torch.equal(found, channel_attention(*(x.detach().to(dtype) for x in (q, k, v)), 2))
    found.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v)] == [torch.float32] * 3


def test_autocast_leaves_float64_alone():
    q = torch.randn(1, 3, 4, 32, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert channel_attention(q, q, q, 2).dtype == torch.float64


def test_flops_are_those_of_the_mathematics():
    qkv = torch.empty(2, 9, 8, 3 * 64, device="meta", requires_grad=True)
    product = 2 * (2 * 9 * 8) * 4 * 16 * 16                 # tokens of all images, groups of 16 x 16 channels
    with FlopCounterMode(display=False) as counter:
        out = channel_attention_packed(qkv, 4)
    assert counter.get_total_flops() == 2 * product
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 4 * product


def test_meta_tensors_give_shapes_and_gradients_without_computing():
    qkv = torch.empty(2, 300, 400, 3 * 64, device="meta", requires_grad=True)
    out = channel_attention_packed(qkv, 2)
    out.sum().backward()
    assert out.shape == (2, 300, 400, 64) and out.is_contiguous() and qkv.grad.shape == qkv.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_every_grad_mode_gives_the_same(mode, route):
    qkv = torch.randn(1, 5, 4, 96, device=route, requires_grad=True)
    expected = channel_attention_packed(qkv.detach().cpu().double(), 2)
    with mode():
        found = channel_attention_packed(qkv, 2)
    assert found.requires_grad == (mode is contextlib.nullcontext)
    assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_functional_transforms_off_the_gpu():
    q, k, v = torch.randn(3, 1, 5, 4, 32)
    found = torch.func.grad(lambda x: channel_attention(x, k, v, 2).square().sum())(q)
    leaf = q.clone().requires_grad_()
    expected = torch.autograd.grad(channel_attention(leaf, k, v, 2).square().sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


def test_checkpointing(route):
    from torch.utils.checkpoint import checkpoint
    model, x = Mix().to(route), torch.randn(1, 5, 4, 32, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(checkpoint(model, x, use_reentrant=False).sum(), x)[0], expected)
