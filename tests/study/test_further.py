"""The second test set of ten classes: whose photos are in it, and how they are judged."""

import types

import numpy as np
import pandas as pd
import pytest

from study import further, records
from utils.datasets import sketches


def dataset(rows, classes):
    frame = pd.DataFrame(rows, columns=["id", "sha256", "label", "sender", "split", "path"])
    return types.SimpleNamespace(frame=frame, classes=classes, part=lambda name: frame[frame["split"] == name])


@pytest.fixture
def two_sets(tmp_path):
    sketches.draw("hat", "style-001", 96).save(path := tmp_path / "hat.png")
    ten = dataset(
        [("1", "aa", "hat", "ann", "test", path), ("2", "bb", "hat", "bob", "train", path)], ("hat", "t-shirt")
    )
    full = dataset(
        [
            ("1", "a2", "Hat", "ann", "test", path),  # the same photo, encoded again
            ("9", "aa", "Hat", "ann", "test", path),  # the same bytes under another name
            ("3", "cc", "T-Shirt", "ann", "train", path),
            ("4", "dd", "Body", "ann", "train", path),  # no garment of ten classes
            ("5", "ee", "Hat", "bob", "train", path),  # somebody else's
        ],
        ("Body", "Hat", "T-Shirt"),
    )
    return ten, full


def test_it_holds_further_photos_of_the_testers_alone(two_sets):
    assert further.photos(*two_sets)[["id", "label", "split"]].to_numpy().tolist() == [["3", "t-shirt", "test"]]


def test_rows_and_the_shipped_file_are_judged_on_the_same_photos(two_sets, monkeypatch):
    class File:
        input_size = (32, 32)

        def __init__(self, path):
            assert path.name == "clothing-10-int8.tflite"

        def __call__(self, images):
            assert images.shape == (1, 32, 32, 3)
            return np.array([[0.9, 0.1]])

    monkeypatch.setattr(further, "TFLiteModel", File)
    run = types.SimpleNamespace(predict=lambda frame: np.array([[0.2, 0.8]]))
    lines = further.measure({"b": (types.SimpleNamespace(title="a model"), run, None)}, *two_sets)
    assert [(line["row"], line["n"], line["accuracy"]) for line in lines] == [("b", 1, 1.0), (further.FILE, 1, 0.0)]
    assert lines[0]["per_sender"][0]["n"] == 1


def test_the_record_is_of_the_five_people():
    lines = records.read("further")["metrics"]["further"]
    assert {line["n"] for line in lines} == {471} and {len(line["per_sender"]) for line in lines} == {5}
