"""What people bring: grey and scaled images, streams, models of every make; each works or is told in a sentence."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from utils import quantization
from utils.quantization import TFLiteModel, calibration, error

L = keras.layers
GREY = np.random.default_rng(0).integers(0, 256, (20, 14, 14), dtype=np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)


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
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, place):
            return pixels[5 * place : 5 * place + 5], np.zeros(5)

    class MapStyle:  # PyTorch's
        def __len__(self):
            return 4

        def __getitem__(self, place):
            return pixels[5 * place : 5 * place + 5], np.zeros(5)

    pixels = GREY[..., None].astype("float32")
    data = tf.data.Dataset.from_tensor_slices((pixels, np.zeros(len(GREY), int)))
    ways = {
        "array": pixels, "bytes": GREY, "list": list(pixels), "tf.data": data, "batches": data.batch(8),
        "generator": (photo for photo in pixels), "converter's": lambda: ([photo[None]] for photo in pixels),
        "dictionary": data.map(lambda x, y: {"image": x}).batch(3), "PyDataset": Batches(),
        "map style": MapStyle(),
    }  # fmt: skip
    made = {name: quantization.convert(float_file, "int8", photos) for name, photos in ways.items()}
    assert len(set(made.values())) == 1
    for wrong in ("a folder", 3):
        with pytest.raises(TypeError, match=r"an array or a stream of them, got (str|int)"):
            quantization.convert(float_file, "int8", wrong)
    endless = quantization.convert(float_file, "int8", data.repeat().batch(7))
    assert TFLiteModel(endless)(pixels).shape == (20, 3)
    for wrong in (1, (1, 0), (0, 1, 2), (float("nan"), 1)):  # NaN ended the process
        with pytest.raises(ValueError, match=r"input_range must be two numbers \(low, high\)"):
            quantization.convert(float_file, "int8", GREY, input_range=wrong)


@pytest.mark.parametrize("scaled, input_range", [(GREY / 255, (0, 1)), (GREY / 127.5 - 1, (-1, 1))])
def test_a_model_that_is_scaled_outside_is_calibrated_and_compared_in_its_range(float_file, scaled, input_range):
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
    files = {"float32": float_file, "int8_io": made[0]}
    table = quantization.evaluate_schemes(files, GREY, input_range=input_range)
    assert table.loc["int8_io", "largest_change"] < 0.05 and table["accuracy"].isna().all()
    with pytest.raises(ValueError, match=r"one input range, got float32 in \(0.0, 255.0\) .* pass input_range=\("):
        quantization.evaluate_schemes(files, GREY)  # before, float32 got other pixels than int8, in silence
    study = quantization.calibration_study(float_file, GREY, GREY, counts=(), methods=(), input_range=input_range)
    assert study["largest_change"][0] < 0.05


def test_layers_are_compared_in_the_range_that_the_quantized_file_says(float_file):
    """Before, the float network got 0..255 and the int8 one 0..1: every ratio was 0 dB, every layer to blame."""
    int8 = quantization.convert(float_file, "int8", GREY, input_range=(0, 1))
    assert error.by_layer(float_file, int8, GREY)["SQNR (dB)"].min() > 20
    statistics = calibration.measure(float_file, GREY[..., None] / 255, (0, 1))
    assert error.alone(float_file, statistics, GREY)["mean_change"].max() < 0.02
    assert error.mixed(float_file, statistics, [], GREY, counts=(0,))["mean_change"][0] < 0.02


def test_a_uint8_file_scaled_to_minus_one_to_one_gets_a_photos_bytes_as_they_are():
    """As Coral's classifiers are: before, pixels went in as real values and all saturated."""
    content = quantization.convert(network(), "int8_io", GREY, io="uint8", input_range=(-1, 1))
    model = TFLiteModel(content)
    assert model.input_dtype == np.uint8 and model.input_range == (-1, 1)
    assert np.array_equal(model.to_input(GREY[:1, ..., None]), GREY[:1, ..., None])
    exact = TFLiteModel(quantization.convert(network(), "float32"), input_range=(-1, 1))(GREY)
    assert np.abs(model(GREY) - exact).max() < 0.05


class Own(keras.Model):
    """Subclassed, cannot be copied (no get_config), mixed precision, names with blanks."""

    def __init__(self, width):
        super().__init__(name="my own")
        self.conv = L.Conv2D(width, 3, name="my conv", dtype="mixed_float16")
        self.head = L.Dense(3, activation="softmax", dtype="float32")

    def call(self, x):
        return self.head(keras.ops.mean(self.conv(x), (1, 2)))


