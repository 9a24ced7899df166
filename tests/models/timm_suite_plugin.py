"""A pytest plug-in (``-p timm_suite_plugin``) that points timm's own test_models.py at models of this package.

``TIMM_SUITE_CASES`` names the cases to run, ``test:model``, separated by spaces. timm's suite asks ``timm.list_models``
for its cases when it is collected; the narrowed function gives our names only, and gives them too where timm filters by
its own files, so that the tests of intermediates and of pruning run. timm knows by their names which models have a
class token and so other tests; it is told of ours.
"""

import functools
import os

import timm

import visionattn  # noqa: F401  registers the models

CASES = {tuple(case.split(":")) for case in os.environ["TIMM_SUITE_CASES"].split()}
MODELS = {model for _, model in CASES}
ONE_TAG = bool(os.environ.get("TIMM_SUITE_ONE_TAG"))  # of a model with several sets of weights
CLASS_TOKEN = ["inline_deit_*"]


def _narrowed(list_models):
    @functools.wraps(list_models)
    def ours(*args, **kwargs):
        kwargs.pop("module", None)
        for option in ("filter", "exclude_filters"):
            patterns = kwargs.get(option)
            if isinstance(patterns, list) and "deit*" in patterns:  # timm's list of such models is among them
                kwargs[option] = patterns + CLASS_TOKEN
        names = [name for name in list_models(*args, **kwargs) if name.split(".")[0] in MODELS]
        return list({name.split(".")[0]: name for name in names}.values()) if ONE_TAG else names

    return ours


timm.list_models = _narrowed(timm.list_models)
timm.list_pretrained = _narrowed(timm.list_pretrained)


def _case(item):
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return getattr(item, "originalname", item.name), str(parameters.get("model_name", "")).split(".")[0]


def pytest_collection_modifyitems(config, items):
    """Leaves out the cases that were not asked for."""
    config.hook.pytest_deselected(items=[item for item in items if _case(item) not in CASES])
    items[:] = [item for item in items if _case(item) in CASES]
