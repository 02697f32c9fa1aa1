"""Channels whose kernel is all but zero keep their bias through int8 conversion."""

import keras
import numpy as np
import pytest

from utils.quantization import TFLiteModel, calibration
from utils.quantization.convert import convert, float_tflite, lift, open_file

PHOTOS = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
KINDS = ("conv", "depthwise", "dense")


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_kernel_keeps_its_bias_by_less_than_a_step_and_a_usual_one_is_left_alone(kind):
    source = float_tflite(network(kind, 0.0, 4.0))
    exact = TFLiteModel(source)(PHOTOS)
    assert exact == pytest.approx(4.0)
    assert TFLiteModel(convert(source, "int8", PHOTOS))(PHOTOS) == pytest.approx(exact, abs=0.05)
    lifted, raised = lift(source, calibration.measure(source, PHOTOS).ranges())
    assert sum(raised.values()) == (3 if kind == "depthwise" else 2)
    assert 0 < np.abs(TFLiteModel(lifted)(PHOTOS) - exact).max() < 4 / 255
    source = float_tflite(network(kind, 0.5, 4.0))
    same, raised = lift(source, calibration.measure(source, PHOTOS).ranges())
    assert same is source and raised == {}
    assert lift(source, {}) == (source, {})


@pytest.mark.parametrize("kernel, bias", [(0.0, 4.0), (1e-7, -4.0), (1e-5, 4.0), (1e-3, 1000.0)])
def test_with_activations_of_16_bits_such_a_bias_is_kept_too(kernel, bias):
    """Before, int16x8 answered 0, or -132 for 1000: biases are clipped to 32 bits before they are stored in 64."""
    source = float_tflite(network("conv", kernel, bias))
    exact = TFLiteModel(source)(PHOTOS)
    assert TFLiteModel(convert(source, "int16x8", PHOTOS))(PHOTOS) == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("bias", [4.0, -4.0])
@pytest.mark.parametrize("kernel", [0.0, 1e-7])
def test_what_either_tool_stores_for_a_bias_beyond_32_bits(kernel, bias):
    """The quantizer -2^31, whatever the sign; the converter widens the kernel's scale until the bias fits."""
    model = network("conv", kernel, bias)

    def stored(content):
        file = open_file(content)
        (operator,) = [operator for operator in file.operators if operator.type == "CONV_2D"]
        return np.frombuffer(bytes(file.data(operator.inputs[2])), np.int32)

    left = convert(float_tflite(model), "int8", PHOTOS, lift_biases=False)
    assert (stored(left) == -(2**31)).all()  # or the tool has learned it: then lift() can go
    assert np.abs(TFLiteModel(left)(PHOTOS) - bias).max() > 1
    other = convert(model, "int8", PHOTOS, tool="converter")
    assert (np.abs(stored(other)) < 2**30).all()
    assert TFLiteModel(other)(PHOTOS) == pytest.approx(bias, abs=0.05)


def test_only_the_channels_that_need_it_are_raised():
    model = network("conv", 0.0, 4.0)
    kernel = np.tile(np.array([0.0, 0.1], "float32"), (1, 1, 3, 1))
    model.layers[1].set_weights([kernel, np.array([4.0, 4.0], "float32")])
    source = float_tflite(model)
    lifted, raised = lift(source, calibration.measure(source, PHOTOS).ranges())
    assert list(raised.values()) == [1]
    before, after = TFLiteModel(source)(PHOTOS), TFLiteModel(lifted)(PHOTOS)
    assert (before[:, 1] == after[:, 1]).all() and (before[:, 0] != after[:, 0]).any()
