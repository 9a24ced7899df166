"""Models of timm's to fuse: cut down so that each of the forms that its family takes is there, and the full ones."""

import zlib
from collections.abc import Callable

import pytest
import timm
import torch
from timm.models.gcvit import GlobalContextVit
from torch import nn

TOLERANCE = 1e-4  # of a result's standard deviation, as in the models' parity with the official ones


def gcvit(**options) -> nn.Module:
    """GC ViT of two stages: timm's own functions fix how deep it is."""
    return GlobalContextVit(embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_ratio=(16, 16), **options)


# name -> (timm's model, its options, an input's shape)
SHORT = {
    "swin": (
        "swin_tiny_patch4_window7_224",
        dict(embed_dim=16, depths=(2, 1), num_heads=(1, 2), img_size=56),
        (2, 3, 56, 56),
    ),
    "swin any size": (
        "swin_tiny_patch4_window7_224",
        dict(embed_dim=16, depths=(2, 2), num_heads=(2, 2), img_size=(64, 112), strict_img_size=False),
        (2, 3, 72, 100),
    ),
    "maxvit": (
        "maxvit_tiny_tf_224",
        dict(embed_dim=(32, 32), depths=(1, 1), block_type=("M", "M"), img_size=64, transformer_window_size=(4, 4),
             transformer_grid_size=(4, 4)),
        (2, 3, 64, 64),
    ),
    "maxvit rw": ("test_maxvit", dict(img_size=96), (1, 3, 96, 96)),
    "maxvit rmlp": (
        "maxvit_rmlp_pico_rw_256",
        dict(embed_dim=(64, 64), depths=(1, 1), block_type=("M", "M"), img_size=64, transformer_window_size=(4, 4),
             transformer_grid_size=(4, 4)),
        (2, 3, 64, 64),
    ),
    "maxvit pm": (
        "maxvit_tiny_pm_256",
        dict(embed_dim=(64, 64), depths=(1, 1), block_type=("PM", "PM"), img_size=64, transformer_window_size=(4, 4),
             transformer_grid_size=(4, 4)),
        (2, 3, 64, 64),
    ),
    "davit": ("davit_tiny", dict(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2)), (2, 3, 36, 52)),
    "davit v2": (
        "davit_base_fl",
        dict(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2), named_blocks=True),
        (2, 3, 64, 64),
    ),
    "gcvit": (gcvit, dict(img_size=64), (2, 3, 64, 64)),
    "halonet": ("halonet26t", dict(), (1, 3, 256, 256)),
}  # fmt: skip


def fill(model: nn.Module) -> nn.Module:
    """Weights by their names alone, at a scale at which each of them shows, tables of positions above all."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            value = torch.randn(p.shape, generator=seed)
            if p.ndim <= 1:
                value = 1 + 0.1 * value if name.endswith("weight") else 0.1 * value
            elif not name.endswith(("table", "_rel")):
                value = value / p[0].numel() ** 0.5
            p.copy_(value)
    return model


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).abs().max())


def results(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Outputs, and the gradients of the input and of every parameter."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    out = list(out.values()) if isinstance(out, dict) else out
    outs = list(out) if isinstance(out, (list, tuple)) else [out]
    seed = torch.Generator().manual_seed(1)
    sum((y * torch.randn(y.shape, generator=seed, dtype=y.dtype)).sum() for y in outs).backward()
    found = {f"output {i}": y.detach() for i, y in enumerate(outs)} | {"input": x.grad}
    return found | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_same(found: dict, expected: dict, exact: Callable[[], dict] | None = None) -> None:
    """Two of :func:`results` agree: to TOLERANCE of the expected value's standard deviation, or, where ``exact`` gives
    the same in float64, with at most twice the error of the expected one."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        # what shifts all logits of a head alike has no gradient but noise, which its weight's gradient gives the scale
        scale = name.replace("bias", "weight") if name.endswith("rel_pos.mlp.fc2.bias") else name
        error, deviation = distance(value, expected[name]), float(expected[scale].double().std())
        if error <= TOLERANCE * deviation:
            continue
        assert exact is not None, f"{name}: differs by {error:.2e}, of a standard deviation of {deviation:.2e}"
        ours, theirs = (distance(x, exact()[name]) for x in (value, expected[name]))
        assert ours <= 2 * theirs, f"{name}: {ours:.2e} from float64, and timm's {theirs:.2e}"


@pytest.fixture
def short() -> Callable:
    """short(name, **options) -> (a cut-down model of timm's with its weights filled, an input)."""

    def build(name: str, **options) -> tuple[nn.Module, torch.Tensor]:
        timms, given, shape = SHORT[name]
        options = {"num_classes": 5, **given, **options}
        model = timm.create_model(timms, **options) if isinstance(timms, str) else timms(**options)
        return fill(model).eval(), torch.randn(shape)

    return build


@pytest.fixture
def full() -> Callable:
    """full(name) -> (timm's model as it is, its weights filled, an input)."""

    def build(name: str) -> tuple[nn.Module, torch.Tensor]:
        size = 256 if name.startswith("halonet") else 224
        return fill(timm.create_model(name)).eval(), torch.randn(1, 3, size, size)

    return build


@pytest.fixture
def outcome() -> Callable:
    """results(model, x)."""
    return results


@pytest.fixture
def same() -> Callable:
    """check_same(found, expected)."""
    return check_same
