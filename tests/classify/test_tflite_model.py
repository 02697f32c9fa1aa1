"""The wrapper around the interpreter against a plain loop, in every scheme; threads, shapes and damaged files."""

import concurrent.futures
import functools
import io
import json
import subprocess
import sys
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
import quantization_models as small
from ai_edge_litert import schema_py_generated as schema
from PIL import Image

from utils import quantization
from utils.classify import TFLiteModel, classify, load, open_interpreter, read_description


@pytest.mark.parametrize("scheme", list(quantization.SCHEMES))
def test_equals_a_plain_loop_over_the_interpreter(scheme):
    content, images = small.files()[scheme], small.photos(7, seed=5)
    answers = TFLiteModel(content, 1)(images)
    assert np.abs(answers - small.plain_loop(content, images)).max() < 1e-6
    assert answers.dtype == np.float32 and TFLiteModel(content)(images[:0]).shape == (0, 4)


def test_quantized_input_is_fed_the_pixels_exactly_as_int8_or_uint8():
    model, images = TFLiteModel(small.files()["int8_io"]), small.photos(3)
    every = np.zeros((1, small.SIZE, small.SIZE, 3), np.uint8)
    every.flat[:256] = np.arange(256)
    assert model.input_dtype == np.int8
    assert (model.to_input(every).astype(int) == every.astype(int) - 128).all()
    assert np.array_equal(model(images), model(images.astype(np.float32)))
    content = quantization.convert(small.network(), "int8_io", small.photos(), io="uint8")
    model, images = TFLiteModel(content), small.photos(6, seed=8)
    assert model.input_dtype == model.output_dtype == np.uint8
    assert np.abs(model(images) - small.plain_loop(content, images)).max() < 1e-6
    assert np.abs(model(images) - TFLiteModel(small.files()["float32"])(images)).mean() < 0.1


def test_kernels_agree_and_others_are_refused():
    images = small.photos(4)
    expected = TFLiteModel(small.files()["float32"])(images)
    for kernels in ("builtin", "reference"):
        assert np.allclose(TFLiteModel(small.files()["float32"], kernels=kernels)(images), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"kernels must be one of .* got 'fast'"):
        open_interpreter(small.files()["float32"], kernels="fast")
    assert "32x32x3 float32 -> 4 float32" in repr(TFLiteModel(small.files()["float32"], 1))


def test_calls_from_many_threads_do_not_mix():
    model, images = TFLiteModel(small.files()["int8"], 1), small.photos(24)
    expected = model(images)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: model(images[row : row + 1])[0], list(range(24)) * 8))
    assert np.array_equal(np.array(answers), np.tile(expected, (8, 1)))
    for threads in (0, 1.5, True):
        with pytest.raises(ValueError, match="num_threads must be a positive integer"):
            TFLiteModel(small.files()["float32"], threads)


ONE = (1, small.SIZE, small.SIZE, 3)


@pytest.mark.parametrize(
    "scheme, images, message",
    [
        ("float32", np.zeros(ONE[1:], np.uint8), r"shape \(n, 32, 32, 3\), got .*; pass one photo as photo\[None\]"),
        ("float32", np.zeros((1, 16, 16, 3), np.uint8), r"got \(1, 16, 16, 3\); read them at 32 x 32"),
        ("float32", np.full(ONE, "x"), "must be numbers"),
        ("float32", np.full(ONE, np.nan), "NaN"),
        ("int8_io", small.photos(1) / 255, r"pixels in 0\.\.255, got 0.*; the model scales them itself"),
        ("int8_io", small.photos(1) * 256.0, r"pixels in 0\.\.255, got .*e\+04"),  # 16 bits: before, all were white
    ],
)
def test_photos_that_do_not_fit_are_refused(scheme, images, message):
    with pytest.raises(ValueError, match=message):
        TFLiteModel(small.files()[scheme])(images)


def test_truncated_and_missing_files_and_other_things_are_named(tmp_path):
    content = small.files()["int8"]
    for share in (0, 0.001, 0.1, 0.5, 0.999):
        (tmp_path / "cut.tflite").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=r"cut\.tflite.*(again|pass a file)"):
            TFLiteModel(tmp_path / "cut.tflite")
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        TFLiteModel(tmp_path / "none.tflite")
    with pytest.raises(TypeError, match="path or bytes"):
        TFLiteModel(42)


