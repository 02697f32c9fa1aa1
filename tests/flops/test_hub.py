"""Models of keras-hub, counted here on TensorFlow and on JAX, against the jaxpr that JAX makes of them."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest
import test_flops
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from utils import flops

hub = pytest.importorskip("keras_hub", reason="needs keras-hub: pip install -r tests/requirements.txt")
pytest.importorskip("jax", reason="needs JAX: pip install -r tests/requirements.txt")
import hub_models  # noqa: E402

ORACLE = pathlib.Path(__file__).parent / "jaxpr_oracle.py"


def on_jax(kind, names):
    """{name: {"oracle", "count", "unsupported"}} from one process on the JAX backend."""
    done = subprocess.run(
        [sys.executable, str(ORACLE), kind, *names],
        capture_output=True, text=True, check=False, env={**os.environ, "KERAS_BACKEND": "jax"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def hub_on_jax():
    return on_jax("hub", hub_models.MODELS)


@pytest.mark.oracle
@pytest.mark.parametrize("name", hub_models.MODELS)
def test_models_of_keras_hub_against_the_jaxpr(name):
    model = hub_models.MODELS[name]()
    report = flops.count(model, hub_models.input_shapes(model), unsupported="raise")
    assert hub_on_jax()[name] == {"oracle": report.total_macs, "count": report.total_macs, "unsupported": []}
    assert report.total_params == model.count_params()


@pytest.mark.oracle
def test_random_networks_against_the_jaxpr(tmp_path):
    macs = {}

    @examples(8)
    @given(test_flops.networks(), st.just(None))
    def save(network, _):
        model, _ = network
        path = str(tmp_path / f"{len(macs)}.keras")
        model.save(path)
        macs[path] = flops.count(model).total_macs

    save()
    assert {path: answer["oracle"] for path, answer in on_jax("saved", macs).items()} == macs
    keras.utils.clear_session()
