"""Shared settings of the tests: quiet TensorFlow, fixed seeds, the real photos where they are."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # `make test`: the processes share the cores
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest
from hypothesis import HealthCheck, settings

collect_ignore = ["flops/hub_models.py"]  # no tests: it needs keras-hub, and test_hub.py skips where that is missing
ROOT = pathlib.Path(__file__).resolve().parent.parent

# derandomize: CI tries the same examples every time; `HYPOTHESIS_PROFILE=long` looks for new ones by hand.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# `make test` hands out whole files in this order, then the others: what is left for the end is short.
LONGEST = ("test_oracles", "test_cluster", "test_training", "test_hub", "test_deployment", "test_own_photos")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def examples(number):
    """Settings of an oracle test: so many examples, times the environment variable ORACLES for a long run by hand."""
    return settings(max_examples=number * int(os.environ.get("ORACLES", "1")))


@pytest.fixture(scope="session")
def photos_dir():
    """The folder that holds both published datasets; skips, and says so, where there is none."""
    folder = os.environ.get("CLOTHING_DATA_DIR")
    if not folder or not (pathlib.Path(folder) / "clothing-dataset-small").is_dir():
        pytest.skip("needs the real photos: set CLOTHING_DATA_DIR to the folder that holds clothing-dataset-small/")
    return pathlib.Path(folder)
