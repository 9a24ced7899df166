"""The workarounds for this stack of versions: what is imported, and what is read from a file."""

import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from visionattn.segmentation import stack
from visionattn.training.errors import UserError


def test_no_stand_in_is_left_behind(plugin: None) -> None:
    assert "mmcv._ext" not in sys.modules
    if find_spec("mmcv._ext") is None:
        from mmengine.utils.dl_utils import mmcv_full_available

        assert mmcv_full_available() is False
    from mmseg.registry import MODELS

    assert MODELS.get("UPerHead") and MODELS.get("FPNHead") and MODELS.get("VisionAttnBackbone")


def test_what_is_not_installed_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "find_spec", lambda name: None if name in ("mmseg", "ftfy") else object())
    with pytest.raises(UserError, match=r"^segmentation needs mmseg, ftfy: run pip install 'visionattn\[seg\]'$"):
        stack.load_mmseg()


def test_a_checkpoint_with_smoothed_logs_is_read_and_code_is_not_run(plugin: None, tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    log = HistoryBuffer([np.float64(1.5), 2.0], [1, 1], max_length=10)
    content = dict(state_dict={"w": torch.ones(2)}, meta=dict(iter=3), message_hub=dict(log_scalars={"loss": log}))
    torch.save(content, tmp_path / "iter_3.pth")
    read = stack.read_checkpoint(tmp_path / "iter_3.pth")
    assert read["message_hub"]["log_scalars"]["loss"].statistics("mean") == 1.75

    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({**content, "extra": Code()}, tmp_path / "iter_4.pth")
    (tmp_path / "iter_5.pth").write_bytes(pickle.dumps(Code()))

    class Lookup:
        def __reduce__(self):
            return (getattr, (HistoryBuffer, "__init__"))

    torch.save({**content, "extra": Lookup()}, tmp_path / "iter_6.pth")
    for name in ("iter_4.pth", "iter_5.pth", "iter_6.pth"):
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            stack.read_checkpoint(tmp_path / name)
    assert not (tmp_path / "touched").exists()
    torch.save({"w": torch.ones(2)}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="is not one of a segmentor; weights of a backbone go to model.backbone"):
        stack.read_checkpoint(tmp_path / "backbone.pth")


@pytest.mark.parametrize("ignored", [None, 255, 3])
def test_pixels_are_counted_as_mmsegmentation_counts_them(plugin: None, ignored: int | None) -> None:
    from mmseg.models.decode_heads import decode_head
    from mmseg.models.losses import accuracy

    torch.manual_seed(0)
    pred, target = torch.randn(2, 5, 9, 7), torch.randint(0, 5, (2, 9, 7))
    target[:, :2] = 255 if ignored == 255 else 3
    found = decode_head.accuracy(pred, target, ignore_index=ignored)
    expected = accuracy(pred, target, ignore_index=ignored)
    assert decode_head.accuracy is stack.pixel_accuracy and 5 < found < 95
    torch.testing.assert_close(found, expected)
    assert decode_head.accuracy(pred, torch.full_like(target, 255), ignore_index=255) == 0
