"""What torch's own tools ask of the depthwise convolution, on the composite route and on the route of a GPU."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import depthwise_conv

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled", "ignore:Your compiler for AOTAutograd")


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