def nested():
    inner = keras.Sequential([keras.Input((14, 14, 1)), L.Conv2D(4, 3, dtype="mixed_float16")], name="in side")
    image = keras.Input((14, 14, 1))
    x = L.Lambda(lambda t: t * 0.1, name="a lambda")(inner(image))
    return keras.Model(image, {"p": L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x))})


def normalized(name="a conv", **policy):
    keras.utils.set_random_seed(0)
    normalize = L.Normalization()
    normalize.adapt(GREY[..., None].astype("float32"))
    image = keras.Input((14, 14, 1))
    x = L.BatchNormalization()(L.Conv2D(4, 3, name=name, **policy)(normalize(image)))
    return keras.Model(image, L.Dense(3, activation="softmax", dtype="float32")(L.GlobalAveragePooling2D()(x)))


def flat(*shape, **options):
    keras.utils.set_random_seed(0)
    layers = L.Rescaling(1 / 255), L.Flatten(), L.Dense(3)
    return keras.Sequential([keras.Input(shape, **options), *layers])


MAKES = {
    "unbuilt": lambda: keras.Sequential([L.Conv2D(2, 3), L.GlobalAveragePooling2D(), L.Dense(2)], name="unbuilt"),
    "subclassed": lambda: Own(4),
    "nested, lambda, dict output": nested,
    "grey without channels": lambda: flat(14, 14),
    "mixed precision": lambda: network(dtype="mixed_float16"),
    "adapted normalization, mixed": lambda: normalized(dtype="mixed_float16"),
    "uint8 input": lambda: flat(14, 14, 1, dtype="uint8"),
    "fixed batch": lambda: flat(14, 14, 1, batch_size=8),
}


@pytest.mark.parametrize("make", MAKES)
def test_models_of_every_make_are_converted_and_compute_the_same(make):
    model = MAKES[make]()
    files = {scheme: quantization.convert(model, scheme, GREY) for scheme in ("float32", "int8")}
    pixels = GREY if make == "grey without channels" else GREY[..., None]
    parts = [pixels[:8], pixels[8:16]] if make == "fixed batch" else [pixels]
    exact = np.concatenate([keras.tree.flatten(model(part.astype("float32")))[0] for part in parts])
    size = max(1, np.abs(exact).max())
    half = "mixed" in make or make == "subclassed"
    assert np.abs(TFLiteModel(files["float32"])(GREY)[: len(exact)] - exact).max() < (1e-2 if half else 1e-4) * size
    assert np.abs(TFLiteModel(files["int8"])(GREY)[: len(exact)] - exact).max() < 0.1 * size
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, L.InputLayer)]
    assert make != "mixed precision" or {layer.compute_dtype for layer in layers} == {"float16", "float32"}  # as before


def test_a_copied_normalization_keeps_its_statistics():
    """Before, quantization-aware training and pruning forgot them: answers moved by 0.7, in silence."""
    from utils import pruning
    from utils.quantization import qat

    model, pixels = normalized(), GREY[..., None].astype("float32")
    for copy in (qat.fold(model), pruning.prune(model, [], 0.0, epochs=0).model):
        assert np.abs(copy(pixels) - model(pixels)).max() < 1e-5


def test_models_that_say_no_shape_and_folders_are_refused(tmp_path):
    for make in ("subclassed", "unbuilt"):
        with pytest.raises(ValueError, match=r"does not know its input shape; begin it with keras.Input"):
            quantization.convert(MAKES[make](), "float32")
    with pytest.raises(ValueError, match=r"expected a .keras file, got the folder"):
        quantization.convert(tmp_path, "float32")
    network().save(tmp_path / "a net.keras")
    assert quantization.convert(str(tmp_path / "a net.keras"), "int8", GREY)


@pytest.mark.parametrize("tool", ["quantizer", "converter"])
def test_a_recurrent_loop_is_refused_before_the_converter_ends_the_process(tool):
    image = keras.Input((6, 6, 3))
    x = L.Reshape((6, 18))(image)
    looping = keras.Model(image, L.Dense(2, activation="softmax")(L.LSTM(3)(x)))
    with pytest.raises(ValueError, match=r"loop of a recurrent layer; use scheme='dynamic_range'"):
        quantization.convert(looping, "int8", COLOUR, tool=tool)
    small = quantization.convert(looping, "dynamic_range")
    assert np.abs(TFLiteModel(small)(COLOUR) - looping(COLOUR.astype("float32"))).max() < 0.05
    unrolled = keras.Model(image, L.Dense(2, activation="softmax")(L.LSTM(3, unroll=True)(x)))
    if tool == "quantizer":
        with pytest.raises(ValueError, match=r"cannot run on this LiteRT runtime .*scheme='dynamic_range', or tool="):
            quantization.convert(unrolled, "int8", COLOUR)
        return
    answers = TFLiteModel(quantization.convert(unrolled, "int8", COLOUR, tool=tool))(COLOUR)
    assert np.abs(answers - unrolled(COLOUR.astype("float32"))).max() < 0.2


