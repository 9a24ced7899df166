"""What torch's own tools ask of a registered op, with routes that no gradient goes to, on both routes of running it."""
import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import routed_attention, routed_attention_packed, routed_attention_packed_qk

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")

# the form that layers take, and the others
FORMS = ("_packed_qk", *(pytest.param(form, marks=pytest.mark.slow) for form in ("", "_packed")))
PARAMETERS = ([2, 1], 0.25)


class Routed(torch.nn.Module):
    """A layer as models have it: routes from means, a parameter in front of the op."""

    def __init__(self, regions: int = 2, topk: int = 2) -> None:
        super().__init__()
        self.regions, self.topk, self.scale = regions, topk, torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, qkv: torch.Tensor) -> torch.Tensor:
        cut = qkv.detach().flatten(4).unflatten(2, (self.regions, -1)).unflatten(1, (self.regions, -1))
        q, k, _ = cut.mean((2, 4)).flatten(1, 2).unbind(2)
        routes = (q @ k.transpose(1, 2)).topk(self.topk).indices
        return routed_attention_packed(qkv * self.scale[:, None, None], routes, self.regions)


def _inputs(form: str, device: str, grad: bool = True) -> list:
    one = (1, 5, 4, 2, 16)
    shapes = {"": [one] * 3, "_packed": [(1, 5, 4, 3, 2, 16)], "_packed_qk": [(1, 5, 4, 2, 2, 16), one]}[form]
    return [*(torch.randn(shape, device=device).requires_grad_(grad) for shape in shapes),
            torch.tensor([[[1, 1], [0, 1]]], device=device)]


def _operator(name: str):
    return getattr(torch.ops.visionattn, f"routed_attention{name}").default


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("checks", [
    ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"),
    pytest.param(("test_aot_dispatch_dynamic",), marks=pytest.mark.slow)], ids=["static", "dynamic"])
def test_opcheck_of_the_op(checks, form, route):
    torch.library.opcheck(_operator(form), (*_inputs(form, route), *PARAMETERS), test_utils=checks)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck_of_forward_and_backward(form, fused):
    tensors = _inputs(form, fused, grad=False)
    forward, backward = (_operator(f"{form}{part}") for part in ("_forward", "_backward"))
    torch.library.opcheck(forward, (*tensors, *PARAMETERS))
    out, lse = forward(*tensors, *PARAMETERS)
    torch.library.opcheck(backward, (torch.randn_like(out), *tensors, out, lse, *PARAMETERS, [False]))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_whole_with_its_routing_forward_and_backward(dynamic, route, fresh_compiler):
    model = Routed().to(route)
    compiled = torch.compile(lambda x: model(2 * x).square(), fullgraph=True, dynamic=dynamic,
                             backend="inductor" if route == "cuda" else "aot_eager")
    for height in (4, 6) if dynamic else (4,):
        qkv = torch.randn(2, height, 6, 3, 2, 16, device=route, requires_grad=True)
        wanted = qkv, model.scale
        expected = torch.autograd.grad(model(2 * qkv).square().sum(), wanted)
        for x, y in zip(torch.autograd.grad(compiled(qkv).sum(), wanted), expected, strict=True):
            assert (x - y).norm() <= 1e-5 * y.norm()


