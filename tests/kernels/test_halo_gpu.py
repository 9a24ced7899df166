"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import halo_attention, halo_attention_packed_kv
from visionattn.kernels.halo.geometry import make_geometry

pytestmark = pytest.mark.gpu


def _step(batch, height, width, heads=2, d=32, block=8, halo=3, stride=1, dtype=torch.bfloat16):
    """One forward and backward: (q, kv, tables, output)."""
    geometry = make_geometry(block, halo, stride)
    q = torch.randn(batch, *geometry.query_map(height, width), heads, d, device="cuda", dtype=dtype, requires_grad=True)
    kv = torch.randn(batch, height, width, heads, 2 * d, device="cuda", dtype=dtype, requires_grad=True)
    tables = [torch.randn(2 * w - 1, d, device="cuda", requires_grad=True) for w in geometry.window]
    out = halo_attention_packed_kv(q, kv, block, halo, *tables, stride)
    out.backward(torch.randn_like(out))
    return q, kv, tables, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for halo attention, over all kernels and devices."""
    import triton

    from visionattn.kernels.halo import fused
    kernels = {id(x): x for x in vars(fused).values() if isinstance(x, triton.JITFunction)}
    return sum(len(cache[0]) for kernel in kernels.values() for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("block, halo, stride, size, d, dv", [
    (8, 3, 1, (32, 32), 32, 32), (8, 3, 1, (16, 24), 64, 64), (8, 2, 2, (16, 16), 64, 64),
    (8, 3, 1, (29, 19), 32, 32), (10, 3, 1, (20, 20), 32, 32), (12, 2, 1, (24, 12), 32, 32),
    (14, 2, 1, (28, 28), 16, 40), (8, 4, 1, (32, 16), 32, 96), (7, 2, 1, (14, 21), 24, 24),
    (16, 8, 1, (32, 32), 32, 32), (8, 3, 1, (8, 8), 128, 128), (4, 1, 1, (9, 9), 256, 256),
    ((4, 8), (1, 3), (2, 1), (15, 30), 48, 32)])
def test_obeys_the_rule_at_the_sizes_of_models(block, halo, stride, size, d, dv, dtype, poisoned, halo_drawn, halo_all,
                                               rule):
    geometry = make_geometry(block, halo, stride)
    rule(lambda q, k, v, rel_h, rel_w: halo_attention(q, k, v, block, halo, rel_h, rel_w, stride),
         halo_drawn(2, *size, 2, d, dv, geometry, "cuda"), dtype,
         lambda q, k, v, rel_h, rel_w: halo_all(q, k, v, rel_h, rel_w, geometry, d**-0.5))


def test_70000_blocks_in_one_call(poisoned):
    batch = 1100                                                            # of 64 blocks each
    q, kv, tables, out = _step(batch, 32, 32, heads=1, d=16, block=4, halo=1)
    for i in (0, batch - 1):
        again = halo_attention_packed_kv(q[i:i + 1].detach(), kv[i:i + 1].detach(), 4, 1, *tables)
        assert torch.equal(again, out[i:i + 1])
    assert all(x.grad.isfinite().all() for x in (q, kv, *tables))


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    kv = torch.zeros(70, 512, 512, 2, 64, device="cuda", dtype=torch.bfloat16)          # 2.3e9 elements
    q = torch.zeros(70, 256, 256, 2, 32, device="cuda", dtype=torch.bfloat16)
    kv[-1].normal_(), q[-1].normal_()
    tables = torch.randn(2, 27, 32, device="cuda")
    out = halo_attention_packed_kv(q, kv, 8, 3, *tables, 2)
    assert torch.equal(out[-1:], halo_attention_packed_kv(q[-1:].clone(), kv[-1:].clone(), 8, 3, *tables, 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_repeats_are_bitwise_equal(stride):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        q, kv, tables, out = _step(64, 32, 32, stride=stride)
        found.append((out, q.grad, kv.grad, *(t.grad for t in tables)))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("block, halo, stride, sizes", [
    (8, 3, 1, [(2, 16, 24), (64, 8, 8), (1, 40, 33), (3, 3, 5)]), (8, 2, 2, [(2, 16, 16), (33, 8, 8), (1, 21, 50)]),
    (14, 2, 1, [(2, 28, 14), (1, 9, 60)])])
def test_a_new_batch_or_map_compiles_nothing(block, halo, stride, sizes):
    arguments = dict(block=block, halo=halo, stride=stride)
    _step(*sizes[0], **arguments)
    before = _compiled_kernels()
    for size in sizes[1:]:
        _step(*size, **arguments)
    assert _compiled_kernels() == before
    _step(*sizes[0], **arguments, d=40)                                     # and the count counts
    assert _compiled_kernels() > before


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    tables = torch.randn(2, 27, 32, device="cuda", requires_grad=True)

    def step(q, kv):
        return halo_attention_packed_kv(2 * q, kv, 8, 3, *tables).float().square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for height in (8, 16, 23):
        q, kv = (torch.randn(4, height, 12, 2, n, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                 for n in (32, 64))
        found = torch.autograd.grad(compiled(q, kv), [q, kv, tables])
        expected = torch.autograd.grad(step(q, kv), [q, kv, tables])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(q.float(), kv.float()).isfinite()


def test_replays_in_a_cuda_graph():
    q, kv = (torch.randn(2, 16, 16, 2, n, device="cuda", dtype=torch.bfloat16) for n in (32, 64))
    tables = torch.randn(2, 27, 32, device="cuda")
    halo_attention_packed_kv(q, kv, 8, 3, *tables)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = halo_attention_packed_kv(q, kv, 8, 3, *tables)
    kv.normal_()
    graph.replay()
    assert torch.equal(out, halo_attention_packed_kv(q, kv, 8, 3, *tables))
