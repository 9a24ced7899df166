"""The Triton kernels against eager PyTorch: on the GPU where there is one, else under Triton's interpreter."""
import pytest
import torch

from visionattn.kernels import channel_attention, channel_attention_packed
from visionattn.kernels.channel import fused as host
from visionattn.kernels.channel import tuning

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
# batch, height, width, groups, D, tokens of a slice, dtype
CASES = {
    "davit": (2, 7, 7, 3, 32, 4096, BRAIN),
    "chunks": (1, 12, 13, 2, 32, 4096, HALF),
    "single": (2, 9, 8, 2, 32, 4096, SINGLE),
    "one-token": (2, 1, 1, 1, 16, 4096, SINGLE),
    "row": (1, 1, 70, 1, 16, 4096, BRAIN),
    "slices": (2, 9, 11, 2, 32, 40, BRAIN),
    "slices-single": (1, 10, 13, 2, 32, 70, SINGLE),
    "ragged-slices": (1, 9, 7, 2, 24, 25, HALF),
    "many-slices": (1, 11, 9, 1, 16, 9, SINGLE),
    "as-many-slices-as-tokens": (1, 3, 4, 1, 16, 1, SINGLE),
    "d8": (2, 6, 7, 2, 8, 4096, HALF),
    "d24": (1, 8, 9, 3, 24, 4096, SINGLE),
    "d48": (2, 7, 6, 1, 48, 20, BRAIN),
    "d64": (1, 9, 9, 2, 64, 4096, HALF),
    "d128": (1, 5, 9, 1, 128, 30, BRAIN),
    "d100": (1, 6, 7, 1, 100, 4096, SINGLE),
}
EVERY = [(d, tokens, dtype) for d in (8, 24, 32, 48, 64, 128) for dtype in (HALF, BRAIN, SINGLE)
         for tokens in (4096, 50)]


def _attend(q, k, v, scale=None):
    """The op on tensors [B, H, W, groups, D]."""
    return channel_attention(*(x.flatten(3) for x in (q, k, v)), q.shape[3], scale).unflatten(3, q.shape[3:])


@pytest.mark.parametrize("case", CASES)
def test_obeys_the_rule_forward_and_in_every_gradient(case, fused, poisoned, drawn, channels_eager, rule, monkeypatch):
    *shape, d, tokens, dtype = CASES[case]
    monkeypatch.setattr(tuning, "SLICE", tokens)
    rule(_attend, drawn(*shape, d, d, None, fused), dtype, lambda q, k, v: channels_eager(q, k, v, d**-0.5))


@pytest.mark.slow
@pytest.mark.parametrize("d, tokens, dtype", EVERY, ids=str)
def test_obeys_the_rule_for_every_head_dimension_and_dtype(d, tokens, dtype, fused, poisoned, drawn, channels_eager,
                                                           rule, monkeypatch):
    monkeypatch.setattr(tuning, "SLICE", tokens)
    rule(_attend, drawn(2, 9, 13, 2, d, d, None, fused), dtype, lambda q, k, v: channels_eager(q, k, v, d**-0.5))


@pytest.mark.parametrize("tokens", [1, 7, 4096, 4097, 16384, 65536, 1000000])
def test_slices_cover_a_map_and_are_bounded(tokens):
    slices, size = host.cut(tokens)
    assert (slices - 1) * size < tokens <= slices * size
    assert slices <= tuning.SLICES and (slices == 1) == (tokens <= tuning.SLICE)


@pytest.mark.parametrize("tokens", [4096, 5, 1], ids=["whole", "slices", "many-slices"])
def test_repeats_and_images_alone_are_bitwise_equal(tokens, fused, drawn, results, monkeypatch):
    monkeypatch.setattr(tuning, "SLICE", tokens)
    tensors = {name: x.float() for name, x in drawn(2, 3, 3, 1, 16, 16, None, fused).items()}
    grad = torch.randn(tensors["q"].shape, device=fused)
    first, second = (results(_attend, tensors, grad) for _ in range(2))
    alone = results(_attend, {name: x[1:] for name, x in tensors.items()}, grad[1:])
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        assert torch.equal(value[1:], alone[name]), name


