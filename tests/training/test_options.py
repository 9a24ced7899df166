"""Options: defaults, YAML files and the command line make one dataclass, and every mistake is one clear line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from visionattn.training.config import TrainConfig, validate
from visionattn.training.errors import UserError, one_line
from visionattn.training.options import _keys, parse, to_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read(*argv: object) -> TrainConfig:
    config = parse(TrainConfig, [str(x) for x in argv], "test", "")
    validate(config)
    return config


def test_no_options_give_the_defaults_of_the_dataclasses() -> None:
    assert read() == TrainConfig()


def test_command_line_wins_over_files_and_later_files_over_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 0.5, batch_size: 8}\ndata: {image_size: 32}\n")
    (tmp_path / "b.yaml").write_text("optim:\n  lr: 0.25\n")
    config = read("--config", tmp_path / "a.yaml", f"--config={tmp_path / 'b.yaml'}", "--optim.batch_size", "4")
    assert (config.optim.lr, config.optim.batch_size, config.data.image_size) == (0.25, 4, 32)
    assert config.schedule == TrainConfig().schedule


def test_yaml_of_a_config_reads_back_equal(tmp_path: Path) -> None:
    config = read(
        "--model.kwargs", "{stem_stride: 2, dims: [8, 8]}", "--optim.betas", "[0.8, 0.9]", "--augment.auto_augment",
        "rand-m9-mstd0.5-inc1", "--optim.lr", "1e-7", "--run.threads", "2", "--resume", "auto",
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read("--config", tmp_path / "config.yaml") == config


def test_print_config_reads_back_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--optim.lr", "0.125", "--print_config")
    assert stop.value.code == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert read("--config", tmp_path / "config.yaml") == read("--optim.lr", "0.125")


def test_help_shows_every_option_with_its_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    described = re.sub(r", --[\w.]+\+ \S+", "", shown[shown.index("The run as a whole:") :])  # --list+ appends
    keys = [key for key in _keys(TrainConfig) if "." in key or key == "resume"]
    assert len(keys) > 80
    for key in keys:
        entry = described.partition(f"--{key} ")[2].partition(" --")[0]
        assert re.search(r"[a-z]{3,} .*\(type: .*default: ", entry), (key, entry)


CLASSIFICATION = sorted(file for file in CONFIGS.rglob("*.yaml") if file.parent.name != "detection")


@pytest.mark.parametrize("file", CLASSIFICATION, ids=lambda file: file.stem)
def test_shipped_config_is_valid(file: Path) -> None:
    config = read("--config", file, "--data.root", "somewhere")
    assert config.model.name == file.stem.removesuffix("_384")
    assert config.data.image_size == (384 if file.stem.endswith("_384") else config.data.image_size)


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "base", "tiny_384", "small_384", "base_384"])
def test_imagenet_configs_need_nothing_but_the_data_root(name: str) -> None:
    with pytest.raises(UserError, match="data.root is not set; data.dataset 'folder' needs"):
        read("--config", CONFIGS / "imagenet" / f"gna_{name}.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.imag_size", 3], "unknown option --data.imag_size; did you mean data.image_size?"),
        (["--optim.epochs", 3], "unknown option --optim.epochs; did you mean schedule.epochs?"),
        (["--zzz", 3], "unknown option --zzz; --help lists the options"),
        (["stray"], "unrecognized arguments: stray"),
        (["--data.image_size", "abc"], "data.image_size: Expected a int. Got value: abc"),
        (["--optim.lr", "fast"], "optim.lr: Expected a float. Got value: fast"),
        (["--data.mean", "[1, 2]"], "data.mean: Expected a tuple with 3 elements"),
        (["--data.dataset", "cifar"], "data.dataset: .*'shapes', 'folder'"),
        (["--run.compile", "maybe"], "run.compile: Expected a bool. Got value: maybe"),
        (["--model.kwargs", "5"], "model.kwargs: Expected a dict. Got value: 5"),
        (["--run.seed"], "--run.seed: expected one argument"),
        (["--config"], "--config: expected one argument"),
        (["--config", "no/such.yaml"], "--config no/such.yaml: no such file"),
        (["--optim.batch_size", 0], "optim.batch_size is 0; it must be at least 1"),
        (["--optim.lr", -1], "optim.lr is -1.0; it must be above 0"),
        (["--optim.lr", ".nan"], "optim.lr is nan; it must be above 0"),
        (["--model.drop_path", 1.5], "model.drop_path is 1.5; it must be between 0 and 1"),
        (["--ema.decay", 2], "ema.decay is 2.0; it must be between 0 and 1"),
        (["--optim.clip_grad", 0], "optim.clip_grad is 0.0; it must be above 0"),
        (["--data.std", "[1, 0, 1]"], "data.std is .*; it must be above 0 for every channel"),
        (
            ["--schedule.epochs", 8, "--schedule.warmup_epochs", 8],
            "schedule.warmup_epochs is 8.0; it must be below schedule.epochs = 8",
        ),
        (
            ["--optim.batch_size", 30, "--optim.accumulation", 4],
            "optim.batch_size is 30; it must be a multiple of optim.accumulation = 4",
        ),
        (["--augment.mix_off_epochs", 4, "--schedule.epochs", 3], "mix_off_epochs.* 4.*at most all 3 epochs"),
        (["--augment.mixup", 0.2, "--optim.batch_size", 5], "is 5; mixup and cutmix need an even number"),
        (["--data.dataset", "folder"], "data.root is not set"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(argv: list, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: 1", "not a YAML file"),
        ("- a\n- b\n", "must hold options as 'key: value', but holds \\['a', 'b'\\]"),
        ("", "must hold options as 'key: value', but holds None"),
        ("just text", "but holds 'just text'"),
        ("optim: {leraning_rate: 1}", "unknown key 'optim.leraning_rate'"),
        ("optim: {batchsize: 1}", "unknown key 'optim.batchsize'; did you mean optim.batch_size?"),
        ("optimizer: {lr: 1}", "unknown key 'optimizer.*'"),
        ("optim: {lr: fast}", "optim.lr: Expected a float"),
        ("optim: 7", "optim must hold options as 'key: value', but is 7"),
        ("resume: [1]", "resume: Expected a str"),
    ],
)
def test_a_mistake_in_a_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read("--config", file)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="c.yaml: not a YAML file"):
        read("--config", tmp_path / "c.yaml")


def test_peak_rate_follows_the_batch_only_where_the_recipe_says_so(tiny: Callable[..., TrainConfig]) -> None:
    assert tiny("--optim.lr", 0.5).peak_lr() == 0.5
    assert tiny("--optim.lr", 0.5, "--optim.lr_batch", 64).peak_lr() == 0.125
    assert tiny("--schedule.epochs", 3, "--schedule.cooldown_epochs", 2).total_epochs() == 5


def test_an_error_from_a_worker_process_is_shown_by_its_last_line() -> None:
    text = "Caught UserError in DataLoader worker process 0.\nOriginal Traceback:\n  File x\n"
    assert one_line(UserError(text + "visionattn.training.errors.UserError: cannot read a\n")) == "cannot read a"
    assert one_line(UserError("plain")) == "plain"


def test_yaml_holds_plain_values_only() -> None:
    assert yaml.safe_load(to_yaml(TrainConfig()))["data"]["mean"] == list(TrainConfig().data.mean)


def test_the_shapes_file_spells_out_what_runs_without_options() -> None:
    path = Path(__file__).parents[2] / "configs" / "shapes" / "gna_nano.yaml"
    assert parse(TrainConfig, ["--config", str(path)], "train", "") == parse(TrainConfig, [], "train", "")
