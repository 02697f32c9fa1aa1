"""The keras-flops package on today's stack: its own numbers, nothing left patched, and where it counts nothing."""

import keras
import pytest

from utils import flops

L = keras.layers


def build(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


# What keras-flops says on Keras 2.12, where it still imports: layer, its total, exact FLOPs (2 x MACs).
LAYERS = {
    "Conv1D": (lambda: build((64, 8), L.Conv1D(16, 5, strides=2)), 38_880),
    "Conv2D same": (lambda: build((32, 32, 8), L.Conv2D(16, 3, padding="same")), 2_375_680),
    "Conv2D dilated": (lambda: build((32, 32, 8), L.Conv2D(16, 3, padding="same", dilation_rate=2)), 2_375_680),
    "Conv2DTranspose": (lambda: build((16, 16, 8), L.Conv2DTranspose(16, 2, strides=2)), 278_528),
    "DepthwiseConv2D": (lambda: build((33, 33, 8), L.DepthwiseConv2D(3, strides=2)), 38_912),
    "Dense": (lambda: build((32,), L.Dense(16)), 1_040),
    "MaxPooling2D": (lambda: build((32, 32, 8), L.MaxPooling2D(3, strides=2, padding="same")), 18_432),
    "Softmax": (lambda: build((100,), L.Softmax()), 500),
    "MobileNet": (lambda: keras.applications.MobileNet(weights=None), 1_147_687_920),
    "MobileNetV2": (lambda: keras.applications.MobileNetV2(weights=None, classes=10), 612_751_868),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_models_of_the_reference_table(name):
    make, total = LAYERS[name]
    assert flops.keras_flops_total(make()) == total


def test_batch_and_several_inputs(capfd):
    photo, meta = keras.Input((16, 16, 3), name="photo"), keras.Input((10,), name="meta")
    x = L.Concatenate()([L.Flatten()(L.Conv2D(4, 3, strides=2)(photo)), L.Dense(6)(meta)])
    model = keras.Model({"photo": photo, "meta": meta}, [L.Dense(3)(x), L.Dense(2)(x)])
    assert [flops.keras_flops_total(model, batch_size=batch) for batch in (1, 3)] == [12_931, 3 * 12_931]
    assert capfd.readouterr().out == ""  # the profiler's table is kept off the output


def test_nothing_is_left_patched():
    from tensorflow.python.framework import ops

    decorator, before = ops.RegisterStatistics, dict(ops._stats_registry._registry)
    model = build((8, 8, 3), L.BatchNormalization())
    first = flops.keras_flops_total(model)
    assert first > 0  # counted by a statistic of keras-flops' own
    assert ops.RegisterStatistics is decorator and ops._stats_registry._registry == before
    assert flops.keras_flops_total(model) == first  # and there again when it is needed again
    assert ops._stats_registry._registry == before
    assert type(model.inputs[0].shape) is tuple


@pytest.mark.parametrize(
    "layer, shape",
    [
        (lambda: L.LSTM(16), (10, 8)),
        (lambda: L.GRU(16), (10, 8)),
        (lambda: L.Conv2D(8, 3, groups=4), (16, 16, 8)),
    ],
)
def test_where_keras_flops_is_wrong_this_project_is_not(layer, shape):
    """Loops count as one step or nothing; grouped convolutions at the width of one group or of all."""
    model = build(shape, layer())
    assert flops.keras_flops_total(model) != pytest.approx(flops.count(model).total_flops, rel=0.2)


def test_models_that_it_cannot_take():
    own = type("Own", (keras.Model,), {"call": lambda self, x: x})(name="own")
    for model, words in (
        (own, "'own' has no symbolic inputs"),
        (build((None, None, 3), L.Conv2D(4, 3)), "counts fixed shapes only"),
    ):
        with pytest.raises(ValueError, match=words):
            flops.keras_flops_total(model)
    for thing in (None, "model.keras", [own]):
        with pytest.raises(TypeError, match="expected a Keras 3 model or layer, got builtins"):
            flops.keras_flops_total(thing)
