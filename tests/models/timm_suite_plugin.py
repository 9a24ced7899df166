"""A pytest plug-in (``-p timm_suite_plugin``) that points timm's own test_models.py at models of this package.

``TIMM_SUITE_MODELS`` names the models and ``TIMM_SUITE_TESTS`` the tests, separated by spaces. timm's suite asks
``timm.list_models`` for its cases when it is collected; the narrowed function gives our names only, and gives them too
where timm filters by its own files, so that the tests of intermediates and of pruning run.
"""

import functools
import os

import timm

import visionattn  # noqa: F401  registers the models

MODELS = frozenset(os.environ["TIMM_SUITE_MODELS"].split())
TESTS = frozenset(os.environ["TIMM_SUITE_TESTS"].split())


def _narrowed(list_models):
    @functools.wraps(list_models)
    def ours(*args, **kwargs):
        kwargs.pop("module", None)
        return [name for name in list_models(*args, **kwargs) if name.split(".")[0] in MODELS]

    return ours


timm.list_models = _narrowed(timm.list_models)
timm.list_pretrained = _narrowed(timm.list_pretrained)


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests that were not asked for."""
    chosen = [item for item in items if getattr(item, "originalname", item.name) in TESTS]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
