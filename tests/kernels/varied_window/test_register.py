"""What torch's own tools ask of varied window attention, on the composite route and on the route of a GPU."""
import contextlib

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import varied_window_attention, varied_window_attention_packed

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")
SHAPES = {"": [(1, 3, 4, 2, 16)] * 3, "_packed": [(1, 3, 4, 3, 2, 16)]}       # windows of 2 x 2
BIASES = {"table": (2, 3, 3), "pairs": (2, 4, 4)}


class Look(torch.nn.Module):
    """A layer around the packed op whose places follow from its input, as models have it."""

    def __init__(self, window: int = 2) -> None:
        super().__init__()
        self.window = window
        self.table = torch.nn.Parameter(torch.randn(2, 2 * window - 1, 2 * window - 1))
        self.places = torch.nn.Linear(16, 4)

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        first = qkv[:, ::self.window, ::self.window, 0]                       # the first query of each window
        return varied_window_attention_packed(qkv, self.window, self.places(first), self.table).square()


def _operator(name: str):
    return getattr(torch.ops.visionattn, f"varied_window_attention{name}").default


def _inputs(form: str, device: str, grad: bool, bias: str | None = "table") -> list:
    shapes = [*SHAPES[form], (1, 2, 2, 2, 4), *([BIASES[bias]] if bias else [])]
    tensors = [torch.randn(shape, device=device).requires_grad_(grad) for shape in shapes]
    return tensors if bias else [*tensors, None]


@pytest.mark.slow
@pytest.mark.parametrize("bias", [*BIASES, None])
@pytest.mark.parametrize("form", SHAPES)
def test_opcheck_of_the_op(form, bias, route):
    torch.library.opcheck(_operator(form), (*_inputs(form, route, True, bias), [2, 2], 0.25))


@pytest.mark.parametrize("form", SHAPES)
def test_opcheck_of_forward_and_backward(form, fused):
    arguments = (*_inputs(form, fused, False), [2, 2], 0.25)
    torch.library.opcheck(_operator(f"{form}_forward"), arguments)
    out, lse = _operator(f"{form}_forward")(*arguments)
    tensors, parameters = arguments[:-2], arguments[-2:]
    for wanted in ([True, True], [False, True], [True, False], [False, False]):
        given = (torch.randn_like(out), *tensors, out, lse, *parameters, wanted)
        torch.library.opcheck(_operator(f"{form}_backward"), given)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_whole_forward_and_backward(dynamic, route, fresh_compiler):
    model = Look().to(route)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic,
                             backend="inductor" if route == "cuda" else "aot_eager")
    for height in (4, 7) if dynamic else (4,):
        x = torch.randn(2, height, 5, 3, 2, 16, device=route, requires_grad=True)
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

    model = torch.compile(Look().to(fused), fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    model(torch.randn(1, 4, 4, 3, 2, 16, device=fused, requires_grad=True)).sum().backward()
    name = "visionattn.varied_window_attention_packed"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


def _any_size() -> dict:
    return {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=4, max=4096),   # one window is a graph of
            2: torch.export.Dim("width", min=4, max=4096)}                                  # its own


@pytest.mark.slow
def test_exports_with_dynamic_sizes_into_plain_operators():
    model = Look(3).eval()
    program = torch.export.export(model, (torch.randn(2, 8, 7, 3, 2, 16),), dynamic_shapes=(_any_size(),))
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if "visionattn" in str(node.target)]
    for shape in ((1, 4, 4), (3, 7, 41)):
        x = torch.randn(*shape, 3, 2, 16)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_onnx_agrees_to_1e_5_at_sizes_it_was_not_exported_at(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    model = Look(3).eval()
    program = torch.onnx.export(model, (torch.randn(2, 8, 7, 3, 2, 16),), dynamic_shapes=(_any_size(),), dynamo=True,
                                opset_version=18, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for shape in ((2, 8, 7), (1, 4, 4), (3, 17, 31)):
        x = torch.randn(*shape, 3, 2, 16)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_traced_by_torch_fx_as_one_node():
    model, x = Look(), torch.randn(1, 5, 4, 3, 2, 16)
    traced = torch.fx.symbolic_trace(model)
    called = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert called.count(varied_window_attention_packed) == 1
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_q_k_and_v_but_not_the_places_nor_the_bias(dtype, route):
    q, k, v, places, bias = _inputs("", route, True)
    with torch.autocast(route, dtype):
        found = varied_window_attention(q, k.to(dtype), v, 2, places, bias)     # mixed dtypes too
    assert found.dtype == dtype
    low = (x.detach().to(dtype) for x in (q, k, v))
    assert torch.equal(found, varied_window_attention(*low, 2, places, bias))
    found.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v, places, bias)] == [torch.float32] * 5


def test_autocast_leaves_float64_alone():
    q, k, v, places, _ = (x.double() for x in _inputs("", "cpu", False))
    with torch.autocast("cpu", torch.bfloat16):
        assert varied_window_attention(q, k, v, 2, places).dtype == torch.float64


def test_flops_are_those_of_the_mathematics():
    qkv, places = torch.empty(2, 9, 8, 3, 4, 16, device="meta"), torch.empty(2, 3, 3, 4, 4, device="meta")
    pairs = (2 * 9 * 8) * 4 * 9
    with FlopCounterMode(display=False) as counter:
        out = varied_window_attention_packed(qkv.requires_grad_(), 3, places)
    assert counter.get_total_flops() == 2 * pairs * (16 + 16)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 16 + 2 * 16)


def test_meta_tensors_give_shapes_and_gradients_without_computing():
    qkv = torch.empty(2, 300, 400, 3, 2, 64, device="meta", requires_grad=True)
    places = torch.empty(2, 43, 58, 2, 4, device="meta", requires_grad=True)
    out = varied_window_attention_packed(qkv, 7, places)
    out.sum().backward()
    assert out.shape == (2, 300, 400, 2, 64) and out.is_contiguous()
    assert qkv.grad.shape == qkv.shape and places.grad.shape == places.shape


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_every_grad_mode_gives_the_same(mode, route):
    qkv, places, bias = _inputs("_packed", route, True)
    expected = varied_window_attention_packed(*(x.detach().cpu().double() if isinstance(x, torch.Tensor) else x
                                                for x in (qkv, 2, places, bias)))
    with mode():
        found = varied_window_attention_packed(qkv, 2, places, bias)
    assert found.requires_grad == (mode is contextlib.nullcontext)
    assert (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_functional_transforms_off_the_gpu():
    q, k, v, places, bias = _inputs("", "cpu", False)
    found = torch.func.grad(lambda x: varied_window_attention(q, k, v, 2, x, bias).square().sum())(places)
    leaf = places.clone().requires_grad_()
    expected = torch.autograd.grad(varied_window_attention(q, k, v, 2, leaf, bias).square().sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


def test_checkpointing(route):
    from torch.utils.checkpoint import checkpoint
    model, x = Look().to(route), torch.randn(1, 5, 4, 3, 2, 16, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(x).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(checkpoint(model, x, use_reentrant=False).sum(), x)[0], expected)
