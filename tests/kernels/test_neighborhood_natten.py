"""NATTEN as another implementation: taken where it is asked for, refused with the reason, equal where it runs."""
import importlib.util
import random
from typing import NamedTuple

import pytest
import torch

from visionattn.kernels import explain, neighborhood_attention, neighborhood_attention_packed
from visionattn.kernels.neighborhood import natten, reference
from visionattn.kernels.neighborhood.geometry import Geometry, make_geometry

needs_natten = pytest.mark.skipif(importlib.util.find_spec("natten") is None, reason="natten is not installed")


def _qkv(device="cpu", shape=(1, 5, 5, 1, 16), dtype=torch.float32):
    return [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]


def test_an_unknown_backend_is_named(monkeypatch):
    with pytest.raises(ValueError, match="backend must be one of fused, reference, natten, got 'flash'"):
        neighborhood_attention(*_qkv(), 3, backend="flash")
    monkeypatch.setattr(natten, "ASKED", "flash")
    with pytest.raises(ValueError, match="VISIONATTN_NEIGHBORHOOD_BACKEND must be one of .*, got 'flash'"):
        neighborhood_attention(*_qkv(), 3)


def test_a_backend_that_cannot_take_the_call_says_why(monkeypatch):
    monkeypatch.setattr(natten, "INSTALLED", False)
    with pytest.raises(ValueError, match="backend 'natten' cannot take this call: natten is not installed"):
        neighborhood_attention(*_qkv(), 3, backend="natten")
    with pytest.raises(ValueError, match="backend 'fused' cannot take this call: the fused kernels need a CUDA device"):
        neighborhood_attention(*_qkv(), 3, backend="fused")


@pytest.mark.parametrize("change, reason", [
    (dict(bias=torch.zeros(1, 5, 5)), "no relative bias"),
    (dict(dtype=torch.float64), "dtype torch.float64"),
    (dict(kernel=(1, 3)), "begin at 2"),
    (dict(grad=True), "no gradients on a CPU"),
], ids=["bias", "dtype", "kernel", "gradients"])
def test_natten_refuses_with_the_reason(change, reason, monkeypatch):
    monkeypatch.setattr(natten, "INSTALLED", True)
    q, k, v = _qkv(dtype=change.get("dtype", torch.float32))
    q.requires_grad_(change.get("grad", False))
    geometry = Geometry(change.get("kernel", (3, 3)), (1, 1), (1, 1))
    assert reason in natten.refuses(q, k, v, change.get("bias"), None, None, geometry)


def test_the_variable_asks_only_where_it_can_be_had(monkeypatch):
    monkeypatch.setattr(natten, "INSTALLED", True)
    monkeypatch.setattr(natten, "ASKED", "natten")
    q, k, v = _qkv()
    bias = torch.zeros(1, 5, 5)
    usual = neighborhood_attention(q, k, v, 3, bias=bias)      # NATTEN has no bias: as if nothing had been asked
    monkeypatch.setattr(natten, "ASKED", None)
    assert torch.equal(usual, neighborhood_attention(q, k, v, 3, bias=bias))


def test_the_reference_can_be_asked_for_where_the_kernels_could_run(fused):
    q, k, v = _qkv(fused, (1, 2, 2, 1, 16))
    found = neighborhood_attention(q, k, v, 2, backend="reference")
    assert torch.equal(found, reference.neighborhood_attention(q, k, v, None, make_geometry(2, 1, 1), 0.25))
    assert explain("neighborhood_attention", q, k, v, 2, backend="reference").runs == "reference"
    assert explain("neighborhood_attention", q, k, v, 2, backend="fused").runs == "fused (triton)"
    packed = torch.stack((q, k, v), 3)
    assert torch.equal(found, neighborhood_attention_packed(packed, 2, backend="reference"))


def test_explain_says_why_natten_does_not_run(monkeypatch):
    monkeypatch.setattr(natten, "INSTALLED", False)
    assert "natten: natten is not installed" in str(explain("neighborhood_attention", *_qkv(), 3))
    monkeypatch.setattr(natten, "INSTALLED", True)
    assert "natten: it was measured faster on" in str(explain("neighborhood_attention", *_qkv(), 3))


