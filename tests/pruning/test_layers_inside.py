"""Pruning finds the kernels inside layers of your own, and refuses what it cannot copy."""

import keras
import numpy as np
import pytest
from keras import layers

from utils import pruning

IMAGES, LABELS = np.ones((4, 6), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]]


class Pair(keras.layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(6, name="first"), layers.Dense(6, name="second")

    def build(self, shape):
        self.first.build(shape)
        self.second.build(shape)
        super().build(shape)

    def call(self, inputs):
        return self.second(self.first(inputs))


def classifier(*inner):
    return keras.Sequential([keras.Input((6,)), *inner, layers.Dense(3, activation="softmax", name="head")])


def test_kernels_inside_a_layer_of_your_own_are_reported_and_pruned():
    model = classifier(Pair())
    report = pruning.sparsity_report(model)
    assert report[["layer", "weights", "prunable"]].values.tolist() == [
        ["first", 36, True], ["second", 36, True], ["head", 18, True],
    ]  # fmt: skip
    pruned = pruning.prune(model, [(IMAGES, LABELS)], 0.5, epochs=0)
    assert pruned.report["nonzero"].sum() == 45  # half of 36 + 36 + 18


def test_kernels_that_pruning_leaves_alone_are_reported_too():
    model = keras.Sequential([keras.Input((5, 6)), layers.Bidirectional(layers.LSTM(4)), layers.Dense(3)])
    report = pruning.sparsity_report(model)
    # each direction: 6 inputs and 4 states by four gates of 4; then 8 by 3
    assert report["weights"].tolist() == [96, 64, 96, 64, 24]
    assert report["prunable"].tolist() == [False] * 4 + [True]


def shared():
    dense, image = layers.Dense(6), keras.Input((6,))
    inner = keras.Sequential([keras.Input((6,)), dense])
    return keras.Model(image, layers.Dense(3, activation="softmax")(dense(inner(image))))


def with_lora():
    model = classifier(layers.Dense(6))
    model.layers[0].enable_lora(2)
    return model


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, activation="softmax")

    def call(self, inputs):
        return self.head(inputs)


def subclassed():
    model = Subclassed()
    model(IMAGES)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [(shared, "no layer belongs to two models"), (with_lora, "before either"), (subclassed, "cannot be copied")],
)
def test_a_model_that_cannot_be_copied_is_refused_in_our_words(make, message):
    with pytest.raises(ValueError, match=message):
        pruning.prune(make(), [(IMAGES, LABELS)], 0.5, epochs=0)


def test_a_layer_in_two_models_is_reported_once():
    assert pruning.sparsity_report(shared())["weights"].tolist() == [36, 18]


@pytest.mark.parametrize("batches", [[], (IMAGES, LABELS)], ids=["none", "arrays"])
def test_batches_that_are_no_batches_are_refused(batches):
    with pytest.raises(ValueError, match=r"must hold \(images, labels\) batches"):
        pruning.prune(classifier(), batches, 0.5, epochs=1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pruning.sparsity_report(None), TypeError, "expected a Keras model to prune, got NoneType"),
        (lambda: pruning.sparsity_report(keras.Sequential([layers.Dense(3)])), ValueError, "not built yet"),
        (lambda: pruning.gzip_bytes("m.keras"), TypeError, "got str; read the file first"),
        (lambda: pruning.prune(classifier(), [(IMAGES, LABELS)], 0.5, epochs=1.5), ValueError, "whole number"),
        (lambda: pruning.prune_channels(classifier(), 0.5, divisor=2.5), ValueError, "positive integers, got 2.5"),
    ],
)
def test_arguments_of_another_kind_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
