"""Schemes, tools, calibration and the files that come of them; what is refused, and that nothing half-written stays."""

import collections
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import quantization_models as small
from PIL import Image

from utils import quantization
from utils.quantization import TFLiteModel, calibration
from utils.quantization.convert import open_file
from utils.quantization.measure import memory


@pytest.fixture(scope="module")
def reference():
    return small.network().predict(small.photos(), verbose=0)


@pytest.mark.parametrize(
    "scheme, change",  # mean change of a probability; 4-bit weights change them by 0.3 on this network
    [("float32", 5e-6), ("float16", 0.004), ("dynamic_range", 0.09), ("int8", 0.07), ("int8_io", 0.07),
     ("int16x8", 0.08), ("weight_int8", 0.08)],
)  # fmt: skip
def test_every_scheme_stays_near_float_and_float32_is_what_keras_computes(reference, scheme, change):
    away = np.abs(TFLiteModel(small.files()[scheme])(small.photos()) - reference)
    assert away.mean() < change and (away.mean() > 5e-6) == (scheme != "float32"), "each is a scheme of its own"


KERNELS = 3 * 3 * 3 * 8 + 2 * (8 * 24 + 9 * 24 + 24 * 8) + 8 * 4  # weights of the small network


def stored_types(content):
    """Bytes of constant tensors by type."""
    file, sizes = open_file(content), collections.Counter()
    for at, tensor in enumerate(file.tensors):
        sizes[tensor.dtype] += file.data(at).size
    return sizes


def test_weights_are_stored_as_the_scheme_says():
    kernels, types = KERNELS, {name: stored_types(content) for name, content in small.files().items()}
    assert types["float32"]["FLOAT32"] >= 4 * kernels
    assert types["float16"]["FLOAT16"] >= 2 * kernels
    for name in ("dynamic_range", "int8", "int8_io", "int16x8", "weight_int8"):
        assert kernels <= types[name]["INT8"] <= kernels + 8, name
    depthwise = 2 * 9 * 24  # has no 4-bit form
    assert types["weight_int4"]["INT4"] == (kernels - depthwise) / 2
    assert types["weight_int4"]["INT8"] == depthwise


@pytest.mark.parametrize("scheme", ["float16", "dynamic_range", "int8", "int16x8"])
def test_both_tools_make_the_same_network(reference, scheme):
    images = small.photos()
    other = TFLiteModel(quantization.convert(small.network(), scheme, images, tool="converter"))(images)
    assert np.abs(other - TFLiteModel(small.files()[scheme])(images)).mean() < 0.1
    assert np.abs(other - reference).mean() < 0.1


def test_input_range_is_that_of_a_pixel_whatever_calibration_saw_and_a_saved_file_is_taken_too(tmp_path):
    dark, lite = small.photos() // 4, quantization.save(tmp_path / "m.tflite", small.files()["float32"])
    content = quantization.convert(lite, "int8_io", dark)
    assert content == quantization.convert(small.files()["float32"], "int8_io", dark)
    assert TFLiteModel(content)._scale_in == (1.0, -128)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_network():
    images = small.photos(6, seed=4)
    statistics = calibration.measure(small.files()["float32"], images)
    inner = keras.Model(small.network().input, small.network().get_layer("a_expand_relu").output)
    values = inner.predict(images, verbose=0)
    (name,) = [name for name in statistics.names if "a_expand" in name]
    low, high = statistics.ranges()[name]
    assert (low, high) == pytest.approx((values.min(), values.max()), abs=1e-4)
    assert len(statistics.first(2)) == 2
    with pytest.raises(ValueError, match="6 photos that were measured, got 7"):
        statistics.first(7)


def test_rules_by_hand():
    samples = np.empty((2, 1), dtype=object)
    samples[0, 0], samples[1, 0] = np.linspace(-1, 1, 1001), np.append(np.linspace(-1, 1, 1000), 100.0)
    lows, highs = np.array([[-1.0], [-1.0]]), np.array([[1.0], [100.0]])
    both = calibration.Statistics(("in", "x"), (4, 2), np.hstack([lows, lows]), np.hstack([highs, highs]),
                                  np.hstack([samples, samples]))  # fmt: skip
    assert both.ranges()["x"] == (-1, 100)
    assert both.ranges("moving average")["x"] == (-1, pytest.approx(0.95 * 1 + 0.05 * 100))
    assert both.ranges("percentile")["x"][1] < 100
    assert both.ranges("mse")["x"][1] <= 100
    assert both.ranges("mse")["in"] == (0, 255)
    with pytest.raises(ValueError, match="got 'best'"):
        both.ranges("best")