def test_the_compiled_graph_holds_one_opaque_node_each_way(fused, fresh_compiler):
    from torch._dynamo.backends.common import aot_autograd
    seen = []

    def note(graph, _):
        seen.append([str(n.target) for n in graph.graph.nodes if "visionattn" in str(n.target)])
        return graph

    model = torch.compile(Routed().to(fused), fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    model(torch.randn(1, 4, 4, 3, 2, 16, device=fused, requires_grad=True)).sum().backward()
    name = "visionattn.routed_attention_packed"
    assert seen == [[f"{name}_forward.default"], [f"{name}_backward.default"]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_q_k_and_v_but_not_the_routes(dtype, route):
    q, k, v, routes = _inputs("", route)
    with torch.autocast(route, dtype):
        found = routed_attention(q.double().float(), k.to(dtype), v, routes, (2, 1))     # mixed dtypes too
    low = [x.detach().to(dtype) for x in (q, k, v)]
    assert found.dtype == dtype and torch.equal(found, routed_attention(*low, routes, (2, 1)))
    found.float().sum().backward()
    assert [x.grad.dtype for x in (q, k, v)] == [torch.float32] * 3


def test_autocast_leaves_float64_alone():
    q, k, v, routes = _inputs("", "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert routed_attention(q.double(), k.double(), v.double(), routes, (2, 1)).dtype == torch.float64


def test_flops_are_those_of_the_mathematics():
    qkv = torch.empty(2, 14, 21, 3, 4, 16, device="meta", requires_grad=True)
    routes = torch.empty(2, 49, 5, device="meta", dtype=torch.long)
    pairs = 2 * 14 * 21 * 4 * (5 * 2 * 3)
    with FlopCounterMode(display=False) as counter:
        out = routed_attention_packed(qkv, routes, 7)
    assert counter.get_total_flops() == 2 * pairs * (16 + 16)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (3 * 16 + 2 * 16)


def test_meta_tensors_give_shapes_and_gradients_without_computing():
    model, qkv = Routed().to("meta"), torch.empty(2, 300, 400, 3, 2, 64, device="meta", requires_grad=True)
    out = model(qkv)
    out.sum().backward()
    assert out.shape == (2, 300, 400, 2, 64) and out.is_contiguous() and qkv.grad.shape == qkv.shape


def test_traced_by_torch_fx_as_one_node():
    class Plain(torch.nn.Module):
        def forward(self, qk, v, routes):
            return routed_attention_packed_qk(qk, v, routes, (2, 1))

    inputs = _inputs("_packed_qk", "cpu")
    traced = torch.fx.symbolic_trace(Plain())
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [routed_attention_packed_qk]
    assert torch.equal(traced(*inputs), Plain()(*inputs))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_grad_mode_gives_the_same(mode, route):
    qkv, routes = _inputs("_packed", route)
    expected = routed_attention_packed(qkv.detach().cpu().double(), routes.cpu(), (2, 1))
    with mode():
        found = routed_attention_packed(qkv, routes, (2, 1))
    assert not found.requires_grad and (found.cpu() - expected).norm() <= 1e-5 * expected.norm()


def test_functional_transforms_off_the_gpu():
    q, k, v, routes = _inputs("", "cpu", grad=False)
    found = torch.func.grad(lambda x: routed_attention(x, k, v, routes, (2, 1)).square().sum())(q)
    leaf = q.clone().requires_grad_()
    expected = torch.autograd.grad(routed_attention(leaf, k, v, routes, (2, 1)).square().sum(), leaf)[0]
    torch.testing.assert_close(found, expected)


def test_checkpointing_and_copies_of_a_module(route):
    from torch.utils.checkpoint import checkpoint
    model, qkv = Routed().to(route), torch.randn(1, 4, 4, 3, 2, 16, device=route, requires_grad=True)
    expected = torch.autograd.grad(model(qkv).square().sum(), qkv)[0]
    found = torch.autograd.grad(checkpoint(copy.deepcopy(model), qkv, use_reentrant=False).square().sum(), qkv)[0]
    assert torch.equal(found, expected)


class Given(torch.nn.Module):
    """The op alone, over maps of any size."""

    def forward(self, qkv: torch.Tensor, routes: torch.Tensor) -> torch.Tensor:
        return routed_attention_packed(qkv, routes, (3, 2))


# one position a region is a graph of its own
SIZES = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=4, max=4096),
         2: torch.export.Dim("width", min=3, max=4096)}


def _given(batch: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, height, width, 3, 2, 8), torch.randint(0, 6, (batch, 6, 2))


@pytest.mark.slow       # the next test exports too
def test_exports_with_dynamic_sizes_into_plain_operators():
    program = torch.export.export(Given(), _given(2, 7, 5), dynamic_shapes=(SIZES, {0: SIZES[0]}))
    program = program.run_decompositions()
    assert not [node for node in program.graph.nodes if "visionattn" in str(node.target)]
    for size in ((1, 4, 3), (3, 9, 8), (2, 6, 41)):
        inputs = _given(*size)
        torch.testing.assert_close(program.module()(*inputs), Given()(*inputs), rtol=0, atol=1e-5)


def test_onnx_agrees_to_1e_5_at_sizes_it_was_not_exported_at(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs visionattn[export]")
    pytest.importorskip("onnxscript", reason="needs visionattn[export]")
    program = torch.onnx.export(Given().eval(), _given(2, 7, 5), dynamic_shapes=(SIZES, {0: SIZES[0]}), dynamo=True,
                                opset_version=18, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in ((2, 7, 5), (1, 4, 3), (3, 17, 31)):
        inputs = _given(*size)
        names = [x.name for x in session.get_inputs()]
        found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs)})[0]
        torch.testing.assert_close(torch.from_numpy(found), Given()(*inputs), rtol=0, atol=1e-5)
