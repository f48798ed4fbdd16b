import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import markdown_pages
import pyro
import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path += [str(SCRIPTS), str(SCRIPTS / "studies")]  # of the modules that scripts import from their folder

torch.set_num_threads(1)  # the tests run side by side, one process per core


def pytest_configure(config):
    """Let the fixtures of README and guides, which lie outside of this folder, be found; set a cache of their own."""
    config.pluginmanager.register(markdown_pages)
    cache = tempfile.mkdtemp()  # stopped evaluations of the tests stay out of the user's cache
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = cache


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cases of a test marked `thin(n)`, leave n by default, evenly spread; the others are slow."""
    cases = {}
    for item in items:
        if (mark := item.get_closest_marker("thin")) is not None:
            cases.setdefault((item.parent.nodeid, item.originalname, mark.args[0]), []).append(item)
    for (_, _, count), of_test in cases.items():
        kept = {round(place * (len(of_test) - 1) / max(count - 1, 1)) for place in range(count)}
        for place, item in enumerate(of_test):
            if place not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _fresh_pyro():
    """Start every test and doctest from one seed and an empty parameter store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def _no_module_of_another_test():
    """Forget the user's module that a script imported into this process; other tests have one of the same name."""
    yield
    sys.modules.pop("mymodule", None)