def test_calibration_study_rows():
    table = quantization.calibration_study(
        small.files()["float32"], small.photos(), small.photos(8, seed=9), np.zeros(8, int), counts=(1, 4, 100)
    )
    assert list(zip(table["method"], table["photos"], strict=True)) == [
        ("min-max", 1), ("min-max", 4), ("min-max", 24), ("moving average", 24), ("percentile", 24), ("mse", 24)
    ]  # fmt: skip
    direct = TFLiteModel(quantization.convert(small.files()["float32"], "int8", small.photos()[:4]))
    exact = TFLiteModel(small.files()["float32"])(small.photos(8, seed=9))
    change = np.abs(direct(small.photos(8, seed=9)) - exact).max()
    assert table["largest_change"][1] == pytest.approx(change)


def test_representative_photos_are_training_photos_and_balanced(tmp_path):
    labels, parts = "aaaaaaaaabbbcaaaaabbb", ["train"] * 13 + ["test"] * 5 + ["validation"] * 3
    paths = [str(tmp_path / f"{number}.png") for number in range(len(parts))]
    for number, path in enumerate(paths):
        Image.new("RGB", (20, 20), (number * 9, 0, 0)).save(path)
    frame = pd.DataFrame({"path": paths, "label": list(labels), "split": parts})
    photos = quantization.representative_photos(frame, 9, input_size=16)
    assert (photos.shape, photos.dtype) == ((9, 16, 16, 3), np.uint8)
    numbers = photos[:, 8, 8, 0] // 9
    assert all(parts[number] == "train" for number in numbers) and len(set(numbers)) == 9
    chosen = [labels[number] for number in numbers]
    assert sorted(chosen[:3]) == ["a", "b", "c"] and sorted(chosen[:5]) == ["a", "a", "b", "b", "c"]
    with pytest.raises(ValueError, match="13 photos of the training set, got 14"):
        quantization.representative_photos(frame, 14)
    with pytest.raises(ValueError, match="0 photos"):
        quantization.representative_photos(frame[frame["split"] == "test"], 1)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_price_list(reference):
    images, labels = small.photos(), reference.argmax(1).copy()
    labels[:6] = (labels[:6] + 1) % 4  # float32 is wrong on six of 24
    models = {name: small.files()[name] for name in ("int8", "float32")}
    table = quantization.evaluate_schemes(models, images, labels)
    assert list(table.index) == ["int8", "float32"]
    row = table.loc["float32"]
    assert row["accuracy"] == pytest.approx(18 / 24)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((0.5510, 0.8800), abs=1e-3)  # Wilson by hand
    assert tuple(row[["agreement", "largest_change", "size_bytes"]]) == (1, 0, len(models["float32"]))
    assert table.loc["int8", "times_smaller"] == pytest.approx(len(models["float32"]) / len(models["int8"]))
    assert table.loc["int8", "gzip_bytes"] < len(models["int8"])
    side = (small.SIZE // 2) ** 2
    macs = side * (27 * 8 + 2 * (8 * 24 + 9 * 24 + 24 * 8)) + 8 * 4
    assert table.loc["int8", "macs_m"] == pytest.approx(macs / 1e6, rel=0.02)
    assert table.loc["int8", "macs_m"] == pytest.approx(table.loc["float32", "macs_m"], rel=0.02)
    for wrong in (labels[:5], labels.astype(float), []):
        with pytest.raises(ValueError, match="one class index for each"):
            quantization.evaluate_schemes(models, images, wrong)
    for wrong in (labels - 1, labels + 1):  # before, -1 was counted as a wrong answer
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.3"):
            quantization.evaluate_schemes(models, images, wrong)
    with pytest.raises(ValueError, match="got 'best'"):
        quantization.evaluate_schemes(models, images, labels, reference="best")


def test_memory_by_hand():
    """Weights: 1 byte a kernel weight, 4 a bias. Arena: the largest sum of activations alive at once, int8."""
    content = small.files()["int8"]
    found = memory(content)
    biases = 4 * (8 + 2 * (24 + 24 + 8) + 4)
    scaling, axes = 1 + 1, 2 * 4  # of the preprocessing, and of the pooling
    assert open_file(content).stored_bytes == KERNELS + biases + scaling + axes
    side = (small.SIZE // 2) ** 2
    alive = side * (8 + 24 + 24)  # short cut, expansion, depthwise; the planner may leave a gap
    assert alive <= found["arena_bytes"] <= 1.2 * alive
    assert memory(small.files()["float32"])["arena_bytes"] == pytest.approx(4 * found["arena_bytes"], rel=0.1)
    assert found["unpacked_bytes"] == 0
    assert memory(small.files()["weight_int8"])["unpacked_bytes"] >= 4 * KERNELS
    image = keras.Input((8, 8, 3))  # ai-edge-quantizer moves more than 256 KiB of weights behind the flatbuffer
    x = keras.layers.Dense(100_000, activation="relu")(keras.layers.GlobalAveragePooling2D()(image))
    content = quantization.convert(keras.Model(image, keras.layers.Dense(2)(x)), "weight_int8")
    assert 500_000 <= open_file(content).stored_bytes <= 500_000 + 4 * 100_002 + 64


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"scheme": "int3"}, "scheme must be one of .* got 'int3'"),
        ({"scheme": ["int8"]}, r"scheme must be one of .* got \['int8'\]"),
        ({"scheme": "int8"}, "needs representative photos"),
        ({"scheme": "int8", "representative": np.zeros((0, 32, 32, 3))}, "needs representative photos"),
        ({"scheme": "int8", "representative": np.zeros((2, 16, 16, 3))}, r"must have shape \(n, 32, 32, 3\)"),
        ({"scheme": "int8", "representative": small.photos() / 255}, r"pixels in 0\.\.255"),
        ({"scheme": "int8", "representative": small.photos() - 128.0}, r"pixels in 0\.\.255"),
        ({"scheme": "float16", "tool": "magic"}, "tool must be one of .* got 'magic'"),
        ({"scheme": "weight_int4", "tool": "converter"}, "cannot make weight_int4"),
        ({"scheme": "float16", "calibrate": "best"}, "calibrate must be .* got 'best'"),
        ({"scheme": "int8_io", "io": "int4"}, "io must be int8 or uint8, got 'int4'"),
        ({"scheme": "int8", "io": "uint8", "representative": small.photos()}, "works with scheme int8_io"),
        ({"scheme": "int8", "representative": small.photos(), "keep_float": ["none"]}, "no layer 'none'"),
        ({"scheme": "int8", "representative": small.photos(), "tool": "converter", "calibrate": "mse"}, "quantizer"),
    ],
)
def test_bad_requests_are_one_sentence(options, message):
    options = dict(options)
    with pytest.raises(ValueError, match=message):
        quantization.convert(small.network(), options.pop("scheme"), options.pop("representative", None), **options)


