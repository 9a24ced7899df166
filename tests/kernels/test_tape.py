"""Recordings of a call's host side: they are played, and give what the call itself gives, bit for bit."""
import contextlib
import functools

import pytest
import torch
from torch import Tensor

from visionattn import kernels
from visionattn.kernels import _tape
from visionattn.kernels._register import FUNCTIONS


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[_tape.Tape]:
    """Every recording that is played, once for each time."""
    found, play = [], _tape.Tape.play
    monkeypatch.setattr(_tape.Tape, "play", lambda self, tensors: (found.append(self), play(self, tensors))[1])
    return found


def _equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
        assert torch.equal(x, y)


def test_a_played_call_gives_the_bits_of_the_call_itself(smallest: tuple, fused: str, played: list) -> None:
    case = smallest
    tensors = [case.draw(fused, seed) for seed in range(3)]
    results = [case.results(x) for x in tensors]
    assert len(played) == 2                       # the third call: forward and backward
    _tape.forget()
    by_itself = case.results(tensors[2])
    assert len(played) == 2
    _equal(results[2], by_itself)
    assert not torch.equal(results[1][0], results[2][0])  # other data, so that equality says something


def test_results_of_one_recording_share_no_memory(fused: str, cases: list) -> None:
    case = cases[0]
    tensors = case.draw(fused, 0)
    found = [case.results(tensors) for _ in range(4)]
    addresses = [x.data_ptr() for result in found for x in result]
    assert len(set(addresses)) == len(addresses)
    for result in found[1:]:
        _equal(result, found[0])


def test_views_of_one_tensor_are_played_wherever_they_lie(fused: str, played: list) -> None:
    q, k, v = (torch.randn(1, 2, 2, 1, 16, device=fused) for _ in range(3))
    packed = torch.stack((q, k, v), 3)
    views = packed.unbind(3)
    results = [kernels.neighborhood_attention(*views, 2) for _ in range(3)]
    assert len(played) == 1
    buffer = torch.zeros(1, 2, 2, 5, 1, 16, device=fused)  # the same strides would be wrong here: another layout
    buffer[:, :, :, [0, 3, 1]] = packed
    other = buffer.unbind(3)
    results += [kernels.neighborhood_attention(other[0], other[3], other[1], 2) for _ in range(3)]
    for x in results[1:]:
        assert torch.equal(x, results[0])


def test_the_same_tensor_twice_is_not_mistaken_for_two(fused: str) -> None:
    q, k, v = (torch.randn(1, 2, 2, 1, 16, device=fused) for _ in range(3))
    for _ in range(3):
        same = kernels.neighborhood_attention(q, q, v, 2)
    apart = kernels.neighborhood_attention(q, k, v, 2)
    assert torch.equal(same, kernels.neighborhood_attention(q, q.clone(), v, 2)) and not torch.equal(same, apart)


def test_another_layout_dtype_or_parameter_is_another_call(fused: str) -> None:
    tapes, _ = FUNCTIONS["neighborhood_attention"].tapes
    x = torch.randn(1, 2, 2, 1, 16, device=fused)
    numbers = (2, 2), (1, 1), (1, 1)
    keys = {tapes.key((x, x, x, None), rest) for rest in ((*numbers, 0.25), (*numbers[::-1], 0.25), (*numbers, 0.5))}
    for y in (x.half(), x.transpose(1, 2), torch.randn(2, 2, 2, 1, 16, device=fused)):
        keys.add(tapes.key((y, y, y, None), (*numbers, 0.25)))
    assert len(keys) == 6


def test_float32_products_in_tf32_are_another_call(fused: str) -> None:
    tapes, _ = FUNCTIONS["neighborhood_attention"].tapes
    x = torch.randn(1, 2, 2, 1, 16, device=fused)
    before, keys = torch.backends.cuda.matmul.allow_tf32, set()
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            keys.add(tapes.key((x, x, x, None), ()))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert len(keys) == 2


def test_arguments_are_refused_after_a_recording_too(fused: str, cases: list) -> None:
    case = cases[0]
    tensors = case.draw(fused, 0)
    for _ in range(3):
        case.call(*tensors)
    with pytest.raises(ValueError, match="bias must be"):
        case.call(tensors[0], tensors[1][:, :2])


def test_recordings_are_bounded_in_number(fused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tape, "LIMIT", 3)
    tapes = _tape.Tapes(lambda x: x + 1)
    for n in range(1, 9):
        x = torch.zeros(n, device=fused)
        for _ in range(3):
            assert torch.equal(tapes.run((x,), ()), x + 1)
        assert len(tapes.found) <= 3


def test_a_call_that_writes_into_its_arguments_or_raises_stays_right(fused: str) -> None:
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        made = torch.empty(x.shape, device=x.device)
        made.copy_(x)
        y.add_(1)
        return made.view(-1).sum(0), None

    tapes, y = _tape.Tapes(run), torch.zeros(2, device=fused)
    for n in range(4):
        x = torch.full((3,), float(n), device=fused)
        total, nothing = tapes.run((x, y), ())
        assert total.item() == 3 * n and nothing is None
    assert y.tolist() == [4.0, 4.0]

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("as it is")

    tapes = _tape.Tapes(fail)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="as it is"):
            tapes.run((y,), ())
        assert _tape.recorder() is None


def test_a_backward_call_is_another_where_only_the_gradient_or_what_is_saved_lies_otherwise(fused: str) -> None:
    packed = torch.randn(1, 3, 2, 3, 1, 16, device=fused)
    tensors = [x.requires_grad_() for x in packed.unbind(3)]          # views, whose copies lie closer together
    weights = torch.randn(1, 3, 2, 1, 16, device=fused)

    def gradients(weights: Tensor, copied: bool) -> tuple[Tensor, ...]:
        def pack(x: Tensor) -> Tensor:
            return x.clone(memory_format=torch.contiguous_format)

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with hooks if copied else contextlib.nullcontext():
            out = kernels.neighborhood_attention(*tensors, 2)
        return torch.autograd.grad(out, tensors, weights)

    turned = weights.transpose(1, 2).contiguous().transpose(1, 2)     # equal numbers, other strides
    expected = gradients(weights, False)
    for _ in range(3):
        for given, copied in ((weights, False), (turned, False), (weights, True), (turned, True)):
            _equal(list(gradients(given, copied)), list(expected))


def test_a_backward_call_is_another_where_other_gradients_are_wanted(fused: str, cases: list) -> None:
    case, first = cases[0], None
    for _ in range(4):
        tensors = case.draw(fused, 0)
        everything = case.results(tensors)
        alone, bias = tensors[0].detach().requires_grad_(), tensors[1].detach()
        fewer = case._replace(call=functools.partial(case.call, bias=bias)).results([alone])
        first = first or (everything, fewer)
        _equal(everything, first[0])
        _equal(fewer, first[1])
        torch.testing.assert_close(fewer, everything[:2])         # of other kernels, with other orders of sums


def test_whoever_forgets_recordings_forgets_those_of_graphs_that_live_on(fused: str, cases: list, played: list) -> None:
    case = cases[1]
    tensors = case.draw(fused, 0)
    for _ in range(3):
        expected = case.results(tensors)
    out, before = case.call(*tensors), len(played)
    _tape.forget()
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    _equal(list(torch.autograd.grad(out, tensors, weights)), expected[1:])
    assert len(played) == before
