"""Causal axes and extra tokens at sizes that only a GPU can show."""
import pytest
import torch

from visionattn.kernels import neighborhood_attention, neighborhood_attention_packed
from visionattn.kernels.neighborhood.geometry import make_geometry

pytestmark = pytest.mark.gpu
ROWS, COLUMNS, BOTH = (True, False), (False, True), (True, True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kernel, dilation, stride, size, d, causal, tokens", [
    (7, 1, 1, (56, 56), 32, BOTH, 0), (7, 4, 1, (29, 30), 32, ROWS, 0), (7, 1, 4, (28, 35), 64, COLUMNS, 0),
    (7, 1, 7, (28, 28), 32, BOTH, 0), (7, 1, 1, (7, 7), 32, ROWS, 0), (13, 2, 1, (30, 27), 24, BOTH, 0),
    (7, 1, 1, (56, 56), 32, False, 1), (7, 1, 1, (7, 7), 32, False, 4), (7, 2, 1, (28, 31), 64, False, 17),
    (7, 1, 4, (28, 28), 128, ROWS, 77), (5, 1, 2, (20, 9), 256, False, 5), (13, 1, 1, (32, 41), 64, BOTH, 300)])
def test_obeys_the_rule_at_the_sizes_of_models(kernel, dilation, stride, size, d, causal, tokens, dtype, poisoned,
                                               drawn, to_all, rule):
    geometry = make_geometry(kernel, dilation, stride, causal)

    def function(q, k, v, bias, extra_k=None, extra_v=None):
        return neighborhood_attention(q, k, v, kernel, dilation, stride, bias, None, causal, extra_k, extra_v)

    def eager(q, k, v, bias, extra_k=None, extra_v=None):
        return to_all(q, k, v, bias, geometry, d**-0.5, extra_k, extra_v)

    rule(function, drawn(2, *size, 2, d, d, geometry.kernel, "cuda", tokens), dtype, eager)


def _given(batch, size, heads=2, d=32, tokens=9):
    """A packed qkv, a relative table of kernel 7 and extra tokens, all with gradients."""
    shapes = (batch, *size, 3, heads, d), (heads, 13, 13), (batch, tokens, heads, d), (batch, tokens, heads, d)
    dtypes = torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16
    return [torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
            for shape, dtype in zip(shapes, dtypes, strict=True)]


def _step(qkv, table, extra_k, extra_v):
    out = neighborhood_attention_packed(2 * qkv, 7, 1, 1, table, None, ROWS, extra_k, extra_v)
    return out.float().square().sum()


def test_repeats_are_bitwise_equal_and_recorded_calls_too():
    given = _given(3, (29, 40))
    first = torch.autograd.grad(_step(*given), given)
    for _ in range(3):                                                      # plain, recorded, replayed
        for x, y in zip(first, torch.autograd.grad(_step(*given), given), strict=True):
            assert torch.equal(x, y)


def test_memory_stays_linear_in_the_map():
    batch, size, heads, d, tokens = 32, (112, 112), 2, 32, 512
    torch.autograd.grad(_step(*(given := _given(1, size, heads, d, tokens))), given)     # whatever is allocated once
    qkv, table, extra_k, extra_v = _given(batch, size, heads, d, tokens)
    grad = torch.randn(batch, *size, heads, d, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    neighborhood_attention_packed(qkv, 7, bias=table, extra_k=extra_k, extra_v=extra_v).backward(grad)
    peak = torch.cuda.max_memory_allocated() - before
    one, sums = grad.numel() * grad.element_size(), 4 * batch * heads * size[0] * size[1]
    # out and that of the tokens, dqkv, and dq of the tokens in float32; lse and delta twice; partial sums
    assert peak <= 7 * one + 4 * sums + (96 << 20)


def test_more_than_65535_tiles_in_one_call(poisoned):
    qkv, table, extra_k, extra_v = _given(700, (80, 80), heads=1, d=16, tokens=3)       # 70,000 tiles of 64 queries
    out = neighborhood_attention_packed(qkv, 7, bias=table, extra_k=extra_k, extra_v=extra_v)
    out.backward(torch.randn_like(out))
    for i in (0, 699):
        again = neighborhood_attention_packed(qkv[i:i + 1], 7, bias=table, extra_k=extra_k[i:i + 1],
                                              extra_v=extra_v[i:i + 1])
        assert torch.equal(again, out[i:i + 1])
    assert all(x.grad.isfinite().all() for x in (qkv, table, extra_k, extra_v))


def test_a_new_batch_or_map_compiles_nothing():
    from visionattn.kernels.neighborhood import extra

    def compiled() -> int:
        kernels = extra.FORWARD, extra.BACKWARD_Q, extra.BACKWARD_KV, extra.MERGE
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    _step(*_given(2, (14, 14))).backward()
    before = compiled()
    for batch, size in ((3, (14, 14)), (1, (29, 16)), (5, (40, 31))):
        _step(*_given(batch, size)).backward()
    assert compiled() == before


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    compiled = torch.compile(_step, fullgraph=True)
    for height in (9, 16, 23):
        given = _given(4, (height, 12))
        found, expected = (torch.autograd.grad(step(*given), given) for step in (compiled, _step))
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()


def test_trains_under_the_cuda_graphs_of_torch_compile(fresh_compiler):
    compiled = torch.compile(_step, mode="reduce-overhead")
    for _ in range(4):                                                      # warm-up, capture, replay
        given = _given(4, (14, 14))
        found = [x.clone() for x in torch.autograd.grad(compiled(*given), given)]
        for x, y in zip(found, torch.autograd.grad(_step(*given), given), strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