@pytest.mark.parametrize("tokens", [4096, 20])
def test_packed_equals_separate_bit_for_bit(tokens, fused, poisoned, results, monkeypatch):
    monkeypatch.setattr(tuning, "SLICE", tokens)
    qkv, grad = torch.randn(2, 5, 7, 3 * 32, device=fused), torch.randn(2, 5, 7, 32, device=fused)
    packed = results(lambda qkv: channel_attention_packed(qkv, 2), {"qkv": qkv}, grad)
    q, k, v = (x.contiguous() for x in qkv.chunk(3, -1))
    apart = results(lambda q, k, v: channel_attention(q, k, v, 2), dict(q=q, k=k, v=v), grad)
    assert torch.equal(packed["out"], apart["out"]) and packed["out"].is_contiguous()
    assert torch.equal(packed["dqkv"], torch.cat([apart["dq"], apart["dk"], apart["dv"]], 3))
    assert packed["dqkv"].is_contiguous()


def test_any_strides_are_read_in_place_or_copied(fused, poisoned, results):
    wide = torch.randn(2, 9, 6, 3, 64, device=fused)
    grad = torch.randn(2, 4, 6, 32, device=fused)
    rows_apart = dict(zip("qkv", wide[:, 1:9:2, :, :, 16:48].unbind(3), strict=True))
    columns_apart = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in rows_apart.items()}
    turned = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in rows_apart.items()}
    plain = {name: x.contiguous() for name, x in rows_apart.items()}

    def call(q, k, v):
        return channel_attention(q, k, v, 2)

    expected = results(call, plain, grad)
    for tensors in (rows_apart, columns_apart, turned):
        for name, value in results(call, tensors, grad).items():
            assert torch.equal(value, expected[name]), name
    expanded = results(call, plain, torch.ones((), device=fused).expand(grad.shape))   # what out.sum().backward() sends
    assert all(x.isfinite().all() for x in expanded.values())


@pytest.mark.parametrize("scale", [0.0, -0.5, 3.0])
def test_any_scale(scale, fused, poisoned, drawn, channels_eager, rule):
    rule(lambda q, k, v: _attend(q, k, v, scale), drawn(4, 5, 6, 2, 16, 16, None, fused), SINGLE,
         lambda q, k, v: channels_eager(q, k, v, scale))


def test_large_logits_do_not_overflow(fused, poisoned, results):
    q = 1e4 * torch.randn(1, 6, 7, 16, device=fused)
    found = results(lambda q, k, v: channel_attention(q, k, v, 1), dict(q=q, k=q, v=q), torch.ones_like(q))
    assert all(x.isfinite().all() for x in found.values())


def test_an_empty_batch(fused, results):
    found = results(lambda qkv: channel_attention_packed(qkv, 2), {"qkv": torch.empty(0, 5, 5, 96, device=fused)},
                    torch.empty(0, 5, 5, 32, device=fused))
    assert found["out"].shape == (0, 5, 5, 32) and found["dqkv"].shape == (0, 5, 5, 96)


def test_only_what_is_asked_for_gets_a_gradient(fused):
    q, k, v = (torch.randn(1, 5, 5, 16, device=fused) for _ in range(3))
    channel_attention(q, k.requires_grad_(), v, 1).sum().backward()
    assert q.grad is None and v.grad is None and k.grad is not None


def test_a_graph_of_the_gradient_equals_the_references(fused, drawn, channels_eager):
    tensors = [x.float().requires_grad_() for x in drawn(1, 4, 5, 1, 8, 8, None, fused).values()]

    def penalty(function):
        once = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in once), tensors)

    for name, x, y in zip("qkv", penalty(_attend), penalty(lambda *t: channels_eager(*t, 8**-0.5)), strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm(), name