def test_damaged_bytes_never_crash():
    """Flipped bytes give an error or an answer; in a process of its own, so that a crash shows."""
    code = (
        "import sys, numpy as np\nfrom utils.classify.interpreter import TFLiteModel\n"
        "content = sys.stdin.buffer.read(); random = np.random.default_rng(0)\n"
        "for _ in range(40):\n"
        "    data = bytearray(content)\n"
        "    for place in random.integers(8, len(data), 5): data[place] = random.integers(256)\n"
        "    try: TFLiteModel(bytes(data), 1)\n"
        "    except ValueError: pass\n"
        "print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], input=small.files()["int8"], capture_output=True)
    assert done.stdout.strip() == b"alive", done.stderr[-500:]


def test_a_file_that_would_end_the_process_is_refused_by_name(tmp_path, monkeypatch):
    """What native code does to a file is simulated: the child ends as it would by SIGSEGV."""
    program = "import os, signal; print(0, flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(sys.modules["utils.classify.interpreter"], "_TRY", program)
    (tmp_path / "m.tflite").write_bytes(small.files()["int8"])
    with pytest.raises(ValueError, match=r"m\.tflite ends the process that runs it \(SIGSEGV\)"):
        TFLiteModel(tmp_path / "m.tflite")
    vouched = quantization.save(tmp_path / "v.tflite", small.files()["int8"])
    assert TFLiteModel(vouched).n_classes == 4  # its digest is that of the JSON, so no child is asked


def test_labels_come_from_the_json_beside(tmp_path):
    path = quantization.save(tmp_path / "m.tflite", small.files()["int8"], small.CLASSES, scheme="int8")
    assert TFLiteModel(path).labels == small.CLASSES
    assert TFLiteModel(path).description["input_size"] == [small.SIZE, small.SIZE]
    with pytest.raises(ValueError, match=r"needs 4 labels.*got 2"):
        TFLiteModel(path, labels=["a", "b"])
    for ask in (TFLiteModel, lambda path, labels: quantization.save(path, small.files()["int8"], labels)):
        with pytest.raises(ValueError, match="labels must be a list in the order of the output, got a set"):
            ask(path, labels=set(small.CLASSES))
    path.with_suffix(".json").write_text(json.dumps(small.CLASSES))  # the names alone: before, an AttributeError
    assert TFLiteModel(path).labels == small.CLASSES
    for text, message in (('{"labels": "boot"}', r"labels in .*m\.json"), ("7", "got 7"), ("{", r"m\.json")):
        path.with_suffix(".json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_description(path)


# --- the range that a file wants --------------------------------------------------------------------------------------


@functools.cache
def scaled_files(low, high, channels=3):
    """A classifier of images in low..high, as float32 and as int8 throughout, and photos in 0..255."""
    photos = np.random.default_rng(0).integers(0, 256, (16, 12, 10, channels), dtype=np.uint8)
    keras.utils.set_random_seed(1)
    image = keras.Input((12, 10, channels))
    x = keras.layers.Conv2D(6, 3, activation="relu")(image)
    x = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(stddev=4.0))(keras.layers.Flatten()(x))
    model = keras.Model(image, keras.layers.Softmax()(x))
    options = {} if (low, high) == (0, 255) else {"input_range": (low, high)}
    files = quantization.convert_all(model, ("float32", "int8", "int8_io"), photos, **options)
    exact = model.predict(low + photos.astype("float32") / 255 * (high - low), verbose=0)
    return files, photos, exact


@pytest.mark.parametrize("low, high, channels", [(0, 1, 1), (-1, 1, 3), (-0.5, 0.5, 3), (-128, 127, 1), (0, 255, 3)])
def test_a_quantized_input_says_by_its_scale_what_range_it_wants(low, high, channels):
    files, photos, exact = scaled_files(low, high, channels)
    model = TFLiteModel(files["int8_io"])
    assert model.input_range == (low, high) and model.channels == channels
    assert np.abs(model(photos) - exact).mean() < 0.05
    assert (model.to_input(photos[:1]).astype(int) == photos[:1].astype(int) - 128).all()  # bytes as they are
    inside = TFLiteModel(files["int8"])  # float in and out, quantized first of all
    assert inside.input_range == (low, high) and np.abs(inside(photos) - exact).mean() < 0.05


def test_a_float_input_is_scaled_as_the_json_says(tmp_path):
    files, photos, exact = scaled_files(-1, 1)
    for scheme, error in (("float32", 1e-5), ("int8", 0.05)):
        model = TFLiteModel(quantization.save(tmp_path / "m.tflite", files[scheme], input_range=(-1, 1)))
        assert model.description["input_range"] == [-1, 1] and model.input_range == (-1, 1)
        assert np.abs(model(photos) - exact).mean() < error
    for wrong in ((1, 1), (np.nan, 1), (0, 1, 2), 1, "ab"):
        with pytest.raises(ValueError, match=r"input_range must be two numbers .* got"):
            TFLiteModel(files["float32"], input_range=wrong)


@pytest.mark.parametrize("low, high", [(0, 17), (-123.7, 151.1)])  # the second: pixels minus ImageNet's mean
def test_a_scale_that_fits_no_usual_range_is_named(low, high):
    files, photos, exact = scaled_files(low, high)
    with pytest.raises(ValueError, match=rf"takes values in {low:.3g}\.\.{high:.3g}, which fits no usual scaling"):
        TFLiteModel(files["int8_io"])
    assert np.abs(TFLiteModel(files["int8_io"], input_range=(low, high))(photos) - exact).mean() < 0.05


def test_an_int8_input_without_a_scale_is_refused():
    """It cannot hold 0..255; before, everything above 127 saturated in silence."""
    import tensorflow as tf

    mean = tf.function(lambda x: tf.reduce_mean(tf.cast(x, tf.float32), (1, 2)))
    traced = mean.get_concrete_function(tf.TensorSpec((1, 4, 4, 3), tf.int8))
    with pytest.raises(ValueError, match="takes int8 without a scale"):
        TFLiteModel(tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert())


def test_a_grey_model_classifies_a_colour_photo(tmp_path):
    model = load(quantization.save(tmp_path / "m.tflite", scaled_files(0, 1, 1)[0]["int8_io"], labels="abc"))
    colour = Image.fromarray(np.random.default_rng(3).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    colour.save(tmp_path / "p.png")
    (grey := colour.convert("L")).save(tmp_path / "grey.png")
    answer = {entry["label"]: entry["probability"] for entry in classify(model, tmp_path / "p.png")["classes"]}
    expected = model(np.asarray(grey)[None, :, :, None])[0]
    assert [answer[label] for label in "abc"] == pytest.approx(list(expected), abs=0.03)
    assert classify(model, tmp_path / "grey.png") == classify(model, tmp_path / "p.png")


def test_open_sides_are_refused_and_never_one_pixel():
    """LiteRT fills them with 1: before, every photo was shrunk to one pixel and classified, in silence."""
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(image)))
    import tensorflow as tf

    traced = tf.function(model).get_concrete_function(tf.TensorSpec((1, None, None, 3), tf.float32))
    with pytest.raises(ValueError, match=r"leaves sides of its photos open, got \[1, -1, -1, 3\]; convert"):
        TFLiteModel(tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert())


