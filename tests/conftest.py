"""What all tests share: skips that say why, and Triton's interpreter where there is no GPU."""
import importlib.util
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:  # Triton reads it when it is first imported, which no test module does before this file
    os.environ.setdefault("TRITON_INTERPRET", "1")

from visionattn import kernels  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not HAS_GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
            elif item.path.name == "test_register.py" and _interpreted(item) and "neighborhood" not in item.name:
                item.add_marker(pytest.mark.slow)  # registration is one mechanism: one op's kernels stand for all


def _interpreted(item: pytest.Item) -> bool:
    """Whether a test of registration runs kernels under Triton's interpreter."""
    chosen = getattr(getattr(item, "callspec", None), "params", {})
    return chosen["route"] == "fused" if "route" in chosen else "fused" in item.fixturenames


@pytest.fixture
def device() -> str:
    """The GPU where there is one."""
    return "cuda" if HAS_GPU else "cpu"


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` and its kin return NaN, so that whatever is left unwritten shows."""

    def poison(original):
        def fill(*args, **kwargs):
            x = original(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x
        return fill

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"),
                        (torch.Tensor, "new_empty"), (torch.Tensor, "new_empty_strided")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture(scope="session")
def interpreter() -> Iterator[None]:
    """Triton's interpreter, faster and the same on every processor.

    It prepares the language once a launch, and not for each call of a function from a kernel too: that is half of its
    time. What a launch has prepared lasts until the end of this launch. And its products are :func:`_dot`'s.
    """
    if HAS_GPU or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton import language
    from triton.runtime import interpreter
    prepare, prepared, dot = interpreter._patch_lang, set(), interpreter.InterpreterBuilder.create_dot

    class Launch(NamedTuple):
        scope: object

        def restore(self) -> None:
            prepared.clear()
            self.scope.restore()

    def prepare_once(function: Callable) -> Launch | None:      # calls from a kernel make no use of what it returns
        names = tuple(x is language for x in function.__globals__.values() if x is language or x is language.core)
        if names in prepared:
            return None
        prepared.add(names)
        return Launch(prepare(function))

    interpreter._patch_lang, interpreter.InterpreterBuilder.create_dot = prepare_once, _dot
    yield
    interpreter._patch_lang, interpreter.InterpreterBuilder.create_dot = prepare, dot


def _dot(self: object, a: Any, b: Any, accumulator: Any, input_precision: object, max_num_imprecise_acc: int) -> Any:
    """`tl.dot` under the interpreter, rounding after every 16 products, whichever operand comes first.

    BLAS may add q k^T in another order than k q^T, which no GPU does and which depends on the processor. A backward
    pass that computes large scores again would then find others than the forward pass, and weights that do not add up
    to 1. Sixteen: as many as a CPU's eager PyTorch, to which errors are compared, adds side by side.
    """
    dtype = accumulator.data.dtype
    left, right = (x.data.astype(np.promote_types(dtype, np.float64)) for x in (a, b))
    total = np.zeros(accumulator.data.shape, dtype)
    for i in range(0, left.shape[-1], 16):
        np.add(total, left[..., i:i + 16] @ right[..., i:i + 16, :], out=total, casting="same_kind")
    return type(accumulator)(total + accumulator.data, accumulator.dtype.scalar)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers, alone or among others, and none leaves torch as a run of its own set it."""
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def equal_bits() -> Callable[[object, object], bool]:
    """Whether two nests of tensors and plain values are the same, bit for bit."""

    def compare(a: object, b: object) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return isinstance(b, dict) and a.keys() == b.keys() and all(compare(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(compare, a, b))
        return a == b

    return compare


@pytest.fixture(scope="session")
def made_run() -> Callable[..., Path]:
    """``made_run(folder)``: what training leaves of a narrow gna_nano on 32x32 pixels of `shapes`, without its time.

    Averaged and raw weights differ; ``average=False`` leaves the former out, ``state`` changes what it says of itself.
    """
    import timm

    import visionattn  # noqa: F401
    from visionattn.training import checkpoint
    from visionattn.training.config import TrainConfig
    from visionattn.training.options import plain
    from visionattn.training.shapes import CLASSES

    def make(folder: Path, average: bool = True, **state: object) -> Path:
        config = TrainConfig()
        config.data.image_size, config.data.shapes_val, config.data.eval_batch_size = 32, 40, 16
        kwargs = dict(stem_stride=4, dims=[16], depths=[1], num_heads=[1])
        weights = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            model = timm.create_model("gna_nano", num_classes=len(CLASSES), **kwargs)
            torch.nn.init.normal_(model.head.fc.weight)  # or all probabilities are nearly equal
            weights.append(model.state_dict())
        says = dict(step=7, best=0.0, config=plain(config), model="gna_nano", kwargs=kwargs, classes=list(CLASSES))
        found = checkpoint.Checkpoint(weights[0], weights[1] if average else {}, {}, says | state)
        checkpoint.save(folder / "checkpoints", found, best=True)
        return folder

    return make


@pytest.fixture(scope="session")
def drawn_shapes() -> Callable[[Path], Path]:
    """``drawn_shapes(folder)``: three pictures of 40x40 of each class of `shapes` as folder/val/CLASS/NUMBER.png."""
    from PIL import Image

    from visionattn.training.shapes import CLASSES, draw_scene

    def draw(folder: Path) -> Path:
        for i in range(30):
            path = folder / "val" / CLASSES[i % 10] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_scene(i, "val", size=40).image).save(path)
        return folder

    return draw


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """`torch.compile` remembers nothing, from before or in files: an op's route is no part of its memory's key."""
    import torch._inductor.config as config

    torch._dynamo.reset()
    with config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def ends_when_done() -> Callable[[subprocess.Popen], None]:
    """Checks that a tool's process leaves when it says that it is done: loaders' workers that pin memory must not be
    waited for, five seconds each."""

    def check(process: subprocess.Popen) -> None:
        for line in process.stdout:
            if line.startswith("done in"):
                break
        done = time.perf_counter()
        process.communicate(timeout=100)
        assert process.returncode == 0 and time.perf_counter() - done < 5

    return check


class Case(NamedTuple):
    """A form of an op at its smallest: the interpreter takes its time."""

    form: str
    shapes: tuple               # of the tensors that the public function takes
    call: Callable[..., torch.Tensor]

    def draw(self, device: str, seed: int) -> list[torch.Tensor]:
        make = torch.Generator().manual_seed(seed)
        return [torch.randn(s, generator=make, dtype=torch.float32).to(device).requires_grad_() for s in self.shapes]

    def results(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """The output and every gradient."""
        out = self.call(*tensors)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
        return [out.detach(), *torch.autograd.grad(out, tensors, weights)]


CASES = [
    Case("neighborhood_attention_packed", ((1, 3, 2, 3, 1, 16), (1, 3, 3)),
         lambda qkv, bias: kernels.neighborhood_attention_packed(qkv, 2, bias=bias)),
    Case("neighborhood_attention", ((1, 2, 2, 1, 16),) * 3, lambda q, k, v: kernels.neighborhood_attention(q, k, v, 2)),
    Case("window_attention_packed", ((1, 3, 2, 3, 1, 16), (1, 3, 3)),
         lambda qkv, bias: kernels.window_attention_packed(qkv, 2, 1, bias=bias)),
    Case("window_attention_packed_kv", ((1, 2, 2, 1, 16), (1, 2, 4, 2, 1, 16)),
         lambda q, kv: kernels.window_attention_packed_kv(q, kv, 2)),
    Case("halo_attention_packed_kv", ((1, 2, 2, 1, 16), (1, 2, 2, 1, 32), (7, 16), (7, 16)),
         lambda q, kv, rel_h, rel_w: kernels.halo_attention_packed_kv(q, kv, 2, 1, rel_h, rel_w)),
    Case("linear_attention_packed", ((1, 2, 2, 3, 1, 16), (1, 1, 16, 3, 3)),
         lambda qkv, residual: kernels.linear_attention_packed(qkv, residual)),
    Case("routed_attention_packed", ((1, 2, 4, 3, 1, 16),),
         lambda qkv: kernels.routed_attention_packed(qkv, torch.tensor([[[1], [0]]], device=qkv.device), (1, 2))),
    Case("varied_window_attention_packed", ((1, 2, 4, 3, 1, 16), (1, 1, 2, 1, 4), (1, 3, 3)),
         lambda qkv, sampling, bias: kernels.varied_window_attention_packed(qkv, 2, sampling, bias)),
    Case("channel_attention_packed", ((1, 2, 2, 48),), lambda qkv: kernels.channel_attention_packed(qkv, 1)),
    Case("depthwise_conv", ((1, 2, 2, 16), (16, 1, 3, 3), (16,)), kernels.depthwise_conv),
]


@pytest.fixture
def cases() -> list[Case]:
    return CASES


@pytest.fixture(params=CASES, ids=lambda case: case.form)
def smallest(request: pytest.FixtureRequest) -> Case:
    """Every op, one after the other."""
    return request.param
