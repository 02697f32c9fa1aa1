"""What people bring: grey and scaled images, streams, models of every make; each works or is told in a sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import quantization
from utils.quantization import TFLiteModel

L = keras.layers
GREY = np.random.default_rng(0).integers(0, 256, (20, 14, 14), dtype=np.uint8)


def network(channels=1, name="a net", conv="my conv", **policy):
    keras.utils.set_random_seed(0)
    image = keras.Input((14, 14, channels), name="image")
    x = L.Conv2D(4, 3, activation="relu", name=conv, **policy)(image)
    x = L.Dense(3, kernel_initializer="random_normal", **policy)(L.Flatten(**policy)(x))
    return keras.Model(image, L.Softmax(dtype="float32")(x), name=name)


@pytest.fixture(scope="module")
def float_file():
    return quantization.convert(network(), "float32")


def test_every_kind_of_representative_data_gives_the_same_file_byte_by_byte(float_file):
    pixels = GREY[..., None].astype("float32")
    labels = np.zeros(len(GREY), int)
    data = tf.data.Dataset.from_tensor_slices((pixels, labels))
    ways = {
        "array": pixels, "bytes": GREY, "list": list(pixels), "tf.data": data, "batches": data.batch(8),
        "generator": (photo for photo in pixels), "converter's": lambda: ([photo[None]] for photo in pixels),
        "dictionary": data.map(lambda x, y: {"image": x}).batch(3),
    }  # fmt: skip
    made = {name: quantization.convert(float_file, "int8", photos) for name, photos in ways.items()}
    assert len(set(made.values())) == 1
    for wrong in ("a folder", 3):
        with pytest.raises(TypeError, match=r"an array or a stream of them, got (str|int)"):
            quantization.convert(float_file, "int8", wrong)
    endless = quantization.convert(float_file, "int8", data.repeat().batch(7))
    assert TFLiteModel(endless)(pixels).shape == (20, 3)


@pytest.mark.parametrize("scaled, input_range", [(GREY / 255, (0, 1)), (GREY / 127.5 - 1, (-1, 1))])
def test_a_model_that_is_scaled_outside_is_calibrated_in_its_range(float_file, scaled, input_range):
    with pytest.raises(ValueError, match=r"if the model takes them scaled, pass input_range=\(" + str(input_range[0])):
        quantization.convert(float_file, "int8", scaled)
    made = [
        quantization.convert(float_file, "int8_io", photos, input_range=input_range)
        for photos in (scaled.astype("float32"), GREY)
    ]
    exact = TFLiteModel(float_file, input_range=input_range)(GREY)
    assert np.abs(exact - TFLiteModel(float_file)(scaled.astype("float32"))).max() < 1e-5
    for content in made:
        assert TFLiteModel(content).input_range == input_range
        assert np.abs(TFLiteModel(content)(GREY) - exact).max() < 0.05
    table = quantization.evaluate_schemes({"float32": float_file, "int8_io": made[0]}, GREY, input_range=input_range)
    assert table.loc["int8_io", "largest_change"] < 0.05 and table["accuracy"].isna().all()
    study = quantization.calibration_study(float_file, GREY, GREY, counts=(), methods=(), input_range=input_range)
    assert study["largest_change"][0] < 0.05


def test_a_uint8_file_scaled_to_minus_one_to_one_gets_a_photos_bytes_as_they_are():
    """As Coral's classifiers are: before, pixels went in as real values and all saturated."""
    content = quantization.convert(network(), "int8_io", GREY, io="uint8", input_range=(-1, 1))
    model = TFLiteModel(content)
    assert model.input_dtype == np.uint8 and model.input_range == (-1, 1)
    assert np.array_equal(model.to_input(GREY[:1, ..., None]), GREY[:1, ..., None])
    exact = TFLiteModel(quantization.convert(network(), "float32"), input_range=(-1, 1))(GREY)
    assert np.abs(model(GREY) - exact).max() < 0.05


def test_models_of_every_make_are_converted(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            self.inner = L.Dense(3, activation="softmax")

        def call(self, x):
            return self.inner(keras.ops.mean(x, (1, 2)))

    unbuilt = keras.Sequential([L.Conv2D(2, 3), L.GlobalAveragePooling2D(), L.Dense(2)], name="unbuilt")
    for model in (Own(), unbuilt):
        with pytest.raises(
            ValueError, match=r"'(own|unbuilt)' does not know its input shape; begin it with keras.Input"
        ):
            quantization.convert(model, "float32")
        content = quantization.convert(model, "int8", GREY)
        assert np.abs(TFLiteModel(content)(GREY) - model(GREY[..., None].astype("float32"))).max() < 2
    network().save(tmp_path / "a net.keras")
    assert quantization.convert(str(tmp_path / "a net.keras"), "int8", GREY)


def test_mixed_precision_becomes_float32():
    mixed, plain = network(dtype="mixed_float16"), network(name="net", conv="conv")
    plain.set_weights(mixed.get_weights())
    files = quantization.convert_all(mixed, ("float32", "int8"), GREY)
    exact = plain.predict(GREY[..., None], verbose=0)
    assert np.abs(TFLiteModel(files["float32"])(GREY) - exact).max() < 1e-5
    assert np.abs(TFLiteModel(files["int8"])(GREY) - exact).max() < 0.1


@pytest.mark.parametrize("tool", ["quantizer", "converter"])
def test_a_recurrent_loop_is_refused_before_the_converter_ends_the_process(tool):
    image = keras.Input((6, 6, 3))
    x = L.Reshape((6, 18))(image)
    photos = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    looping = keras.Model(image, L.Dense(2, activation="softmax")(L.LSTM(3)(x)))
    with pytest.raises(ValueError, match=r"loop of a recurrent layer; use scheme='dynamic_range'"):
        quantization.convert(looping, "int8", photos, tool=tool)
    small = quantization.convert(looping, "dynamic_range")
    assert np.abs(TFLiteModel(small)(photos) - looping(photos.astype("float32"))).max() < 0.05
    unrolled = keras.Model(image, L.Dense(2, activation="softmax")(L.LSTM(3, unroll=True)(x)))
    if tool == "quantizer":
        with pytest.raises(ValueError, match=r"cannot run on this LiteRT runtime .*scheme='dynamic_range', or tool="):
            quantization.convert(unrolled, "int8", photos)
        return
    answers = TFLiteModel(quantization.convert(unrolled, "int8", photos, tool=tool))(photos)
    assert np.abs(answers - unrolled(photos.astype("float32"))).max() < 0.2


def test_a_lower_bound_says_so_and_a_head_without_classes_has_no_accuracy():
    image = keras.Input((6, 6, 3))
    looping = keras.Model(image, L.Dense(2)(L.LSTM(3)(L.Reshape((6, 18))(image))))
    photos = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    table = quantization.evaluate_schemes({"float32": quantization.convert(looping, "float32")}, photos, [0, 1, 0, 1])
    assert table.loc["float32", "macs_note"] == "at least: WHILE not counted"
    regression = keras.Model(image, L.Dense(1)(L.Flatten()(image)))
    files = quantization.convert_all(regression, ("float32", "int8"), photos)
    table = quantization.evaluate_schemes(files, photos, [0, 0, 0, 0])
    assert table[["accuracy", "macro_f1", "agreement"]].isna().all(axis=None) and "macs_note" not in table
    assert table.loc["int8", "largest_change"] > 0