def test_models_that_cannot_be_converted(tmp_path):
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    two = keras.Model(image, [keras.layers.Dense(2)(pooled), keras.layers.Dense(3)(pooled)], name="two")
    with pytest.raises(ValueError, match=r"expected a photo classifier .* in 'two'"):
        quantization.convert(two, "float32")

    class Inverse(keras.layers.Layer):
        def call(self, x):
            return keras.ops.det(x[..., 0])[:, None]

    with pytest.raises(ValueError, match=r"cannot express 'odd'.*replace") as caught:
        quantization.convert(keras.Model(image, Inverse()(image), name="odd"), "float32")
    assert "\n" not in str(caught.value)
    assert "MatrixDeterminant" in str(caught.value)
    with pytest.raises(TypeError, match="got dict"):
        quantization.convert({}, "float32")
    with pytest.raises(FileNotFoundError, match=r"none\.keras"):
        quantization.convert(tmp_path / "none.keras", "float32")
    (tmp_path / "bad.keras").write_bytes(b"PK\3\4 not a zip")
    with pytest.raises(ValueError, match=r"bad\.keras cannot be read"):
        quantization.convert(tmp_path / "bad.keras", "float32")
    with pytest.raises(ValueError, match="quantized already"):
        quantization.convert(small.files()["int8"], "int8", small.photos())
    with pytest.raises(ValueError, match="converter starts from a Keras model"):
        quantization.convert(small.files()["float32"], "float16", tool="converter")


