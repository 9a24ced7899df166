"""A fused model is timm's to the last key, output and gradient, and unfused it is timm's to the last bit."""

import copy
import functools

import pytest

from visionattn.fusing import fuse, unfuse

SHORT = (
    *("swin", "swin any size", "maxvit", "maxvit rw", "maxvit rmlp", "maxvit pm"),
    *("davit", "davit v2", "gcvit", pytest.param("halonet", marks=pytest.mark.slow)),
)
FULL = ("swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224", "davit_tiny", "gcvit_tiny", "halonet50ts")


def _check(model, x, outcome, same, equal_bits):
    before = {name: t.clone() for name, t in model.state_dict().items()}
    classes = {name: type(m) for name, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    expected = outcome(model, x)
    theirs = copy.deepcopy(model)
    exact = functools.cache(lambda: outcome(theirs.double(), x.double()))
    report = fuse(model)
    assert report and not report.left
    after = model.state_dict()
    assert list(after) == list(before) and equal_bits(dict(after), before)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    same(outcome(model, x), expected, exact)
    assert unfuse(model)
    assert {name: type(m) for name, m in model.named_modules()} == classes
    assert equal_bits(outcome(model, x), expected)


@pytest.mark.parametrize("name", SHORT)
def test_short_models_keep_state_outputs_and_gradients(name, short, outcome, same, equal_bits):
    _check(*short(name), outcome, same, equal_bits)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_models_keep_state_outputs_and_gradients(name, full, outcome, same, equal_bits):
    _check(*full(name), outcome, same, equal_bits)
