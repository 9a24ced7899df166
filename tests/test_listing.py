"""The list of backbones: nothing missing, nothing of timm's, each with its family, a line on it and its weights."""

import timm
import torch
from pytest import CaptureFixture, mark, raises

import visionattn
from visionattn import families, list_models
from visionattn.cli import main


def test_every_registered_backbone_is_listed_once_and_none_of_timms():
    names = [model.name for model in list_models()]
    assert len(names) == len(set(names))
    registered = {n for n in timm.list_models() if timm.model_entrypoint(n).__module__.startswith("visionattn.models.")}
    assert set(names) == registered
    assert {"gna_tiny", "fused_swin_tiny", "biformer_stl", "inline_deit_base"} <= set(names)
    assert not {"swin_tiny_patch4_window7_224", "davit_tiny"} & set(names)


def test_families_are_those_of_the_files_and_each_has_a_line():
    assert {model.family for model in list_models()} == set(families())
    assert {"gna", "nat", "swin", "inline_cswin"} <= set(families())
    assert all(20 < len(line) < 200 and not line.endswith(".") for line in families().values())


def test_every_description_is_the_models_own_docstring():
    for model in list_models():
        assert model.description and "\n" not in model.description
        documented = " ".join(timm.model_entrypoint(model.name).__doc__.split())
        assert documented.startswith(model.description)


def test_filters_narrow_the_list():
    assert [model.name for model in list_models("gna_*")] == ["gna_nano", "gna_tiny", "gna_small", "gna_base"]
    assert {model.family for model in list_models(family="inline_*")} == {
        *("inline_swin", "inline_pvt", "inline_deit", "inline_cswin")
    }
    assert [model.name for model in list_models("*_tiny", family="swin")] == ["fused_swin_tiny"]
    assert list_models("nothing") == [] and str(list_models("nothing")) == "no model"
    with raises(ValueError, match="family must be one of biformer, .*, got 'resnet'"):
        list_models(family="resnet")


def test_weights_are_those_that_timm_would_fetch():
    found = {model.name: model for model in list_models(pretrained=True)}
    first, *others = found["fused_swin_tiny"].pretrained
    assert first == "ms_in1k" and set(others) == {"ms_in22k_ft_in1k", "ms_in22k"}
    assert found["fused_swin_tiny"].license == "mit"
    assert found["fused_gcvit_tiny"].license == "cc-by-nc-sa-4.0"
    assert "gna_tiny" not in found and "fused_davit_large" not in found
    fetched = {name.partition(".")[0] for name in timm.list_pretrained()}
    assert set(found) == {model.name for model in list_models()} & fetched


def test_the_table_shows_every_model_under_its_family():
    text = str(visionattn.list_models(family="gna"))
    assert text.splitlines()[0].startswith("gna: ") and len(text.splitlines()) == 5
    assert "  gna_nano" in text


def test_the_command_prints_tables_and_names(capsys: CaptureFixture):
    assert main(["models", "gna_*"]) == 0
    assert capsys.readouterr().out.strip() == str(list_models("gna_*"))
    assert main(["models", "--family", "nat", "--pretrained", "--names"]) == 0
    assert capsys.readouterr().out.split() == [model.name for model in list_models(family="nat", pretrained=True)]


@mark.parametrize(
    "argv, words", [(["zzz"], "no model is of that name"), (["--family", "swim"], "got 'swim'"), (["-x"], "-x")]
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(argv, words, capsys: CaptureFixture):
    with raises(SystemExit) as leaving:
        main(["models", *argv])
    err = capsys.readouterr().err
    assert leaving.value.code == 2 and words in err and err.count("\n") == 1


def test_what_is_listed_can_be_created():
    model = timm.create_model(list_models(family="gna")[0].name, num_classes=3).eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