def test_photos_in_float16_and_inputs_in_float16():
    """Before, the sum of float16 pixels overflowed ("NaN or infinity"), and a scaled float16 input was not set."""
    model, images = TFLiteModel(small.files()["int8"]), small.photos(3)
    assert np.array_equal(model(images.astype(np.float16)), model(images))
    import tensorflow as tf

    mean = tf.function(lambda x: tf.reduce_mean(tf.cast(x, tf.float32), (1, 2)))
    traced = mean.get_concrete_function(tf.TensorSpec((1, 4, 4, 3), tf.float16))
    half = TFLiteModel(tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert(), input_range=(0, 1))
    assert half(np.full((1, 4, 4, 3), 51, np.uint8)) == pytest.approx(np.full((1, 3), 0.2), abs=1e-3)


@pytest.mark.parametrize("scheme", ["int8", "int8_io"])
def test_whole_numbers_beyond_a_byte_and_scaled_pixels_are_refused_where_the_file_says_its_range(scheme):
    """Before, 16-bit pixels saturated in silence, and a file with a float input took pixels in 0..1 for black."""
    model, images = TFLiteModel(small.files()[scheme]), small.photos(1)
    for wrong in (images.astype(np.uint16) * 257, images.astype(int) - 128, images / 255):
        with pytest.raises(ValueError, match=r"photos must be pixels in 0\.\.255, got"):
            model(wrong)
    assert np.array_equal(model(images.astype(np.int64)), model(images))


def test_threads_beyond_reason_are_refused():
    for count in (100_000, 10**23):  # before: minutes at full load; a traceback with the whole model in it
        with pytest.raises(ValueError, match=r"num_threads must be a positive integer, got .*; 1 to 1024 work"):
            TFLiteModel(small.files()["float32"], count)


# --- what a file says of itself ---------------------------------------------------------------------------------------


