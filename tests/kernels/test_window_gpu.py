"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import window_attention, window_attention_packed, window_attention_packed_kv
from visionattn.kernels.window.geometry import make_geometry

pytestmark = pytest.mark.gpu


def _step(batch, height, width, heads=2, d=32, window=7, shift=0, partition="block", dtype=torch.bfloat16, bias=True):
    """One forward and backward: (qkv, bias, output)."""
    qkv = torch.randn(batch, height, width, 3, heads, d, device="cuda", dtype=dtype, requires_grad=True)
    table = torch.randn(heads, 2 * window - 1, 2 * window - 1, device="cuda", requires_grad=True) if bias else None
    out = window_attention_packed(qkv, window, shift, partition, table)
    out.backward(torch.randn_like(out))
    return qkv, table, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for window attention, over all kernels and devices."""
    import triton

    from visionattn.kernels.window import fused
    kernels = {id(x): x for x in vars(fused).values() if isinstance(x, triton.JITFunction)}
    return sum(len(cache[0]) for kernel in kernels.values() for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("window, shift, partition, shared, size, d", [
    (7, 0, "block", False, (56, 56), 32), (7, 3, "block", False, (56, 56), 32), (7, 3, "block", False, (29, 40), 32),
    (7, 0, "grid", False, (28, 35), 32), (7, 0, "grid", False, (30, 27), 64), (7, 0, "block", True, (28, 28), 32),
    (14, 0, "block", True, (28, 14), 32), (12, 6, "block", False, (24, 36), 32), (8, 4, "block", False, (24, 40), 32),
    ((5, 12), (2, 6), "block", False, (21, 30), 24), (32, 16, "block", False, (64, 64), 64), (2, 1, "block", False,
    (18, 16), 32), (7, 3, "block", False, (14, 14), 64), (7, 3, "block", False, (14, 14), 128),
    (6, 0, "grid", True, (20, 9), 256)])
def test_obeys_the_rule_at_the_sizes_of_models(window, shift, partition, shared, size, d, dtype, poisoned,
                                               windows_drawn, windows_all, rule):
    geometry = make_geometry(window, shift, partition)
    rule(lambda q, k, v, bias: window_attention(q, k, v, window, shift, partition, bias),
         windows_drawn(2, *size, 2, d, d, geometry, "cuda", "table" if d == 32 else True, shared), dtype,
         lambda q, k, v, bias: windows_all(q, k, v, bias, geometry, d**-0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window, shift, partition", [(7, 3, "block"), (7, 0, "grid"), (7, 0, "block")])
def test_programs_that_walk_windows_of_several_kinds_obey_the_rule(window, shift, partition, dtype, poisoned,
                                                                   windows_drawn, windows_all, rule):
    geometry = make_geometry(window, shift, partition)
    rule(lambda q, k, v, bias: window_attention(q, k, v, window, shift, partition, bias),
         windows_drawn(128, 21, 22, 2, 32, 32, geometry, "cuda", "table"), dtype,
         lambda q, k, v, bias: windows_all(q, k, v, bias, geometry, 32**-0.5))


@pytest.mark.parametrize("window, size", [(4, (32, 32)), (9, (72, 72))], ids=["closed", "open"])
def test_70000_windows_in_one_call(window, size, poisoned):
    batch = 1100                                                            # of 64 windows each
    qkv, table, out = _step(batch, *size, heads=1, d=16, window=window, shift=0)
    for i in (0, batch - 1):
        one = qkv[i:i + 1].detach().requires_grad_()
        again = window_attention_packed(one, window, bias=table)
        assert torch.equal(again, out[i:i + 1])
    assert qkv.grad.isfinite().all() and table.grad.isfinite().all()


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    qkv = torch.zeros(46, 512, 512, 3, 2, 32, device="cuda", dtype=torch.bfloat16)      # 2.3e9 elements
    qkv[-1].normal_()
    out = window_attention_packed(qkv, 8, 4)
    assert torch.equal(out[-1:], window_attention_packed(qkv[-1:].clone(), 8, 4))


@pytest.mark.parametrize("window", [7, 14])
def test_repeats_are_bitwise_equal(window):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        qkv, table, out = _step(64, 28, 28, window=window, shift=3)
        results.append((out, qkv.grad, table.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("window, shift, partition, sizes", [
    (7, 0, "block", [(2, 14, 21), (64, 7, 7), (1, 56, 56)]),                # windows that fit
    (7, 3, "block", [(2, 14, 21), (3, 9, 31), (1, 3, 5), (130, 8, 7)]),
    (7, 0, "grid", [(2, 15, 20), (1, 29, 50)]),
    (14, 7, "block", [(2, 14, 28), (3, 9, 31), (1, 56, 56)])])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_a_new_batch_or_map_compiles_nothing(window, shift, partition, sizes, bias):
    arguments = dict(window=window, shift=shift, partition=partition, bias=bias)
    _step(*sizes[0], **arguments)
    before = _compiled_kernels()
    for size in sizes[1:]:
        _step(*size, **arguments)
    assert _compiled_kernels() == before
    _step(*sizes[0], **arguments, d=40)                                     # and the count counts
    assert _compiled_kernels() > before


@pytest.mark.parametrize("shift", [0, 3])
def test_the_packed_route_holds_its_inputs_outputs_and_little_more(shift):
    batch, heads, d, size = 128, 3, 32, (56, 56)
    _step(2, *size, heads=heads, shift=shift)                               # whatever is allocated once
    torch.cuda.synchronize()
    qkv = torch.randn(batch, *size, 3, heads, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    table = torch.randn(heads, 13, 13, device="cuda", requires_grad=True)
    grad = torch.randn(batch, *size, heads, d, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    window_attention_packed(qkv, 7, shift, bias=table).backward(grad)
    peak = torch.cuda.max_memory_allocated() - before
    one = grad.numel() * grad.element_size()
    sums = batch * heads * size[0] * size[1] * 4                            # lse in float32
    assert peak <= 4 * one + sums + (24 << 20)                              # out, dqkv, and the bias's partial sums


@pytest.mark.parametrize("window, shift", [(7, 3), (10, 0)])
def test_compiles_whole_with_inductor_and_dynamic_sizes(window, shift, fresh_compiler):
    table = torch.randn(2, 2 * window - 1, 2 * window - 1, device="cuda", requires_grad=True)

    def step(qkv):
        return window_attention_packed(2 * qkv, window, shift, bias=table).float().square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for height in (9, 16, 23):
        qkv = torch.randn(4, height, 12, 3, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        found = torch.autograd.grad(compiled(qkv), [qkv, table])
        expected = torch.autograd.grad(step(qkv), [qkv, table])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(qkv.float()).isfinite()


def test_replays_in_a_cuda_graph():
    q = torch.randn(2, 7, 7, 2, 32, device="cuda", dtype=torch.bfloat16)
    kv = torch.randn(2, 14, 14, 2, 2, 32, device="cuda", dtype=torch.bfloat16)
    window_attention_packed_kv(q, kv, 7)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = window_attention_packed_kv(q, kv, 7)
    kv.normal_()
    graph.replay()
    assert torch.equal(out, window_attention_packed_kv(q, kv, 7))
