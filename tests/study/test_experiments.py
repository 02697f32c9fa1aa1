"""The protocol experiments: what they fall back on, and that the wrong order leaks."""

import pytest

from study import experiments
from utils import datasets, models


def test_a_backbone_without_weights_is_replaced_aloud(monkeypatch, capsys):
    def unavailable(backbone, input_size):
        raise models.WeightsUnavailable("there is no network")

    monkeypatch.setattr(models, "feature_extractor", unavailable)
    assert experiments.backbone_at_hand("mobilenet_v2") == "efficientnet_lite0"
    assert "takes the place of mobilenet_v2: there is no network" in capsys.readouterr().out


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return datasets.load("sketches", root=tmp_path_factory.mktemp("drawn"), per_class=12, size=48)


def test_only_the_wrong_order_shares_photos(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_RUNS_DIR", str(tmp_path))
    order = experiments.balancing_order(drawn, "efficientnet_lite0", 48, at_most=14).set_index("protocol")
    assert order.loc["split by sender, then balance", "shared_photos"] == 0
    assert order.loc["split by sender, then balance", "shared_senders"] == 0
    assert order.loc["balance, then split at random", "shared_photos"] > 0
