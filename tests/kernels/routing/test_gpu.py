"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import routed_attention, routed_attention_packed_qk

pytestmark = pytest.mark.gpu


def _drawn_routes(batch, regions, topk):
    return torch.rand(batch, regions**2, regions**2, device="cuda").topk(topk, -1).indices


def _step(batch, height, width, heads=2, d=32, regions=7, topk=4, dtype=torch.bfloat16):
    """One forward and backward: (qk, v, routes, output)."""
    qk, v = (torch.randn(batch, height, width, *more, heads, d, device="cuda", dtype=dtype, requires_grad=True)
             for more in ((2,), ()))
    routes = _drawn_routes(batch, regions, topk)
    out = routed_attention_packed_qk(qk, v, routes, regions)
    out.backward(torch.randn_like(out))
    return qk, v, routes, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for routed attention, over all kernels and devices."""
    import triton

    from visionattn.kernels.routing import fused
    kernels = {id(x): x for x in vars(fused).values() if isinstance(x, triton.JITFunction)}
    return sum(len(cache[0]) for kernel in kernels.values() for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size, regions, topk, d, dv", [
    ((56, 56), 7, 1, 32, 32), ((28, 28), 7, 4, 32, 32), ((14, 14), 7, 16, 32, 32), ((70, 35), 7, 4, 32, 32),
    ((35, 21), 7, 16, 32, 32), ((57, 41), 7, 4, 32, 32), ((24, 24), 3, 5, 64, 64), ((20, 31), 4, 3, 24, 40),
    ((16, 16), 2, 4, 128, 128), ((8, 9), 3, 2, 256, 256), ((7, 7), 7, 16, 48, 48), ((40, 40), 20, 9, 16, 16)])
def test_obeys_the_rule_at_the_sizes_of_models(size, regions, topk, d, dv, dtype, poisoned, drawn, routes_drawn,
                                               routed_all, rule):
    routes = routes_drawn(2, (regions, regions), topk, "distinct", "cuda")
    rule(lambda q, k, v: routed_attention(q, k, v, routes, regions, d**-0.5),
         drawn(2, *size, 2, d, dv, None, "cuda"), dtype,
         lambda q, k, v: routed_all(q, k, v, routes, (regions, regions), d**-0.5))


@pytest.mark.parametrize("kind", ["any", "popular"])
@pytest.mark.parametrize("size", [(56, 56), (28, 28), (14, 14), (61, 33)])
def test_obeys_the_rule_where_all_route_to_the_same_or_repeat_themselves(size, kind, poisoned, drawn, routes_drawn,
                                                                         routed_all, rule):
    routes = routes_drawn(2, (7, 7), 6, kind, "cuda")
    rule(lambda q, k, v: routed_attention(q, k, v, routes, 7, 0.2), drawn(2, *size, 2, 32, 32, None, "cuda"),
         torch.bfloat16, lambda q, k, v: routed_all(q, k, v, routes, (7, 7), 0.2))


def test_70000_regions_in_one_call(poisoned):
    batch = 1430                                                            # of 49 regions each
    qk, v, routes, out = _step(batch, 14, 14, heads=1, d=16)
    for i in (0, batch - 1):
        again = routed_attention_packed_qk(qk[i:i + 1].detach(), v[i:i + 1].detach(), routes[i:i + 1], 7)
        assert torch.equal(again, out[i:i + 1])
    assert qk.grad.isfinite().all() and v.grad.isfinite().all()


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    qk = torch.zeros(72, 490, 490, 2, 2, 32, device="cuda", dtype=torch.bfloat16)       # 2.2e9 elements
    v = torch.zeros(72, 490, 490, 2, 32, device="cuda", dtype=torch.bfloat16)
    qk[-1].normal_(), v[-1].normal_()
    routes = _drawn_routes(72, 7, 1)
    out = routed_attention_packed_qk(qk, v, routes, 7)
    assert torch.equal(out[-1:], routed_attention_packed_qk(qk[-1:].clone(), v[-1:].clone(), routes[-1:], 7))


@pytest.mark.parametrize("size, topk", [(56, 1), (28, 4), (14, 16)])
def test_repeats_are_bitwise_equal(size, topk):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        qk, v, _, out = _step(64, size, size, topk=topk)
        found.append((out, qk.grad, v.grad))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("sizes", [[(2, 14, 28), (64, 7, 14), (1, 21, 28)], [(2, 35, 35), (5, 42, 28)],
                                   [(2, 56, 63), (3, 84, 49), (1, 140, 133)], [(2, 15, 17), (3, 20, 26)]])
def test_a_new_batch_or_a_map_of_alike_regions_compiles_nothing(sizes):
    _step(*sizes[0])
    before = _compiled_kernels()
    for size in sizes[1:]:
        _step(*size)
    assert _compiled_kernels() == before
    _step(*sizes[0], d=40)                                                  # and the count counts
    assert _compiled_kernels() > before
    torch.cuda.synchronize()


def test_whatever_the_maps_there_are_few_kinds_of_kernels():
    _step(1, 7, 7, d=24)
    before = _compiled_kernels()
    for height in range(7, 150, 11):
        for width in (14, 50, 91):
            _step(1, height, width, d=24)
    assert _compiled_kernels() - before <= 3 * 2 * 3                        # passes, cut or not, tiles


def test_memory_is_the_outputs_and_the_gradients():
    qk = torch.randn(32, 28, 28, 2, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    v = torch.randn(32, 28, 28, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    routes, grad = _drawn_routes(32, 7, 16), torch.randn_like(v)

    def step():
        return torch.autograd.grad(routed_attention_packed_qk(qk, v, routes, 7), [qk, v], grad)

    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    unit = v.numel() * v.element_size()
    assert torch.cuda.max_memory_allocated() - before <= 4.5 * unit         # out, dqk, dv; lse, delta and lists


def _layers_step(qk, v):
    """What a layer does, its choice of regions included: of whole numbers, so that no rounding makes it another one."""
    means = qk[:, :, :, 0].detach().float().sign().flatten(3).unflatten(1, (7, -1)).unflatten(3, (7, -1)).sum((2, 4))
    means = means.flatten(1, 2)
    affinity = 64 * (means @ means.transpose(1, 2)) + torch.arange(49, device=qk.device)    # no two are alike
    routes = affinity.topk(4).indices
    return routed_attention_packed_qk(2 * qk, v, routes, 7).float().square().sum()


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    compiled = torch.compile(_layers_step, fullgraph=True)
    for height in (14, 28, 21):
        qk, v = (torch.randn(4, height, 14, *more, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                 for more in ((2,), ()))
        found = torch.autograd.grad(compiled(qk, v), [qk, v])
        expected = torch.autograd.grad(_layers_step(qk, v), [qk, v])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(qk.float(), v.float()).isfinite()


def test_trains_under_the_cuda_graphs_of_torch_compile(fresh_compiler):
    compiled = torch.compile(_layers_step, mode="reduce-overhead")
    for _ in range(4):                                                      # warm-up, capture, replay
        qk, v = (torch.randn(4, 14, 14, *more, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                 for more in ((2,), ()))
        found = [x.clone() for x in torch.autograd.grad(compiled(qk, v), [qk, v])]
        expected = torch.autograd.grad(_layers_step(qk, v), [qk, v])
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()


def test_runs_on_a_device_that_is_not_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    q = torch.randn(1, 8, 8, 1, 32, device="cuda:1", requires_grad=True)
    routed_attention(q, q, q, torch.zeros(1, 4, 1, device="cuda:1", dtype=torch.long), 2).sum().backward()
    assert q.grad.isfinite().all()


def test_replays_in_a_cuda_graph():
    qk, v, routes, _ = (x.detach() for x in _step(2, 28, 28))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = routed_attention_packed_qk(qk, v, routes, 7)
    qk.normal_()
    routes.copy_(_drawn_routes(2, 7, 4))
    graph.replay()
    assert torch.equal(out, routed_attention_packed_qk(qk, v, routes, 7))
