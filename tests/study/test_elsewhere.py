"""What the files that ship say of pictures that they were not made for: counted as the command says it."""

import json

import pandas as pd
import pytest
from conftest import ROOT

from study import elsewhere, records
from utils import classify
from utils.datasets import sketches


class Drawn:
    """Two drawings a part: one with the label that the model gives it, one with another."""

    def __init__(self, folder):
        self.paths = [folder / f"{label}.png" for label in ("hat", "pants")]
        for path in self.paths:
            sketches.draw(path.stem, "style-001", 96).save(path)
        self.model = classify.load(ROOT / "models" / "clothing-10-int8.tflite")

    def part(self, name):
        given = classify.classify(self.model, self.paths[0], top=1)["classes"][0]["label"]
        return pd.DataFrame({"path": self.paths, "label": [given, "no garment"]})


def test_it_counts_what_classify_says(tmp_path, monkeypatch):
    monkeypatch.setattr(elsewhere, "MODELS", {"clothing-10-int8": "clothing-10"})
    monkeypatch.setattr(
        elsewhere, "SETS", {"flowers": {"sklearn": "datasets/images/china.jpg datasets/images/flower.jpg"}}
    )
    shown, drawn = elsewhere.pictures(), Drawn(tmp_path)
    assert shown["picture"].tolist() == ["china.jpg", "flower.jpg"] and shown["version"].str[0].eq("1").all()
    measured = elsewhere.measure(shown, lambda name: drawn)
    expected = [classify.classify(drawn.model, path)["low_confidence"] for path in shown["path"]]
    flowers = measured["said"][0]
    assert (flowers["n"], flowers["said"], flowers["threshold"]) == (2, sum(expected), classify.threshold(drawn.model))
    assert [line["n"] for line in measured["said"][1:]] == [1, 1, 1, 1]
    assert [answer["said"] for answer in measured["answers"]] == expected
    assert "path" not in measured["answers"][0], "a record names no place of a machine"


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(elsewhere, "SETS", {"a": {"no_such_package": "b.png"}})
    with pytest.raises(LookupError, match=r"b\.png of the package no_such_package is missing"):
        elsewhere.pictures()


def test_the_record_is_of_the_files_that_ship():
    said = records.read("elsewhere")["metrics"]["said"]
    for name in elsewhere.MODELS:
        shipped = json.loads((ROOT / "models" / f"{name}.json").read_text())["low_confidence"]
        assert {line["threshold"] for line in said if line["model"] == name} == {shipped}, "python -m study elsewhere"
