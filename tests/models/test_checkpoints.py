"""Weights through timm's path: our own files in every wrapping, other windows and heads, foreign files refused."""

import pytest
import timm
import torch

import visionattn  # noqa: F401
from visionattn.models.checkpoints import unwrap_state_dict
from visionattn.models.gna import checkpoint_filter_fn

SMALL = {"dims": (16, 32), "depths": (1, 2), "num_heads": (1, 1)}  # of gna_nano


def _model(**kwargs):
    return timm.create_model("gna_nano", **{**SMALL, "num_classes": 7, **kwargs})


def _load(path, overlay=None, **kwargs):
    overlay = {"file": str(path), "num_classes": 7, **(overlay or {})}
    return _model(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def _save(tmp_path, checkpoint):
    path = tmp_path / "weights.pth"
    torch.save(checkpoint, path)
    return path


def _same(model, state_dict):
    own = model.state_dict()
    return own.keys() == state_dict.keys() and all(torch.equal(own[n], state_dict[n]) for n in own)


WRAPPINGS = {
    "bare": lambda sd: sd,
    "state_dict": lambda sd: {"epoch": 3, "state_dict": sd},
    "model": lambda sd: {"model": sd, "optimizer": {}},
    "averaged weights go first": lambda sd: {"state_dict": {n: t + 1 for n, t in sd.items()}, "state_dict_ema": sd},
    "compiled": lambda sd: {f"_orig_mod.{n}": t for n, t in sd.items()},
    "distributed": lambda sd: {"model": {f"module.{n}": t for n, t in sd.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_own_checkpoint_loads_completely(wrapping, tmp_path, caplog):
    saved = _model().state_dict()
    checkpoint = WRAPPINGS[wrapping](saved)
    with caplog.at_level("INFO"):
        assert _same(_load(_save(tmp_path, checkpoint)), saved)
    assert not [r for r in caplog.records if "keys" in r.getMessage().lower() and "missing" in r.getMessage().lower()]
    assert "Unexpected keys" not in caplog.text
    filtered = checkpoint_filter_fn(checkpoint, _model())
    assert _model().load_state_dict(filtered, strict=True)


def test_safetensors_file_loads(tmp_path):
    from safetensors.torch import save_file

    saved = _model().state_dict()
    save_file(saved, tmp_path / "weights.safetensors")
    assert _same(_load(tmp_path / "weights.safetensors"), saved)


def test_other_number_of_classes_drops_the_head_alone(tmp_path):
    saved = _model().state_dict()
    model = _load(_save(tmp_path, saved), num_classes=3)
    state = model.state_dict()
    assert state["head.fc.weight"].shape == (3, 32)
    assert all(torch.equal(t, saved[n]) for n, t in state.items() if not n.startswith("head."))


def test_features_only_takes_the_backbone(tmp_path):
    saved = _model().state_dict()
    model = _load(_save(tmp_path, saved), features_only=True, out_indices=(0, 1))
    state = {n.removeprefix("model."): t for n, t in model.state_dict().items()}
    assert state and all(torch.equal(t, saved[n]) for n, t in state.items())


def test_headless_checkpoint_loads_in_a_headless_model():
    saved = _model(num_classes=0).state_dict()
    model = _model(num_classes=0)
    model.load_state_dict(checkpoint_filter_fn(dict(sorted(saved.items())), model))
    assert _same(model, saved)


def test_grey_images_sum_the_first_filters(tmp_path):
    saved = _model().state_dict()
    weight = _load(_save(tmp_path, saved), in_chans=1).state_dict()["stem.conv1.weight"]
    torch.testing.assert_close(weight, saved["stem.conv1.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize("kernel", [5, 9, (7, 11)])
def test_tables_are_resized_about_their_centre_for_another_window(kernel, tmp_path):
    source = _model()
    for name, p in source.named_parameters():
        if name.endswith("rpb"):  # a table that falls off with the distance, along both axes
            n = torch.arange(-6.0, 7)
            p.data = -(n[:, None].abs() + 2 * n[None].abs()).expand(p.shape).clone()
    model = _load(_save(tmp_path, source.state_dict()), kernel_size=kernel)
    for name, p in model.named_parameters():
        if name.endswith("rpb"):
            h, w = (n // 2 for n in p.shape[1:])
            assert p[0, h, w] == 0 and p.argmax() % p[0].numel() == h * p.shape[2] + w
            assert (p[:, h, w:].diff() < 0).all() and (p[:, h:, w].diff() < 0).all()
            torch.testing.assert_close(p, p.flip(1, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_foreign_checkpoint_is_refused(name, tmp_path):
    foreign = {n: torch.zeros(1) for n in timm.create_model(name, device="meta").state_dict()}
    with pytest.raises(ValueError, match="checkpoint is not one of this GNA variant: names .* missing .* unknown"):
        _load(_save(tmp_path, foreign))


def test_another_variant_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1[0-9] unknown \(stages.1.blocks.2"):
        _load(_save(tmp_path, _model(depths=(1, 3)).state_dict()))


@pytest.mark.parametrize("checkpoint", [{}, {"epoch": 3}, {"state_dict": {}}, {"args": {"lr": 1}, "model": 3}, [1, 2]])
def test_file_without_weights_is_refused(checkpoint):
    with pytest.raises(ValueError, match="holds no weights"):
        unwrap_state_dict(checkpoint)
