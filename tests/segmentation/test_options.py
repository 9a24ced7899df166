"""Settings over a config: what they may change, and how a schedule follows the length of the run."""


import pytest

from visionattn.recipes import FOLDER
from visionattn.training.errors import UserError

pytestmark = pytest.mark.usefixtures("plugin")
DEFAULT = FOLDER / "segmentation" / "upernet_gna_nano_shapes.py"


@pytest.fixture
def config():
    from visionattn.segmentation.options import read_config

    return read_config(DEFAULT)


def put(config, *settings: str) -> None:
    from visionattn.segmentation.options import override

    override(config, settings)


def test_values_are_numbers_lists_sections_and_strings(config) -> None:
    put(config, "model.backbone.name=resnet50", "model.backbone.drop_path=0.2",
        "train_dataloader.dataset.size=(40, 56)", "model.backbone.kwargs={'depth': 3}",
        "val_dataloader.num_workers=2", "param_scheduler.0.start_factor=0.5",
        "model.backbone.compile=true", "model.auxiliary_head=None")  # fmt: skip
    assert (config.model.backbone.name, config.model.backbone.drop_path) == ("resnet50", 0.2)
    assert config.train_dataloader.dataset.size == (40, 56) and config.model.backbone.kwargs.depth == 3
    assert config.val_dataloader.num_workers == 2 and config.param_scheduler[0].start_factor == 0.5
    assert config.model.backbone.compile is True and config.model.auxiliary_head is None


def test_arguments_that_the_config_does_not_name_may_be_set(config) -> None:
    put(config, "model.backbone.grad_checkpointing=True", "val_dataloader.pin_memory=True")
    put(config, "train_dataloader.dataset={'type': 'CamVid', 'data_root': 'x', 'split': 'train'}")
    put(config, "train_dataloader.dataset.indices=8")  # of what CamVid is built on
    assert config.model.backbone.grad_checkpointing and config.train_dataloader.dataset.indices == 8


def test_schedules_follow_the_length_of_the_run(config) -> None:
    whole = config.train_cfg.max_iters
    warm = config.param_scheduler[0].end
    put(config, f"train_cfg.max_iters={4 * whole}")
    assert (config.param_scheduler[0].end, config.param_scheduler[1].begin) == (warm, warm)
    assert config.param_scheduler[1].end == 4 * whole
    put(config, "train_cfg.max_iters=12")
    assert config.param_scheduler[1].end == 12 and 1 <= config.param_scheduler[0].end < 12
    assert 1 <= config.train_cfg.val_interval <= 12
    put(config, "train_cfg.val_interval=5", "train_cfg.max_iters=6")
    assert config.train_cfg.val_interval == 5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.backbone.nam=x", "model.backbone has no 'nam'; did you mean name?"),
        ("model.backbone.name.first=x", "model.backbone.name is 'gna_nano', which holds nothing further"),
        ("model.backbone.compile=1", "model.backbone.compile: must be of the kind of the config's value, bool"),
        ("model.backbone.drop_path=True", "must be of the kind of the config's value, float"),
        ("model.backbone.name=3", "must be of the kind of the config's value, str"),
        ("=3", "settings are written as"),
        ("train_dataloader.datset=3", "train_dataloader has no 'datset'; did you mean dataset?"),
    ],
)
def test_a_wrong_setting_is_refused(config, setting: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        put(config, setting)
    assert message in str(refusal.value)