def test_a_lower_bound_says_so_and_a_head_without_classes_has_no_accuracy():
    image = keras.Input((6, 6, 3))
    branches = L.Lambda(lambda x: ops.cond(ops.sum(x) > 9, lambda: x @ ops.ones((108, 108)), lambda: x))
    uneven = keras.Model(image, L.Dense(2)(branches(L.Flatten()(image))))
    table = quantization.evaluate_schemes({"float32": quantization.convert(uneven, "float32")}, COLOUR, [0, 1, 0, 1])
    assert table.loc["float32", "macs_note"] == "at least: IF not counted"
    regression = keras.Model(image, L.Dense(1)(L.Flatten()(image)))
    files = quantization.convert_all(regression, ("float32", "int8"), COLOUR)
    table = quantization.evaluate_schemes(files, COLOUR, [0, 0, 0, 0])
    assert table[["accuracy", "macro_f1", "agreement"]].isna().all(axis=None) and "macs_note" not in table
    assert table.loc["int8", "largest_change"] > 0


def test_odd_representative_data_and_statistics_of_others_get_one_sentence(float_file, tmp_path):
    for wrong in ([[]], [()], [{}]):  # before, a bare StopIteration
        with pytest.raises(ValueError, match=r"representative photos must have shape \(n, 14, 14, 1\)"):
            quantization.convert(float_file, "int8", wrong)
    other = quantization.convert(flat(14, 14, 1), "float32")
    for statistics in (calibration.measure(other, GREY[..., None]), {"image": (0, 255)}):
        with pytest.raises(ValueError, match="expected statistics of this model's activations, got"):
            quantization.convert(float_file, "int8", statistics=statistics)
    for photos in (GREY[:0], GREY / 255, GREY * np.nan):  # before: raw errors, or ranges of black photos in silence
        with pytest.raises(ValueError, match="representative photos"):
            error.alone(float_file, photos, GREY)
    for black in (GREY * 0, GREY.astype(np.uint16) * 257, GREY * np.nan):  # before: "pass input_range=(0, 1)"
        with pytest.raises(ValueError, match=r"must be pixels in 0\.\.255, got .*; check how they were read"):
            quantization.convert(float_file, "int8", black)
    for name in ("M.TFLITE", "m.bin"):  # before, the second was "no Keras model"
        (tmp_path / name).write_bytes(float_file)
        assert quantization.convert(tmp_path / name, "float32") == float_file


def test_a_float_file_that_casts_to_bytes_inside_is_not_quantized_already():
    content = quantization.convert(flat(14, 14, 1, dtype="uint8"), "float32")
    exact = TFLiteModel(content)(GREY)
    assert np.abs(TFLiteModel(quantization.convert(content, "int8", GREY))(GREY) - exact).max() < 0.1
    for scheme in ("float16", "dynamic_range", "int8", "weight_int4"):
        with pytest.raises(ValueError, match="is quantized already"):
            quantization.convert(quantization.convert(network(), scheme, GREY), "float16")


def test_answers_that_are_nan_none_or_of_other_classes_are_not_judged():
    """Before, a model of NaN was right wherever class 0 was, and the rest ended in NumPy's errors."""
    model = network()
    good = quantization.convert(model, "float32")
    model.layers[-2].set_weights([np.full((576, 3), 1e30, np.float32), np.array([np.inf, 0, 0])])
    with pytest.raises(ValueError, match="'a net' answers a photo with NaN or infinity, before conversion"):
        quantization.convert(model, "float32")
    image = keras.Input((14, 14, 1))
    two = quantization.convert(keras.Model(image, L.Dense(2)(L.Flatten()(image))), "float32")
    for files, photos, got in (({}, GREY[:0], r"\(0, 3\)"), ({"int8": two}, GREY, r"\(20, 2\) from int8")):
        with pytest.raises(ValueError, match=f"expected finite answers .* got {got}"):
            quantization.evaluate_schemes({"float32": good, **files}, photos)
    chances = [[0.9, 0.1], [0.3, 0.7]]
    for wrong, labels in ((chances, [0, 7]), (np.multiply(chances, np.nan), [0, 1]), ([0.9, 0.3], [0, 1])):
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.1|probabilities must be finite"):
            quantization.confidence_threshold(wrong, labels)
