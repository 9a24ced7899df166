"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import varied_window_attention, varied_window_attention_packed
from visionattn.kernels.window.geometry import make_geometry

pytestmark = pytest.mark.gpu


def _step(batch, height, width, heads=2, d=32, window=7, spread=1.0, dtype=torch.bfloat16):
    """One forward and backward: (qkv, places, table, output)."""
    qkv = torch.randn(batch, height, width, 3, heads, d, device="cuda", dtype=dtype, requires_grad=True)
    places = spread * torch.randn(batch, -(-height // window), -(-width // window), heads, 4, device="cuda")
    table = torch.randn(heads, 2 * window - 1, 2 * window - 1, device="cuda", requires_grad=True)
    out = varied_window_attention_packed(qkv, window, places.requires_grad_(), table)
    out.backward(torch.randn_like(out))
    return qkv, places, table, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for varied windows, over all kernels and devices."""
    import triton

    from visionattn.kernels.varied_window import fused
    kernels = {id(x): x for x in vars(fused).values() if isinstance(x, triton.JITFunction)}
    return sum(len(cache[0]) for kernel in kernels.values() for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("window, spread, size, d, dv", [
    (7, 1.0, (28, 28), 32, 32), (7, 0.0, (28, 28), 32, 32), (7, 4.0, (28, 21), 32, 32), (7, 1.0, (29, 19), 32, 32),
    (7, 1.0, (7, 7), 64, 64), (8, 1.0, (32, 16), 32, 32), (4, 2.0, (16, 24), 16, 48), ((3, 9), 1.0, (15, 30), 48, 32),
    (7, 1.0, (14, 14), 128, 128), (2, 3.0, (26, 30), 24, 24)])
def test_obeys_the_rule_at_the_sizes_of_models(window, spread, size, d, dv, dtype, poisoned, varied_drawn, varied_eager,
                                               rule):
    if dtype == torch.float32 and d > 64:
        pytest.skip("runs the reference")
    geometry = make_geometry(window)
    rule(lambda q, k, v, sampling, bias: varied_window_attention(q, k, v, window, sampling, bias),
         varied_drawn(2, *size, 2, d, dv, geometry, "cuda", "table", spread), dtype,
         lambda q, k, v, sampling, bias: varied_eager(q, k, v, sampling, bias, geometry, d**-0.5))


def test_70000_windows_in_one_call(poisoned):
    batch = 1100                                                            # of 64 windows each
    qkv, places, table, out = _step(batch, 32, 32, heads=1, d=16, window=4)
    for i in (0, batch - 1):
        again = varied_window_attention_packed(qkv[i:i + 1].detach(), 4, places[i:i + 1].detach(), table)
        assert torch.equal(again, out[i:i + 1])
    assert all(x.grad.isfinite().all() for x in (qkv, places, table))


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    qkv = torch.zeros(48, 512, 512, 3, 2, 32, device="cuda", dtype=torch.bfloat16)          # 2.4e9 elements
    qkv[-1].normal_()
    qkv.requires_grad_()
    places = torch.randn(48, 74, 74, 2, 4, device="cuda", requires_grad=True)
    out = varied_window_attention_packed(qkv, 7, places)
    last = qkv.detach()[-1:].clone().requires_grad_()
    expected = varied_window_attention_packed(last, 7, places[-1:])
    assert torch.equal(out[-1:], expected)
    grad = torch.zeros_like(out)
    grad[-1].normal_()
    found = torch.autograd.grad(out, qkv, grad)[0]
    assert torch.equal(found[-1:], torch.autograd.grad(expected, last, grad[-1:])[0])


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_repeats_are_bitwise_equal(spread):
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        *leaves, out = _step(64, 28, 28, spread=spread)
        found.append((out, *(x.grad for x in leaves)))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_a_new_batch_or_map_compiles_nothing():
    _step(2, 28, 21)
    before = _compiled_kernels()
    for size in ((64, 7, 7), (1, 40, 33), (3, 3, 5)):
        _step(*size)
    assert _compiled_kernels() == before
    _step(2, 28, 21, d=40)                                                  # and the count counts
    assert _compiled_kernels() > before


def test_memory_of_the_backward_is_a_copy_of_k_and_v():
    qkv, places, table, out = _step(64, 56, 56, heads=3)
    del out
    qkv.grad = places.grad = table.grad = None
    out = varied_window_attention_packed(qkv, 7, places, table)
    grad = torch.randn_like(out)
    torch.cuda.synchronize()
    before, unit = torch.cuda.memory_allocated(), out.numel() * out.element_size()
    torch.cuda.reset_peak_memory_stats()
    gradients = torch.autograd.grad(out, (qkv, places, table), grad)
    torch.cuda.synchronize()
    taken = torch.cuda.max_memory_allocated() - before
    assert gradients[0].shape == qkv.shape
    assert taken <= 6 * unit, f"{taken / unit:.2f} times q"                 # its gradient 3, samples' gradients 2


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    table = torch.randn(2, 13, 13, device="cuda", requires_grad=True)
    linear = torch.nn.Linear(32, 4, device="cuda")

    def step(qkv):
        places = linear(qkv[:, ::7, ::7, 0].float())
        return varied_window_attention_packed(2 * qkv, 7, places, table).float().square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for height in (14, 21, 23):
        qkv = torch.randn(4, height, 12, 3, 2, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        leaves = [qkv, table, *linear.parameters()]
        found, expected = (torch.autograd.grad(f(qkv), leaves) for f in (compiled, step))
        for x, y in zip(found, expected, strict=True):
            assert (x - y).norm() <= 1e-2 * y.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(qkv.float()).isfinite()


def test_replays_in_a_cuda_graph():
    qkv = torch.randn(2, 14, 14, 3, 2, 32, device="cuda", dtype=torch.bfloat16)
    places = torch.randn(2, 2, 2, 2, 4, device="cuda")
    varied_window_attention_packed(qkv, 7, places)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = varied_window_attention_packed(qkv, 7, places)
    qkv.normal_(), places.normal_()
    graph.replay()
    assert torch.equal(out, varied_window_attention_packed(qkv, 7, places))


def test_the_model_trains_on_the_fused_kernels_without_a_warning():
    import warnings

    import timm

    import visionattn  # noqa: F401
    model = timm.create_model("vsa_swin_tiny", num_classes=7).cuda()
    with warnings.catch_warnings(), torch.autocast("cuda", torch.bfloat16):
        warnings.filterwarnings("error", message=".*runs its reference")
        model(torch.randn(2, 3, 97, 130, device="cuda")).float().square().mean().backward()
    places = [p for name, p in model.named_parameters() if ".places." in name]
    assert all(p.grad.isfinite().all() for p in model.parameters()) and any(p.grad.any() for p in places)