@pytest.mark.parametrize("change", [dict(is_causal=(False, True)), dict(extra=True)], ids=["causal", "extra"])
def test_natten_is_taken_only_where_it_was_measured(change, monkeypatch):
    monkeypatch.setattr(natten, "INSTALLED", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    class OnAnH200(NamedTuple):
        is_cuda: bool = True
        device: str = "cuda"
        dtype: torch.dtype = torch.bfloat16
        shape: tuple = (1, 256, 256, 24, 128)
        requires_grad: bool = False

    q, extra = OnAnH200(), torch.empty(0) if change.get("extra") else None
    plain, other = make_geometry(80, 1, 16), make_geometry(80, 1, 16, change.get("is_causal", False))
    assert natten.loses(q, q, q, None, None, None, plain) is None
    assert "strides of 16" in natten.loses(q, q, q, None, None, None, make_geometry(80, 1, 8))
    trained = q._replace(requires_grad=True)
    assert "without gradients" in natten.loses(trained, q, q, None, None, None, plain)
    with torch.no_grad():
        assert natten.loses(trained, q, q, None, None, None, plain) is None
    assert "without causality and extra tokens" in natten.loses(q, q, q, None, extra, extra, other)


def _drawn(seed: int, causal: bool = False) -> tuple[tuple[int, int], Geometry]:
    draw = random.Random(seed)
    axes = []
    for _ in range(2):
        kernel, dilation = draw.randint(2, 6), draw.randint(1, 3)
        axes.append((kernel, dilation, draw.randint(1, kernel), kernel * dilation + draw.randint(0, 7)))
    kernel, dilation, stride, size = zip(*axes)
    which = draw.choice([(True, False), (False, True), (True, True)]) if causal else False
    return size, make_geometry(kernel, dilation, stride, which)


@needs_natten
@pytest.mark.parametrize("seed", range(24))
def test_natten_computes_the_same(seed):
    """Forward on any device: strides, dilations that do not divide the map, odd and even kernels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, geometry = _drawn(seed)
    q, k, v = _qkv(device, (2, *size, 2, 32))
    with torch.no_grad():
        found = neighborhood_attention(q, k, v, *geometry[:3], backend="natten")
        eager = neighborhood_attention(q, k, v, *geometry[:3], backend="reference")
        exact = neighborhood_attention(*(x.double() for x in (q, k, v)), *geometry[:3], backend="reference")
    # NATTEN's float32 products are in TF32 on a GPU, ten bits each
    allowed = 2 * (eager - exact).abs().max().item() if device == "cpu" else 2.0**-10 * v.abs().max().item()
    assert (found - exact).abs().max().item() <= max(allowed, 1e-6)


@needs_natten
@pytest.mark.parametrize("tokens", [0, 5])
@pytest.mark.parametrize("seed", range(12))
def test_natten_computes_the_same_looking_back_only_and_with_extra_tokens(seed, tokens):
    """Forward on a CPU: causal axes under drawn strides and dilations, tokens of the same softmax."""
    size, geometry = _drawn(seed, causal=seed % 3 > 0)
    tensors = dict(zip("qkv", _qkv("cpu", (2, *size, 2, 32)), strict=True))
    if tokens:
        tensors |= dict(extra_k=torch.randn(2, tokens, 2, 32), extra_v=torch.randn(2, tokens, 2, 32))

    def call(backend, dtype=torch.float32):
        given = {name: x.to(dtype) for name, x in tensors.items()}
        return neighborhood_attention(**given, kernel_size=geometry.kernel, dilation=geometry.dilation,
                                      stride=geometry.stride, is_causal=geometry.causal, backend=backend)

    with torch.no_grad():
        found, eager, exact = call("natten"), call("reference"), call("reference", torch.float64)
    assert (found - exact).abs().max().item() <= max(2 * (eager - exact).abs().max().item(), 1e-6)


@needs_natten
@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
def test_natten_gives_the_same_gradients_on_a_gpu(seed):
    size, geometry = _drawn(seed)
    q, k, v = (x.requires_grad_() for x in _qkv("cuda", (2, *size, 2, 32), torch.float16))
    results = []
    for backend, cast in (("natten", lambda x: x), ("fused", lambda x: x), ("reference", torch.Tensor.double)):
        out = neighborhood_attention(cast(q), cast(k), cast(v), *geometry[:3], backend=backend)
        weights = torch.linspace(-1, 1, out.numel(), device="cuda", dtype=out.dtype).view(out.shape)
        results.append([out, *torch.autograd.grad(out, (q, k, v), weights)])
    for theirs, ours, exact in zip(*results):
        size, errors = exact.abs().max().item(), [(x.double() - exact).abs().max().item() for x in (theirs, ours)]
        assert errors[0] <= max(2 * errors[1], 2.0**-10 * size)   # what rounding once to float16 may cost at least
