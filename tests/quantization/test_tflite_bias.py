"""Channels whose kernel is all but zero keep their bias through int8 conversion."""

import keras
import numpy as np
import pytest

from utils.quantization import TFLiteModel, calibration
from utils.quantization.convert import convert, float_tflite, lift

PHOTOS = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)


def network(kind, kernel, bias):
    """One layer of `kind` whose kernel is `kernel` everywhere, pooled to two logits."""
    image = keras.Input((8, 8, 3), name="image")
    say = {
        "kernel_initializer": keras.initializers.Constant(kernel),
        "bias_initializer": keras.initializers.Constant(bias),
    }
    if kind == "conv":
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 1, **say)(image))
    elif kind == "depthwise":
        say["depthwise_initializer"] = say.pop("kernel_initializer")
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.DepthwiseConv2D(3, **say)(image))
    else:
        x = keras.layers.Dense(2, **say)(keras.layers.GlobalAveragePooling2D()(image))
    return keras.Model(image, x)


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_a_zero_kernel_keeps_its_bias(kind):
    source = float_tflite(network(kind, 0.0, 4.0))
    exact = TFLiteModel(source)(PHOTOS)
    assert exact == pytest.approx(4.0)
    mended = convert(source, "int8", PHOTOS)
    assert TFLiteModel(mended)(PHOTOS) == pytest.approx(exact, abs=0.05)
    left = convert(source, "int8", PHOTOS, lift_biases=False)
    assert np.abs(TFLiteModel(left)(PHOTOS) - exact).max() > 1  # or the tool has learned it: then lift() can go


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_what_is_raised_is_less_than_a_step_of_the_output(kind):
    source = float_tflite(network(kind, 0.0, -4.0))
    statistics = calibration.measure(source, PHOTOS)
    lifted, raised = lift(source, statistics.ranges())
    assert sum(raised.values()) == (3 if kind == "depthwise" else 2)
    change = np.abs(TFLiteModel(lifted)(PHOTOS) - TFLiteModel(source)(PHOTOS)).max()
    assert 0 < change < 4 / 255


@pytest.mark.parametrize("kind", ["conv", "depthwise", "dense"])
def test_a_usual_kernel_is_left_alone(kind):
    source = float_tflite(network(kind, 0.5, 4.0))
    same, raised = lift(source, calibration.measure(source, PHOTOS).ranges())
    assert same is source and raised == {}


def test_without_a_range_nothing_is_touched():
    source = float_tflite(network("conv", 0.0, 4.0))
    assert lift(source, {}) == (source, {})


def test_only_the_channels_that_need_it_are_raised():
    model = network("conv", 0.0, 4.0)
    layer = next(layer for layer in model.layers if layer.name.startswith("conv2d"))
    layer.set_weights([np.array([[[[0.0, 0.1]] * 3]], "float32").reshape(1, 1, 3, 2), np.array([4.0, 4.0], "float32")])
    source = float_tflite(model)
    statistics = calibration.measure(source, PHOTOS)
    lifted, raised = lift(source, statistics.ranges())
    assert list(raised.values()) == [1]
    before, after = TFLiteModel(source)(PHOTOS), TFLiteModel(lifted)(PHOTOS)
    assert (before[:, 1] == after[:, 1]).all() and (before[:, 0] != after[:, 0]).any()
