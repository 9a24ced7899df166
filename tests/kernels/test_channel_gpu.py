"""What only a GPU can show: sizes, memory, launches, compilation."""
import pytest
import torch

from visionattn.kernels import channel_attention_packed

pytestmark = pytest.mark.gpu


def _step(batch, height, width, groups=2, d=32, dtype=torch.bfloat16):
    """One forward and backward: (qkv, output)."""
    qkv = torch.randn(batch, height, width, 3 * groups * d, device="cuda", dtype=dtype, requires_grad=True)
    out = channel_attention_packed(qkv, groups)
    out.backward(torch.randn_like(out))
    return qkv, out


def _compiled_kernels() -> int:
    """How many compiled kernels Triton holds for channel attention, over all devices."""
    from visionattn.kernels.channel import fused
    return sum(len(cache[0]) for kernel in (fused.FORWARD, fused.BACKWARD) for cache in kernel.device_caches.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size, groups, d", [
    ((56, 56), 3, 32), ((28, 28), 6, 32), ((14, 14), 12, 32), ((7, 7), 24, 32), ((128, 128), 3, 32), ((61, 90), 2, 24),
    ((33, 40), 2, 64), ((90, 50), 1, 128), ((300, 250), 1, 32), ((11, 13), 3, 8)])
def test_obeys_the_rule_at_the_sizes_of_models(size, groups, d, dtype, poisoned, drawn, channels_eager, rule):
    # logits grow with the root of the tokens; this keeps the softmax as soft as a model's
    scale = (size[0] * size[1]) ** -0.5

    def attend(q, k, v):
        packed = torch.cat([x.flatten(3) for x in (q, k, v)], 3)
        return channel_attention_packed(packed, groups, scale).unflatten(3, (groups, d))

    rule(attend, drawn(2, *size, groups, d, d, None, "cuda"), dtype, lambda q, k, v: channels_eager(q, k, v, scale))


def test_70000_images_in_one_call(poisoned):
    qkv, out = _step(70000, 3, 3, groups=1, d=16)
    for i in (0, 69999):
        one = qkv[i:i + 1].detach().requires_grad_()
        assert torch.equal(channel_attention_packed(one, 1), out[i:i + 1])
    assert qkv.grad.isfinite().all()


def test_more_than_2_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    if free < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    qkv = torch.zeros(46, 512, 512, 3 * 64, device="cuda", dtype=torch.bfloat16)      # 2.3e9 elements
    qkv[-1].normal_()
    out = channel_attention_packed(qkv, 2)
    assert torch.equal(out[-1:], channel_attention_packed(qkv[-1:].clone(), 2))


@pytest.mark.parametrize("size", [(56, 56), (128, 128), (200, 304)])
def test_repeats_and_images_alone_are_bitwise_equal(size):
    results = []
    for batch in (3, 3, 1):
        torch.manual_seed(0)
        qkv = torch.randn(3, *size, 96, device="cuda", dtype=torch.bfloat16)[:batch].requires_grad_()
        grad = torch.randn(3, *size, 32, device="cuda", dtype=torch.bfloat16)[:batch]
        out = channel_attention_packed(qkv, 1)
        out.backward(grad)
        results.append((out, qkv.grad))
    for first, second, alone in zip(*results, strict=True):
        assert torch.equal(first, second) and torch.equal(first[:1], alone)


@pytest.mark.parametrize("sizes", [[(2, 14, 21), (64, 7, 7), (1, 56, 56)], [(1, 80, 80), (2, 65, 64), (1, 300, 300)]],
                         ids=["whole", "slices"])
def test_a_new_batch_or_map_compiles_nothing(sizes):
    _step(*sizes[0])
    before = _compiled_kernels()
    for size in sizes[1:]:
        _step(*size)
    assert _compiled_kernels() == before
    _step(*sizes[0], d=40)                                     # and the count counts
    assert _compiled_kernels() > before


def test_the_packed_route_holds_its_inputs_outputs_and_little_more():
    batch, groups, d, size = 128, 3, 32, (56, 56)
    _step(2, *size, groups=groups)                               # whatever is allocated once
    torch.cuda.synchronize()
    qkv = torch.randn(batch, *size, 3 * groups * d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(batch, *size, groups * d, device="cuda", dtype=torch.bfloat16)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    channel_attention_packed(qkv, groups).backward(grad)
    peak = torch.cuda.max_memory_allocated() - before
    one = grad.numel() * grad.element_size()
    assert peak <= 4 * one + batch * groups * d * d * 4 + (8 << 20)     # out, dqkv, and the weights


def test_compiles_whole_with_inductor_and_dynamic_sizes(fresh_compiler):
    def step(qkv):
        return channel_attention_packed(2 * qkv, 2, 0.02).float().square().sum()

    compiled = torch.compile(step, fullgraph=True)
    for height in (9, 16, 90):
        qkv = torch.randn(4, height, 60, 192, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        (found,), (expected,) = (torch.autograd.grad(function(qkv), [qkv]) for function in (compiled, step))
        assert (found - expected).norm() <= 1e-2 * expected.norm()
    with torch.autocast("cuda", torch.bfloat16):
        assert compiled(qkv.float()).isfinite()


@pytest.mark.parametrize("side", [14, 90])
def test_replays_in_a_cuda_graph(side):
    qkv = torch.randn(2, side, side, 192, device="cuda", dtype=torch.bfloat16)
    channel_attention_packed(qkv, 2)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = channel_attention_packed(qkv, 2)
    qkv.normal_()
    graph.replay()
    assert torch.equal(out, channel_attention_packed(qkv, 2))
