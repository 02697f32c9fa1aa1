"""The studies' printed numbers against counts, and the protocol experiments: that the wrong order leaks."""

from study import claims, experiments, records
from utils import datasets, models


def test_the_record_holds_what_the_code_counts():
    found = claims.measure()
    assert found == records.read("claims")["metrics"]
    assert all(row["published"] == row["flops"] for row in found["b0"] + found["mobilenet"])
    assert [row["published"] == row["flops"] for row in found["baseline"]] == [False] * 3 + [True] * 2
    assert found["squeeze_excite_macs"] == 627_200 and found["backbone_macs"] == 383_907_552
    heads = [(round(head["params"] / 1e6, 2), round(head["flops_without_gates"] / 1e6, 1)) for head in found["heads"]]
    assert heads[0] == (6.06, 771.8)


def test_the_printed_recalls_are_whole_counts_of_319_photos():
    (row,) = (r for r in records.read("01_data_and_training")["metrics"]["rows"] if r["id"] == "b-mobilenet-published")
    told = {line["class"]: line["recall"] for line in records.read("claims")["metrics"]["classes"]}
    counts = {one["class"]: round(told[one["class"]] * one["support"]) for one in row["per_class"]}
    for one in row["per_class"]:
        assert abs(counts[one["class"]] / one["support"] - told[one["class"]]) <= 0.005  # as printed, two digits
    assert sum(counts.values()) == 319
    assert round(0.8548 * row["n"]) == 318


def test_a_backbone_without_weights_is_replaced_aloud(monkeypatch, capsys):
    def unavailable(backbone, input_size):
        raise models.WeightsUnavailable("there is no network")

    monkeypatch.setattr(models, "feature_extractor", unavailable)
    assert experiments.backbone_at_hand("mobilenet_v2") == "efficientnet_lite0"
    assert "takes the place of mobilenet_v2: there is no network" in capsys.readouterr().out


def test_only_the_wrong_order_shares_photos(tmp_path, monkeypatch):
    drawn = datasets.load("sketches", root=tmp_path / "drawn", per_class=6, size=48)
    monkeypatch.setenv("CLOTHING_RUNS_DIR", str(tmp_path))
    order = experiments.balancing_order(drawn, "efficientnet_lite0", 48, at_most=7).set_index("protocol")
    assert (order.loc["split by sender, then balance", ["shared_photos", "shared_senders"]] == 0).all()
    assert order.loc["balance, then split at random", "shared_photos"] > 0
