"""Models of keras-hub, counted here on TensorFlow and on JAX, against the jaxpr that JAX makes of them."""

import keras
import pytest
import random_networks
from conftest import examples
from hypothesis import given

from study import records
from utils import flops

pytest.importorskip("keras_hub", reason="needs keras-hub: pip install -r tests/requirements.txt")
pytest.importorskip("jax", reason="needs JAX: pip install -r tests/requirements.txt")
import hub_models

LINES = {line["model"]: line for line in records.read("hub")["metrics"]["models"]}


def test_the_record_holds_every_model_and_the_oracle_agrees():
    assert list(LINES) == list(hub_models.MODELS)
    assert all(line["macs"] == line["oracle"] == line["rule"] + line["graph"] for line in LINES.values())


@pytest.mark.oracle
@pytest.mark.parametrize("name", hub_models.MODELS)
def test_models_of_keras_hub_against_the_jaxpr(name):
    counted = hub_models.line(name)
    assert {key: LINES[name][key] for key in counted} == counted, "run python tests/flops/hub_models.py"
    macs = counted["macs"]
    assert hub_models.hub_on_jax()[name] == {"oracle": macs, "count": macs, "unsupported": []}


@pytest.mark.oracle
def test_random_networks_against_the_jaxpr(tmp_path):
    macs = {}

    @examples(8)
    @given(random_networks.networks())
    def save(network):
        model, _ = network
        path = str(tmp_path / f"{len(macs)}.keras")
        model.save(path)
        macs[path] = flops.count(model).total_macs

    save()
    assert {path: answer["oracle"] for path, answer in hub_models.on_jax("saved", macs).items()} == macs
    keras.utils.clear_session()
