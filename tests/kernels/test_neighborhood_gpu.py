"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import neighborhood_attention, neighborhood_attention_packed
from visionattn.kernels.neighborhood.geometry import make_geometry

pytestmark = pytest.mark.gpu


def _step(batch, height, width, heads=2, d=32, kernel=7, dilation=1, dtype=torch.bfloat16, bias=True):
    """One forward and backward: (qkv, table, output)."""
    qkv = torch.randn(batch, height, width, 3, heads, d, device="cuda", dtype=dtype, requires_grad=True)
    table = torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1, device="cuda", requires_grad=True) if bias else None
    out = neighborhood_attention_packed(qkv, kernel, dilation, bias=table)
    out.backward(torch.randn_like(out))
    return qkv, table, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for neighborhood attention, over all kernels and devices."""
    import triton

    from visionattn.kernels.neighborhood import fused
    kernels = {id(x): x for x in vars(fused).values() if isinstance(x, triton.JITFunction)}
    return sum(len(cache[0]) for kernel in kernels.values() for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kernel, dilation, stride, size, d", [
    (7, 1, 1, (56, 56), 32), (7, 4, 1, (29, 30), 32), (7, 1, 4, (28, 35), 64), (7, 1, 7, (28, 28), 32),
    (7, 1, 1, (7, 7), 32), (7, 2, 1, (14, 14), 32), (13, 1, 1, (32, 41), 64), (32, 1, 16, (33, 64), 64),
    (7, 1, 1, (14, 14), 128), (5, 1, 2, (20, 9), 256), (13, 2, 1, (30, 27), 24)])
def test_obeys_the_rule_at_the_sizes_of_models(kernel, dilation, stride, size, d, dtype, poisoned, drawn, to_all, rule):
    geometry = make_geometry(kernel, dilation, stride)
    rule(lambda q, k, v, bias: neighborhood_attention(q, k, v, kernel, dilation, stride, bias),
         drawn(2, *size, 2, d, d, geometry.kernel, "cuda"), dtype,
         lambda q, k, v, bias: to_all(q, k, v, bias, geometry, d**-0.5))


def test_more_than_65535_tiles_in_one_call(poisoned):
    qkv, table, out = _step(1100, 64, 64, heads=1, d=16, kernel=3)          # 70,400 tiles of 8 x 8
    for i in (0, 1099):
        one = qkv[i:i + 1].detach().requires_grad_()
        again = neighborhood_attention_packed(one, 3, bias=table)
        assert torch.equal(again, out[i:i + 1])
    assert qkv.grad.isfinite().all() and table.grad.isfinite().all()


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    qkv = torch.zeros(46, 512, 512, 3, 2, 32, device="cuda", dtype=torch.bfloat16)      # 2.3e9 elements
    qkv[-1].normal_()
    out = neighborhood_attention_packed(qkv, 3)
    assert torch.equal(out[-1:], neighborhood_attention_packed(qkv[-1:].clone(), 3))


def test_one_map_of_more_than_2_to_the_31_elements():
    """Rows of a map are counted in units of 32 bits: the last ones lie 7e9 elements from the first."""
    side, heads, d, last = 2200, 8, 64, 48
    free, _ = torch.cuda.mem_get_info()
    if free < 48 << 30:
        pytest.skip("needs 48 GiB of free GPU memory")
    qkv = torch.zeros(1, side, side, 3, heads, d, device="cuda", dtype=torch.bfloat16)
    grad = torch.zeros(1, side, side, heads, d, device="cuda", dtype=torch.bfloat16)
    qkv[:, -last:], grad[:, -8:] = torch.randn_like(qkv[:, -last:]), torch.randn_like(grad[:, -8:])
    bottom = qkv[:, -last:].clone().requires_grad_()      # what the last rows see, and all that sees them, is there
    expected = neighborhood_attention_packed(bottom, 7)
    expected_grad, = torch.autograd.grad(expected, bottom, grad[:, -last:])
    out = neighborhood_attention_packed(qkv.requires_grad_(), 7)
    found_grad, = torch.autograd.grad(out, qkv, grad)
    assert torch.equal(out[:, -8:], expected[:, -8:])
    assert torch.equal(found_grad[:, -8:], expected_grad[:, -8:]) and found_grad[:, -8:].any()
    assert not found_grad[:, :-last].any()


def test_repeats_are_bitwise_equal():
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        qkv, table, out = _step(64, 28, 28)
        results.append((out, qkv.grad, table.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kernel, dilation, sizes, other_d", [
    (7, 1, [(2, 20, 24), (3, 9, 31), (1, 56, 56), (130, 8, 7)], 40),        # overlapping windows
    (7, 2, [(2, 20, 24), (3, 15, 31), (1, 29, 30)], 48),
    (7, 1, [(2, 7, 7), (5, 7, 7), (64, 7, 7)], 56)])                        # one window
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_a_new_batch_or_map_compiles_nothing(kernel, dilation, sizes, other_d, bias):
    _step(*sizes[0], kernel=kernel, dilation=dilation, bias=bias)
    before = _compiled_kernels()
    for size in sizes[1:]:
        _step(*size, kernel=kernel, dilation=dilation, bias=bias)
    assert _compiled_kernels() == before
    _step(*sizes[0], kernel=kernel, dilation=dilation, bias=bias, d=other_d)     # and the count counts
    assert _compiled_kernels() > before


@pytest.mark.parametrize("size", [(56, 56), (7, 7)])
def test_the_packed_route_holds_its_inputs_outputs_and_little_more(size):
    batch, heads, d = 128, 2, 32
    _step(2, *size)                                                         # whatever is allocated once
    torch.cuda.synchronize()
    qkv = torch.randn(batch, *size, 3, heads, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    table = torch.randn(heads, 13, 13, device="cuda", requires_grad=True)
    grad = torch.randn(batch, *size, heads, d, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    neighborhood_attention_packed(qkv, 7, bias=table).backward(grad)
    peak = torch.cuda.max_memory_allocated() - before
    one = grad.numel() * grad.element_size()
    sums = 2 * batch * heads * size[0] * size[1] * 4                        # lse and delta in float32
    assert peak <= 4 * one + sums + (24 << 20)                              # out, dqkv, and the table's partial sums


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    table = torch.randn(2, 13, 13, device="cuda", requires_grad=True)

    def step(qkv):
        return neighborhood_attention_packed(2 * qkv, 7, bias=table).float().square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for height in (9, 16, 23):
        qkv = torch.randn(4, height, 12, 3, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        found = torch.autograd.grad(compiled(qkv), [qkv, table])
        expected = torch.autograd.grad(step(qkv), [qkv, table])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(qkv.float()).isfinite()


def test_runs_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    qkv = torch.randn(1, 9, 9, 3, 1, 32, device="cuda:1", requires_grad=True)
    neighborhood_attention_packed(qkv, 7).sum().backward()
    assert qkv.grad.isfinite().all()


def test_replays_in_a_cuda_graph():
    qkv = torch.randn(2, 14, 14, 3, 2, 32, device="cuda", dtype=torch.bfloat16)
    neighborhood_attention_packed(qkv, 7)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = neighborhood_attention_packed(qkv, 7)
    qkv.normal_()
    graph.replay()
    assert torch.equal(out, neighborhood_attention_packed(qkv, 7))


@pytest.mark.parametrize("size", [14, 7])
def test_trains_under_the_cuda_graphs_of_torch_compile(size, fresh_compiler):
    table = torch.randn(2, 13, 13, device="cuda", requires_grad=True)

    def step(qkv):
        return neighborhood_attention_packed(2 * qkv, 7, bias=table).float().square().sum()

    compiled = torch.compile(step, mode="reduce-overhead")
    for _ in range(4):                                                      # warm-up, capture, replay
        qkv = torch.randn(4, size, size, 3, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        found = [x.clone() for x in torch.autograd.grad(compiled(qkv), [qkv, table])]
        expected = torch.autograd.grad(step(qkv), [qkv, table])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
