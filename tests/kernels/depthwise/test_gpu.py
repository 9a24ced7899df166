"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import depthwise_conv

pytestmark = pytest.mark.gpu


def _call(x, taps, added=None, residual=False):
    return depthwise_conv(x, taps.permute(2, 0, 1).unsqueeze(1), added, residual)


def _step(batch, height, width, channels=64, side=7):
    x = torch.randn(batch, height, width, channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(channels, 1, side, side, device="cuda", requires_grad=True)
    out = depthwise_conv(x, weight, residual=True)
    out.backward(torch.randn_like(out))
    return x, weight, out


def _compiled_kernels() -> int:
    import triton

    from visionattn.kernels.depthwise import fused
    kernels = [x for x in vars(fused).values() if isinstance(x, triton.JITFunction)]
    return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size, channels, side", [
    ((56, 56), 96, 7), ((28, 28), 192, 7), ((14, 14), 384, 7), ((7, 7), 768, 7), ((56, 56), 64, 5), ((14, 14), 256, 5),
    ((56, 56), 96, 3), ((97, 130), 64, 3), ((1, 300), 40, 5), ((33, 35), 20, 7), ((5, 7), 7, 3), ((9, 9), 32, 1)])
def test_obeys_the_rule_at_the_sizes_of_models(size, channels, side, dtype, poisoned, conv_drawn, conv_eager, rule):
    rule(lambda **t: _call(**t, residual=True), conv_drawn(2, *size, channels, side, "cuda"), dtype,
         lambda **t: conv_eager(**t, residual=True))


def test_70000_images_in_one_call(poisoned):
    x, weight, out = _step(70000, 3, 4, channels=16, side=3)
    for i in (0, 69999):
        again = depthwise_conv(x[i:i + 1].detach(), weight.detach(), residual=True)
        assert torch.equal(again, out[i:i + 1])
    assert x.grad.isfinite().all() and weight.grad.isfinite().all()


def test_repeats_are_bitwise_equal():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        x, weight, out = _step(64, 56, 56)
        results.append((out, x.grad, weight.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_a_new_batch_or_map_compiles_nothing():
    for width in (8, 16, 32):          # tiles follow from the width, and from the height of small maps
        for height in (8, 14):
            _step(2, height, width, side=3)
    before = _compiled_kernels()
    for size in ((1, 1, 1), (64, 7, 7), (3, 56, 57), (1, 128, 128), (2, 11, 40), (1, 200, 9)):
        _step(*size, side=3)
    assert _compiled_kernels() == before
    _step(2, 14, 21, side=1)           # and the count counts
    assert _compiled_kernels() > before


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    x = torch.zeros(36, 1024, 1024, 64, device="cuda", dtype=torch.bfloat16)      # 2.4e9 elements
    x[-1].normal_()
    weight = torch.randn(64, 1, 3, 3, device="cuda")
    assert torch.equal(depthwise_conv(x, weight)[-1:], depthwise_conv(x[-1:].clone(), weight))


def test_forward_and_backward_hold_their_inputs_outputs_and_little_more():
    _step(2, 56, 56, channels=96)                                           # whatever is allocated once
    torch.cuda.synchronize()
    x = torch.randn(128, 56, 56, 96, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight, grad = torch.randn(96, 1, 7, 7, device="cuda", requires_grad=True), torch.randn_like(x)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    depthwise_conv(x, weight).backward(grad)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 2 * x.numel() * x.element_size() + (16 << 20)            # out, dx, and sums over slices


def test_more_tiles_than_a_grids_other_axes_hold(poisoned):
    x, weight, out = _step(1, 4096, 4096, channels=8, side=3)               # 65,536 tiles
    torch.testing.assert_close(out[:, :9, :9], depthwise_conv(x[:, :10, :10].detach(), weight.detach(),
                                                              residual=True)[:, :9, :9])
    torch.testing.assert_close(out[:, -9:, -9:], depthwise_conv(x[:, -10:, -10:].detach(), weight.detach(),
                                                                residual=True)[:, -9:, -9:])
    assert out.isfinite().all() and x.grad.isfinite().all() and weight.grad.isfinite().all()


def test_replays_in_a_cuda_graph():
    x = torch.randn(2, 40, 40, 32, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(32, 1, 7, 7, device="cuda")
    depthwise_conv(x, weight)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = depthwise_conv(x, weight)
    x.normal_()
    graph.replay()
    assert torch.equal(out, depthwise_conv(x, weight))