def built(fields, builder=None):
    """A flatbuffer of nested tables {field: value}: table, list of tables or floats, text, or a byte."""
    top, builder = builder is None, builder or flatbuffers.Builder(256)
    placed = {}
    for field, value in fields.items():
        if isinstance(value, list):
            items = [built(item, builder) if isinstance(item, dict) else item for item in value]
            builder.StartVector(4, len(items), 4)
            for item in reversed(items):
                (builder.PrependFloat32 if isinstance(item, float) else builder.PrependUOffsetTRelative)(item)
            placed[field] = builder.EndVector()
        elif not isinstance(value, int):
            placed[field] = built(value, builder) if isinstance(value, dict) else builder.CreateString(value)
    builder.StartObject(8)
    for field, value in fields.items():
        if isinstance(value, int):
            builder.PrependUint8Slot(field, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(field, placed[field], 0)
    table = builder.EndObject()
    if not top:
        return table
    builder.Finish(table, file_identifier=b"M001")
    return bytes(builder.Output())


def with_metadata(content, mean, deviation, labels=None):
    """A file as published ones are: normalization and labels by metadata_schema.fbs, the labels in a zip behind it."""
    unit = {0: 1, 1: {0: mean, 1: deviation}}
    answers = {6: [{0: "labels.txt", 2: 2}]}
    data = built({3: [{2: [{0: "image", 4: [unit]}], 3: [answers]}]})
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    model.metadata = [schema.MetadataT(b"TFLITE_METADATA", len(model.buffers))]
    model.buffers.append(schema.BufferT(np.frombuffer(data, np.uint8)))
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    behind = io.BytesIO()
    if labels:
        with zipfile.ZipFile(behind, "w") as archive:
            archive.writestr("labels.txt", labels)
    return bytes(builder.Output()) + behind.getvalue()


def test_a_published_float_file_is_scaled_and_named_as_its_metadata_say(tmp_path):
    """Before, MediaPipe's and TensorFlow Hub's float classifiers got 0..255 for -1..1, in silence."""
    files, photos, exact = scaled_files(-1, 1)
    (path := tmp_path / "m.tflite").write_bytes(
        with_metadata(files["float32"], [127.5], [127.5], "boot\nfur hat\ncap\n")
    )
    model = load(path)
    assert (model.input_range, model.labels) == ((-1, 1), ("boot", "fur hat", "cap"))
    assert np.abs(model(photos) - exact).max() < 1e-5
    made = TFLiteModel(quantization.convert(path, "int8_io", photos))  # calibrated in that range, its labels are lost
    assert np.abs(made(photos) - exact).mean() < 0.05 and made.labels is None
    assert TFLiteModel(path, labels="abc", input_range=(0, 1)).input_range == (0, 1)
    again = quantization.save(tmp_path / "n.tflite", model.content, "abc")
    assert read_description(again)["input_range"] == [-1, 1] and TFLiteModel(again).labels == tuple("abc")
    with pytest.raises(ValueError, match="more than 1,048,576 bytes of labels"):  # a zip can hold any number of them
        TFLiteModel(with_metadata(files["float32"], [0.0], [1.0], "\n" * 2**21))
    quantized = with_metadata(files["int8_io"], [0.0], [1.0])  # which those who call such files do not look at
    assert TFLiteModel(quantized).input_range == (-1, 1)
    for mean, message in (([1.0, 2.0, 3.0], "channels have different scales"), ([], "different scales")):
        with pytest.raises(ValueError, match=f"has metadata that cannot be read .*{message}"):
            TFLiteModel(with_metadata(files["float32"], mean, [1.0]))


def test_a_range_that_the_files_own_scale_contradicts_is_refused(tmp_path):
    """Before, (0, 1) for an input of 0..255 made all photos black, in silence."""
    for low, high, wrong in ((0, 255, (0, 1)), (-1, 1, (0, 255))):
        for scheme in ("int8", "int8_io"):
            with pytest.raises(ValueError, match=r"takes values in .*, got input_range=\(0.0, .*; leave it out"):
                TFLiteModel(scaled_files(low, high)[0][scheme], input_range=wrong)


def test_a_range_in_the_json_beside_a_float_file_is_that_of_its_calibration(tmp_path):
    """Before, `convert` did not look there, and calibrated in 0..255."""
    files, photos, exact = scaled_files(0, 1)
    path = quantization.save(tmp_path / "m.tflite", files["float32"], input_range=(0, 1))
    for made in (quantization.convert(path, "int8", photos), quantization.convert_all(path, "int8", photos)["int8"]):
        assert TFLiteModel(made).input_range == (0, 1)
        assert np.abs(TFLiteModel(made)(photos) - exact).mean() < 0.05


def test_names_that_are_no_text_and_answers_that_are_no_tensor_are_told_in_our_words():
    model = schema.ModelT.InitFromPackedBuf(small.files()["float32"], 0)

    def packed():
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    (graph,) = model.subgraphs
    graph.operators, operators = [], graph.operators
    with pytest.raises(ValueError, match=r"the model is damaged .*; copy or convert it again"):
        TFLiteModel(packed())(small.photos(1))
    graph.operators, graph.tensors[0].name = operators, b"\xff"
    with pytest.raises(ValueError, match=r"the model cannot run on this LiteRT runtime .*utf-8"):
        TFLiteModel(packed())
