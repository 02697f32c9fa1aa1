"""What a training step sees: every photo once an epoch, with its own target and weight."""

import numpy as np
import pandas as pd
import pytest
import tiny_training

from utils.datasets import pipeline
from utils.training import batches


def test_class_weights_and_targets_by_hand():
    frame = pd.DataFrame({"label": ["a"] * 6 + ["b"] * 3 + ["c"]})
    assert batches.class_weights(frame, "abc") == pytest.approx({0: 10 / 18, 1: 10 / 9, 2: 10 / 3})
    table = batches.class_weight_table(frame, "abc")
    assert list(table["class"]) == ["c", "b", "a"]
    assert (table["photos"] * table["weight"]).tolist() == pytest.approx([10 / 3] * 3)
    with pytest.raises(ValueError, match="no training photo of d"):
        batches.class_weights(frame, "abcd")
    with pytest.raises(ValueError, match="classes must be a list in the order of the numbers, got a set"):
        batches.class_weights(frame, set("abc"))
    np.testing.assert_allclose(batches.class_targets(4, 0.1)[1], [0.025, 0.925, 0.025, 0.025])


def test_each_photo_comes_with_its_own_target_and_weight_in_every_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path))
    frame, epoch = tiny_training.squares(tmp_path / "squares").part("train"), [0]
    numbers = pipeline.label_numbers(frame["label"], tiny_training.CLASSES)
    labels, weights = batches.class_targets(3, 0.1)[numbers], np.array([1.0, 2.0, 3.0], np.float32)
    run = tiny_training.config(label_smoothing=0.1, batch_size=5)
    data = batches.photo_batches(frame, tiny_training.CLASSES, weights, run, lambda: epoch[0])
    plain = pipeline.load_images(frame, tiny_training.SIZE).astype(np.float32)
    orders = []
    for epoch[0] in (0, 1, 0):
        seen = [tuple(map(np.asarray, batch)) for batch in data]
        images, found, weight = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        rows = [int(np.flatnonzero((plain == image).all((1, 2, 3)))[0]) for image in images]
        assert sorted(rows) == list(range(len(frame)))
        np.testing.assert_allclose(found, labels[rows], atol=1e-6)
        np.testing.assert_array_equal(weight, weights[numbers[rows]])
        orders.append(rows)
    assert orders[0] == orders[2] != orders[1]
