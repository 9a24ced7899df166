"""The configs: each can be read, and its heads fit the maps of its backbone."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("plugin")
ROOT = Path(__file__).resolve().parents[2] / "configs" / "segmentation"
CONFIGS = sorted(path.name for path in ROOT.glob("*.py"))
QUICK = ("upernet_gna_nano_camvid.py", "fpn_gna_tiny_ade20k.py")


def test_the_recipes_are_all_there() -> None:
    ade = "gna_tiny nat_tiny dinat_tiny fused_swin_tiny vsa_swin_tiny biformer_small fused_davit_tiny fused_gcvit_tiny"
    names = {f"upernet_{name}_ade20k.py" for name in [*ade.split(), "inline_swin_tiny"]}
    names |= {
        f"upernet_{name}_camvid.py" for name in ("gna_tiny", "fused_swin_tiny", "timm_resnet50", "timm_swin_tiny")
    }
    assert names <= set(CONFIGS) and any(name.startswith("fpn_") for name in CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_whole_and_lasts_as_long_as_its_schedule(name: str) -> None:
    from visionattn.segmentation.options import override, read_config

    config = read_config(ROOT / name)
    steps = config.train_cfg.max_iters
    assert (
        config.param_scheduler[-1].end
        == steps
        == {"ade20k": 160000, "camvid": 3000, "shapes": 1100}[name[:-3].split("_")[-1]]
        / (2 if name.startswith("fpn") else 1)
    )
    classes = 150 if "ade20k" in name else 11
    assert config.model.decode_head.num_classes == classes
    override(config, ["train_cfg.max_iters=40"])
    assert [part.end for part in config.param_scheduler][-1] == 40 and config.param_scheduler[0].end < 40


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_heads_fit_the_maps(name: str) -> None:
    from mmseg.registry import MODELS

    from visionattn.segmentation.options import read_config

    config = read_config(ROOT / name)
    with torch.device("meta"):
        channels = MODELS.build(config.model.backbone).channels
    first = config.model.get("neck") or config.model.decode_head
    assert list(first.in_channels) == channels
    if config.model.get("auxiliary_head"):
        assert config.model.auxiliary_head.in_channels == channels[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if "camvid" in name])
def test_any_image_size_is_segmented_whole_and_by_sliding_windows(name: str) -> None:
    from mmseg.registry import MODELS

    from visionattn.segmentation.options import read_config

    config = read_config(ROOT / name)
    config.model.decode_head.channels = config.model.auxiliary_head.channels = 16
    model = MODELS.build(config.model).eval()
    for mode in (dict(mode="whole"), dict(mode="slide", crop_size=(96, 96), stride=(64, 64))):
        model.test_cfg = type(config)(mode)
        sample = model.test_step(dict(inputs=[torch.zeros(3, 101, 133, dtype=torch.uint8)], data_samples=[_sample()]))[
            0
        ]
        assert sample.pred_sem_seg.data.shape == (1, 101, 133)


def _sample():
    from mmseg.structures import SegDataSample

    return SegDataSample(metainfo=dict(ori_shape=(101, 133), img_shape=(101, 133)))
