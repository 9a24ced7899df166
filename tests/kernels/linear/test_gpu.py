"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import linear_attention, linear_attention_packed

pytestmark = pytest.mark.gpu


def _call(q, k, v, taps=None, grid=None):
    return linear_attention(q, k, v, None if taps is None else taps.movedim(-1, 2), grid)


def _step(batch, height, width, heads=2, d=32, dtype=torch.bfloat16, residual=True, grid=None):
    """One forward and backward: (qkv, filters, output)."""
    qkv = torch.randn(batch, height, width, 3, heads, d, device="cuda", dtype=dtype, requires_grad=True)
    filters = torch.randn(batch, heads, d, 3, 3, device="cuda", requires_grad=True) if residual else None
    out = linear_attention_packed(qkv, filters, grid)
    out.backward(torch.randn_like(out))
    return qkv, filters, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for linear attention, over all kernels and devices."""
    import triton

    from visionattn.kernels.linear import fused
    kernels = {id(x): x for x in vars(fused).values() if isinstance(x, triton.JITFunction)}
    return sum(len(cache[0]) for kernel in kernels.values() for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size, grid, d", [
    ((56, 56), None, 32), ((28, 28), None, 32), ((14, 14), None, 24), ((7, 7), None, 32), ((1, 197), (14, 14), 32),
    ((128, 128), None, 32), ((40, 61), None, 64), ((33, 35), None, 128), ((9, 7), None, 256), ((3, 700), None, 8)])
@pytest.mark.parametrize("taps", [True, False], ids=["residual", "plain"])
def test_obeys_the_rule_at_the_sizes_of_models(size, grid, d, taps, dtype, poisoned, linear_drawn, linear_eager, rule):
    rule(lambda **x: _call(**x, grid=grid), linear_drawn(2, *size, 2, d, d, "cuda", taps), dtype,
         lambda **x: linear_eager(**x, grid=grid))


def test_70000_images_in_one_call(poisoned):
    qkv, filters, out = _step(70000, 3, 4, heads=1, d=16)
    for i in (0, 69999):
        again = linear_attention_packed(qkv[i:i + 1].detach(), filters[i:i + 1].detach())
        assert torch.equal(again, out[i:i + 1])
    assert qkv.grad.isfinite().all() and filters.grad.isfinite().all()


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    qkv = torch.zeros(46, 512, 512, 3, 2, 32, device="cuda", dtype=torch.bfloat16)      # 2.3e9 elements
    qkv[-1].normal_()
    filters = torch.randn(46, 2, 32, 3, 3, device="cuda")
    out = linear_attention_packed(qkv, filters)
    assert torch.equal(out[-1:], linear_attention_packed(qkv[-1:].clone(), filters[-1:]))


def test_repeats_are_bitwise_equal():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        qkv, filters, out = _step(64, 56, 56)
        results.append((out, qkv.grad, filters.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_a_new_batch_or_map_compiles_nothing(residual):
    _step(2, 14, 21, residual=residual)
    before = _compiled_kernels()
    for size in ((1, 1, 1), (64, 7, 7), (3, 56, 57), (1, 128, 128)):
        _step(*size, residual=residual)
    _step(2, 1, 197, residual=residual, grid=(14, 14))
    assert _compiled_kernels() == before
    _step(2, 14, 21, residual=residual, d=40)                                # and the count counts
    assert _compiled_kernels() > before


def test_the_packed_route_holds_its_inputs_outputs_and_little_more():
    batch, heads, d, size = 128, 3, 32, (56, 56)
    _step(2, *size, heads=heads)                                            # whatever is allocated once
    torch.cuda.synchronize()
    qkv = torch.randn(batch, *size, 3, heads, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    filters = torch.randn(batch, heads, d, 3, 3, device="cuda", requires_grad=True)
    grad = torch.randn(batch, *size, heads, d, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_attention_packed(qkv, filters).backward(grad)
    peak = torch.cuda.max_memory_allocated() - before
    one = grad.numel() * grad.element_size()
    assert peak <= 4 * one + (48 << 20)                                     # out, dqkv, and sums over slices


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    filters = torch.randn(4, 2, 32, 3, 3, device="cuda", requires_grad=True)

    def step(qkv):
        return linear_attention_packed(2 * qkv, filters).float().square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for height in (9, 16, 23):
        qkv = torch.randn(4, height, 12, 3, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        found = torch.autograd.grad(compiled(qkv), [qkv, filters])
        expected = torch.autograd.grad(step(qkv), [qkv, filters])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(qkv.float()).isfinite()


def test_replays_in_a_cuda_graph():
    qkv = torch.randn(2, 40, 40, 3, 2, 32, device="cuda", dtype=torch.bfloat16)
    filters = torch.randn(2, 2, 32, 3, 3, device="cuda")
    linear_attention_packed(qkv, filters)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear_attention_packed(qkv, filters)
    qkv.normal_()
    graph.replay()
    assert torch.equal(out, linear_attention_packed(qkv, filters))