@pytest.mark.parametrize("tool", ["quantizer", "converter"])
def test_weights_beyond_float16_are_refused(tool):
    """Before, the quantizer's file answered inf, and the converter's had other weights, in silence."""
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(2, 1, kernel_initializer=keras.initializers.Constant(1e5), activation="relu")(image)
    x = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(1e-6))(keras.layers.Flatten()(x))
    with pytest.raises(ValueError, match=r"float16 holds weights up to 65,504, got larger ones in '.*conv"):
        quantization.convert(keras.Model(image, x), "float16", tool=tool)


def test_lost_weights_are_noticed(monkeypatch):
    """The known trap of the converter: a file without its weights, and no error."""
    other = keras.models.clone_model(small.network())
    wrong = quantization.convert(other, "float32")
    module = sys.modules["utils.quantization.convert"]  # `quantization.convert` is the function
    monkeypatch.setattr(module, "_run_converter", lambda model: wrong)
    with pytest.raises(RuntimeError, match="differs from the Keras model"):
        quantization.convert(small.network(), "float32")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    content = small.files()["int8"]
    for arguments, facts in (
        ((path, content[:900]), {}), ((path, content, ["a", "b"]), {}), ((tmp_path / "m.bin", content), {}),
        ((path, content), {"scheme": "int3"}), ((path, content), {"accuracy": np.nan}),
        ((path, content), {"accuracy": np.zeros(2)}), ((path, content), {"sha256": "of another"}),
        ((path, content, [None] * 4), {}),
    ):  # fmt: skip
        with pytest.raises(ValueError):
            quantization.save(*arguments, **facts)
    assert list(tmp_path.iterdir()) == []
    quantization.save(path, content, small.CLASSES, scheme="int8", source="a test", low_confidence=np.float32(0.5))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.json", "m.tflite"]
    description = TFLiteModel(path).description
    assert [description[key] for key in ("labels", "scheme", "low_confidence")] == [list(small.CLASSES), "int8", 0.5]
    assert "0..255" in description["preprocessing"]


def test_what_would_be_refused_later_is_not_saved_and_logits_make_no_threshold(tmp_path):
    for facts, message in (
        ({"input": 1, "sha256": 2}, "names of their own, got input, sha256"),
        ({"accuracy": np.nan}, "must be what JSON can hold"),
        ({"accuracy": object()}, "must be what JSON can hold"),
    ):
        with pytest.raises(ValueError, match=message):
            quantization.save(tmp_path / "m.tflite", small.files()["int8"], **facts)
    with pytest.raises(ValueError, match=r"expected probabilities, got -1\.\.9; apply the softmax first"):
        quantization.confidence_threshold([[9, -1]], [0])
    with pytest.raises(TypeError, match="expected a dict, name -> bytes or path"):
        quantization.evaluate_schemes([small.files()["float32"]], small.photos(1))


def test_a_file_is_saved_from_its_path_and_a_range_of_any_numbers(tmp_path):
    """Before, both ended in a TypeError of the library that hashes or writes."""
    first = quantization.save(tmp_path / "a.tflite", small.files()["float32"])
    second = quantization.save(tmp_path / "b.tflite", first, input_range=np.array([0, 1], np.float32))
    assert second.read_bytes() == first.read_bytes() and TFLiteModel(second).description["input_range"] == [0, 1]


def test_no_keras_at_the_door_and_no_noise_behind_it():
    code = (
        "import sys, numpy as np; from utils import quantization\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))\n"
        "content = sys.stdin.buffer.read(); photos = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3))\n"
        "quantization.TFLiteModel(quantization.convert(content, 'int8', photos))(photos)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=small.files()["float32"], capture_output=True)
    assert (done.stdout, done.stderr) == (b"[]\n", b"")


def test_threshold_keeps_the_right_answers():
    random = np.random.default_rng(0)
    first = random.uniform(0.5, 1, 1000)
    probabilities, labels = np.stack([first, 1 - first], 1), (random.random(1000) > first).astype(int)
    right = first[labels == 0]
    value = quantization.confidence_threshold(probabilities, labels)
    assert (right >= value).mean() >= 0.95
    assert (right >= value + 0.02).mean() < 0.95
    with pytest.raises(ValueError, match="no answer is right"):
        quantization.confidence_threshold(probabilities, np.full(1000, 1 - probabilities.argmax(1)))
    with pytest.raises(ValueError, match="keep must be a share"):
        quantization.confidence_threshold(probabilities, labels, keep=0)
