"""Fused models where they are meant to run: on a GPU, in 16 bits, under CUDA graphs."""

import copy

import pytest
import torch

from visionattn import fuse
from visionattn.fusing import RECIPES

pytestmark = pytest.mark.gpu

NAMES = (
    *("swin", "swin any size", "maxvit", "maxvit rw", "maxvit rmlp", "maxvit pm"),
    *("davit", "davit v2", "gcvit", "halonet"),
)


def _gradients(model, x, dtype):
    model.zero_grad()
    with torch.autocast("cuda", dtype=dtype):
        out = model(x)
    seed = torch.Generator("cuda").manual_seed(1)
    (out.float() * torch.randn(out.shape, generator=seed, device="cuda")).sum().backward()
    return torch.cat([p.grad.double().flatten() for p in model.parameters()]), out.detach().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_in_16_bits_the_error_is_at_most_twice_timms(name, dtype, short, recwarn):
    theirs, x = short(name)
    theirs, x = theirs.cuda(), x.cuda()
    exact = copy.deepcopy(theirs).double()
    exact_out = exact(x.double())
    seed = torch.Generator("cuda").manual_seed(1)
    noise = torch.randn(exact_out.shape, generator=seed, device="cuda")
    (exact_out * noise).sum().backward()
    expected = torch.cat([p.grad.flatten() for p in exact.parameters()]), exact_out.detach()
    ours = copy.deepcopy(theirs)
    assert fuse(ours) and not fuse(ours).left
    found, timms = _gradients(ours, x, dtype), _gradients(theirs, x, dtype)
    for mine, yours, truth in zip(found, timms, expected):
        assert (mine - truth).norm() <= 2 * (yours - truth).norm()
    assert not [w for w in recwarn if "reference implementation on a GPU" in str(w.message)]


@pytest.mark.parametrize("name", NAMES)
def test_a_cuda_graph_of_a_training_step_replays(name, short):
    model, x = short(name)
    model, x = model.cuda(), x.cuda()
    fuse(model)

    def step():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = model(x)
        out.float().square().sum().backward()
        return out

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model.zero_grad()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    model.zero_grad()
    with torch.cuda.graph(graph):
        out = step()
    x.copy_(torch.randn_like(x))
    graph.replay()
    replayed, gradients = out.detach().clone(), [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.testing.assert_close(replayed, step().detach())
    for p, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-2, atol=1e-2 * float(gradient.abs().max()))


def test_every_module_that_is_fused_would_run_the_kernels(short):
    for name in NAMES:
        model, _ = short(name)
        for module in model.cuda().modules():
            recipe = next((r for r in RECIPES if isinstance(module, r.original)), None)
            if recipe is not None:
                assert recipe.asks(module).runs == "fused (triton)"
