"""Error by layer: names, ratios by hand, blame, and the mixed scheme."""

import numpy as np
import pandas as pd
import pytest
import quantization_models as small

from utils import quantization
from utils.environment import quiet
from utils.quantization import calibration
from utils.quantization import error as quantization_error
from utils.quantization.convert import layer_name, tensor_layers


@pytest.fixture(scope="module")
def table():
    return quantization_error.by_layer(small.files()["float32"], small.files()["int8"], small.photos(8, seed=6))


def test_layers_carry_their_keras_names_in_order(table):
    expected = ["preprocess", "preprocess", "stem_conv", "a_expand", "a_dwconv", "a_project", "a_add",
                "b_expand", "b_dwconv", "b_project", "b_add", "pooled_features", "classifier", "softmax"]  # fmt: skip
    assert list(table["layer"]) == expected
    assert (table["bits"] == 8).all()
    numbered = "net_1/act_1/Relu6;net_1/bn_1/sub;net_1/conv2d_1_1/convolution1"  # a layer whose own name ends in _1
    assert layer_name(numbered, "CONV_2D") == "conv2d_1"
    with pytest.raises(ValueError, match="at least one photo"):
        quantization_error.by_layer(small.files()["float32"], small.files()["int8"], small.photos(0))


def test_ratio_by_an_independent_calculation(table):
    """The pooled features of Keras against those of the int8 file, read with a plain interpreter."""
    import keras
    from ai_edge_litert.interpreter import Interpreter

    images = small.photos(8, seed=6)
    exact = keras.Model(small.network().input, small.network().get_layer("pooled_features").output).predict(
        images, verbose=0
    )
    with quiet():
        interpreter = Interpreter(model_content=small.files()["int8"], experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    (detail,) = [d for d in interpreter.get_tensor_details() if "pooled_features" in d["name"] and len(d["shape"]) == 2]
    scale, zero = detail["quantization"]
    coarse = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None].astype(np.float32))
        interpreter.invoke()
        coarse.append((interpreter.get_tensor(detail["index"])[0].astype(float) - zero) * scale)
    expected = 10 * np.log10(np.sum(exact**2) / np.sum((exact - np.array(coarse)) ** 2))
    row = table[table["layer"] == "pooled_features"].iloc[0]
    assert row["SQNR (dB)"] == pytest.approx(expected, abs=0.1)
    before = table[table["layer"] == "b_add"].iloc[0]["SQNR (dB)"]
    assert row["lost (dB)"] == pytest.approx(before - row["SQNR (dB)"])


def test_more_bits_less_noise(table):
    finer = quantization_error.by_layer(small.files()["float32"], small.files()["int16x8"], small.photos(8, seed=6))
    assert (finer["bits"].iloc[2:-1] == 16).all()
    coarse = table["SQNR (dB)"].iloc[2:-1].to_numpy()
    assert (finer["SQNR (dB)"].iloc[2:-1].to_numpy() > coarse).mean() > 0.7


def test_the_broken_layer_is_named():
    """One activation's range 200 times too wide, which leaves it one level of 256: that layer must come out worst."""
    statistics = calibration.measure(small.files()["float32"], small.photos())
    (index,) = [i for i, name in enumerate(statistics.names) if "b_dwconv" in name]
    statistics.highs[:, index] *= 200
    table = quantization_error.alone(
        small.files()["float32"], statistics, small.photos(8, seed=6), layers=["a_expand", "b_dwconv", "b_expand"]
    )
    assert table["layer"][0] == "b_dwconv"
    assert table["mean_change"][0] > 3 * table["mean_change"][1]


def test_mixed_scheme_ends_at_float():
    every = list(dict.fromkeys(tensor_layers(small.files()["float32"]).values()))
    images = small.photos(8, seed=6)
    answers = quantization.TFLiteModel(small.files()["float32"])(images).argmax(1)
    table = quantization_error.mixed(
        small.files()["float32"], small.photos(), every, images, counts=(0, 3, len(every)), labels=answers
    )
    change = table["mean_change"]
    assert list(table["layers_in_float"]) == [0, 3, len(every)]
    assert change[0] > change[2] < 1e-6
    assert table["accuracy"][2] == table["agreement"][2] == 1
    assert table["size_bytes"][0] == len(small.files()["int8"]) < table["size_bytes"][2]


def test_layers_counts_and_labels_that_do_not_fit_are_refused_and_never_counted():
    """Before: an unknown layer was harmless, -1 kept all but one, names as labels were all wrong, in silence."""
    content, photos = small.files()["float32"], small.photos(2)
    statistics = calibration.measure(content, photos)
    with pytest.raises(ValueError, match="the model has no layer 'none'"):
        quantization_error.alone(content, statistics, photos, ["none"])
    assert list(quantization_error.alone(content, statistics, photos, "a_project")["layer"]) == ["a_project"]
    assert quantization_error.alone(content, statistics, photos, []).empty
    column = pd.Series(["a_project"])  # of a table, as the notebook passes it
    assert list(quantization_error.alone(content, statistics, photos, column)["layer"]) == ["a_project"]
    table = quantization_error.mixed(content, statistics, "a_project", photos, counts=(0, 1, 8))
    assert list(table["layers_in_float"]) == [0, 1]
    with pytest.raises(ValueError, match="counts must be numbers of layers"):
        quantization_error.mixed(content, statistics, ["a_project"], photos, counts=(-1,))
    for labels in (["boot", "sock"], [0]):
        with pytest.raises(ValueError, match="labels must hold one class index for each of 2 photos"):
            quantization_error.mixed(content, statistics, [], photos, counts=(0,), labels=labels)
    with pytest.raises(ValueError, match="at least one photo"):
        quantization_error.alone(content, statistics, photos[:0], ["a_project"])
    for wrong in (photos[:0], photos[0], photos[:, :8]):
        with pytest.raises(ValueError, match=r"representative photos must have shape \(n, 32, 32, 3\), got"):
            calibration.measure(content, wrong)


def test_files_are_taken_by_their_path_and_keras_models_refused(tmp_path):
    path = quantization.save(tmp_path / "m.tflite", small.files()["float32"])
    assert len(quantization_error.by_layer(path, small.files()["int8"], small.photos(1))) == 14
    with pytest.raises(TypeError, match=r"a \.tflite model as a path or bytes, got Functional; convert it first"):
        quantization_error.by_layer(small.network(), small.files()["int8"], small.photos(1))


def test_a_layer_kept_in_float_is_float():
    content = quantization.convert(small.files()["float32"], "int8", small.photos(), keep_float=["a_dwconv"])
    table = quantization_error.by_layer(small.files()["float32"], content, small.photos(2))
    assert dict(zip(table["layer"], table["bits"], strict=True))["a_dwconv"] == 32
    assert (table["bits"] == 8).sum() == len(table) - 1
