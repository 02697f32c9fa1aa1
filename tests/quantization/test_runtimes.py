"""utils.quantization.runtimes and utils.quantization.operators: every row runs the same network; a file can be taken
apart."""

import importlib.util

import flatbuffers
import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from utils import flops, latency, quantization
from utils.classify.interpreter import open_interpreter
from utils.quantization import operators as operator_times
from utils.quantization import runtimes

pytestmark = pytest.mark.filterwarnings("ignore::utils.latency.LoadedMachine")
L = keras.layers


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((24, 24, 3)), L.Rescaling(1 / 127.5, offset=-1.0),
            L.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            L.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise"), L.Conv2D(16, 1, name="second"),
            L.GlobalAveragePooling2D(), L.Dense(5, activation="softmax", name="top"),
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(0).integers(0, 256, (12, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(model, photos):
    return quantization.convert_all(model, ("float32", "float16", "int8", "int8_io"), photos)


@pytest.fixture(scope="module")
def rows(model, files, photos):
    few = photos[:3]
    found = runtimes.litert_candidates(files, few) | runtimes.keras_candidates(model, few, threads=2)
    return found | {runtimes.ONNX: runtimes.onnx_candidate(model, few)}


def test_every_way_of_calling_is_there_and_runs_the_same_network(model, rows, photos, monkeypatch):
    expected = {"LiteRT float32", "LiteRT float16", "LiteRT int8", "LiteRT int8_io", *runtimes.KERAS, runtimes.ONNX}
    ways = "2 threads", "TFLiteModel", "no XNNPACK", "reference kernels", "new interpreter each photo", "one batch"
    expected |= {f"LiteRT {scheme}, {way}" for scheme in ("float32", "int8") for way in ways}
    assert set(rows) == expected
    threads = [rows[name].threads for name in ("LiteRT float32", "LiteRT float32, 2 threads", "Keras predict")]
    assert threads == [1, 2, 2]
    truth = model.predict(photos[:3].astype("float32"), verbose=0)
    for name, row in rows.items():
        if not isinstance(row, str):
            allowed = 0.03 if "int8" in name or "float16" in name else 1e-5
            assert np.abs(row() - truth).max() < allowed, name
    assert runtimes.agreement(rows, tolerance=1e-4)["LiteRT float32"] == 0
    with pytest.raises(RuntimeError, match="'Keras predict' gives other probabilities"):
        runtimes.agreement({**rows, "Keras predict": lambda: np.ones((3, 5), "float32")}, tolerance=1e-2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert runtimes.onnx_candidate(model, photos) == "not installed; pip install onnxruntime tf2onnx onnx"


def test_the_kernels_differ_indeed(files):
    def nodes(kernels):
        return [op["op_name"] for op in open_interpreter(files["float32"], 1, kernels)._get_ops_details()]

    assert "DELEGATE" in nodes("xnnpack")
    assert "DELEGATE" not in nodes("builtin") + nodes("reference")


def test_price_list_in_a_process_of_its_own(files, photos):
    with pytest.raises(ValueError, match=r"got \(1, 20, 24, 3\)"):
        runtimes.price_list(None, files, photos[:1, :20], rounds=5)
    some = {name: files[name] for name in ("float32", "int8")}
    result = runtimes.price_list(None, some, photos[:1], rounds=5, budget_s=1, detailed=("int8",))
    assert isinstance(result, latency.Timings) and "cores" in result.machine
    assert result.baseline == "LiteRT float32"
    frame = result.to_frame().set_index("name")
    assert "LiteRT int8, reference kernels" in frame.index and "LiteRT float32, reference kernels" not in frame.index
    assert (frame["ratio"] > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, f, p: runtimes.price_list(None, {}, p), "got neither"),
        (lambda m, f, p: runtimes.price_list(None, f, p, threads=0), "positive integer, got 0"),
        (lambda m, f, p: runtimes.price_list(None, f, p, more_threads=(2, -1)), "positive integer, got -1"),
        (lambda m, f, p: runtimes.litert_candidates({"x": b"not a model"}, p), "is not a .tflite model"),
        (lambda m, f, p: operator_times.per_operator_times(f["int8"], threads=0), "positive integer, got 0"),
        (lambda m, f, p: operator_times.per_operator_times(f["int8"][:3000]), "damaged or cut short"),
    ],
)
def test_bad_input_gets_one_sentence(model, files, photos, call, message):
    with pytest.raises(ValueError, match=message):
        call(model, files, photos)


def run(content, inputs):
    interpreter = open_interpreter(content, kernels="builtin")
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("scheme", ["float32", "float16", "int8"])
def test_a_file_in_pieces_computes_what_the_whole_does(files, photos, scheme):
    content, value = files[scheme], photos[:1].astype("float32")
    whole = operator_times.Pieces(content)
    pieces, chained = [whole.cut(place)[0] for place in whole.places], value
    for piece in pieces:  # the test network is a chain: the output of one piece is the next one's input
        chained = run(piece, [chained])
    np.testing.assert_array_equal(chained, run(content, [value]))
    assert all(len(piece) < len(content) for piece in pieces)


def default_file(*layers, shape=(12, 12, 3), dtype=None, configure=False):
    """A file by TensorFlow's converter as most people call it: open batch, shapes computed in the file."""
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if configure:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        noise = np.random.default_rng(0)
        converter.representative_dataset = lambda: ([noise.random((1, *shape), "f4")] for _ in range(4))
    return converter.convert()


def block_wise():
    """Dense weights in blocks of 32, whose scales are tensors of their own."""
    from ai_edge_quantizer import qtyping, quantizer

    source = default_file(L.Flatten(), L.Dense(8, kernel_initializer="random_normal"), shape=(8, 8, 1))
    work = quantizer.Quantizer(source)
    grain = qtyping.QuantGranularity.BLOCKWISE_32
    work.add_dynamic_config(".*", qtyping.TFLOperationName.FULLY_CONNECTED, 4, granularity=grain)
    return bytes(work.quantize().quantized_model)


@pytest.mark.parametrize("make", [
    lambda: default_file(L.Conv2DTranspose(4, 3, strides=2), L.Flatten(), L.Dense(3)),
    lambda: default_file(L.Conv2D(4, 3, dilation_rate=2), L.Flatten(), L.Dense(3), configure=True),
    lambda: default_file(L.Reshape((12, 36)), L.LSTM(5, unroll=True), L.Dense(2), configure=True),
    lambda: default_file(L.Embedding(5, 3), L.GlobalAveragePooling1D(), shape=(7,), dtype="int32"),
    block_wise,
])  # fmt: skip
def test_files_of_the_converter_come_apart_and_each_piece_gives_what_the_whole_gave(make):
    content = make()
    pieces = operator_times.Pieces(content)
    for place in pieces.places:
        piece, values = pieces.cut(place)
        runner = operator_times._Runner(piece, values, 1, "builtin")
        runner()
        (first, *_) = runner.interpreter.get_output_details()
        expected = pieces.computed[pieces.file.operators[place].outputs[0]]
        np.testing.assert_allclose(runner.interpreter.get_tensor(first["index"]), expected, atol=1e-6)
    times = operator_times.per_operator_times(content, rounds=5, calls=1, budget_s=1)
    assert len(times.frame) == len(pieces.places) and not times.frame["output_shape"].str.contains("None").any()


def test_a_path_is_taken_a_keras_model_refused_and_a_ring_of_operators_ends(files, model, tmp_path):
    """Before: a TypeError of bytes(), minutes of pickling, a RecursionError."""
    with pytest.raises(TypeError, match=r"expected a \.tflite model as a path or bytes, got"):
        operator_times.per_operator_times(model)
    path = quantization.save(tmp_path / "m.tflite", files["int8"])
    assert len(operator_times.per_operator_times(path, rounds=5, calls=1, budget_s=1).frame) > 3
    ring = schema.ModelT.InitFromPackedBuf(files["float32"], 0)
    (graph,) = ring.subgraphs
    graph.operators[0].inputs = np.full_like(graph.operators[0].inputs, graph.outputs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(ring.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(ValueError, match="cannot run"):
        operator_times.per_operator_times(bytes(builder.Output()))


def test_tensors_that_an_operator_names_beside_its_inputs_go_with_it(files):
    pieces = operator_times.Pieces(files["int8"])
    place, last = pieces.places[1], len(pieces.file.tensors) - 1
    pieces.file.graph.operators[place].intermediates = np.array([last])  # as int8 LSTMs have them
    cut = flops.tflite.File(pieces.cut(place)[0])
    (operator,) = cut.graph.operators
    assert [cut.tensors[at].name for at in operator.intermediates] == [pieces.file.tensors[last].name]


def test_time_stands_beside_arithmetic(files):
    result = operator_times.per_operator_times(files["float32"], rounds=6, calls=1, budget_s=2)
    frame = result.frame.set_index("name")
    assert frame.loc["first", ["operator", "macs"]].tolist() == ["CONV_2D", 24 * 24 * 27 * 8]
    assert frame.loc["depthwise", "macs"] == 12 * 12 * 9 * 8
    assert frame["macs"].sum() == flops.count_tflite(files["float32"]).total_macs
    assert frame["share"].sum() == pytest.approx(1) and result.sum_ms == pytest.approx(frame["time_ms"].sum())
    assert result.by_operator()["operators"].sum() == len(frame) and "the whole file" in repr(result)
    frame = result.frame.iloc[:3].assign(
        macs=[10**6, 10**6, 0], time_ms=[1.0, 5.0, 2.0], gmacs_per_s=[1.0, 0.2, np.nan]
    )
    lost = operator_times.OperatorTimes(frame, 8, 8, 1, "xnnpack", "m").slow_for_arithmetic()
    assert lost["time_ms"].tolist() == [5.0, 2.0, 1.0]
    assert lost["lost_ms"].tolist() == pytest.approx([5 - 1 / 0.6, 2.0, 1 - 1 / 0.6])


def test_a_network_without_normalization_layers_computes_the_same():
    normal = keras.layers.Normalization(mean=[10.0, 20.0, 30.0], variance=[4.0, 9.0, 16.0])
    image = keras.Input((8, 8, 3))
    network = keras.Model(image, keras.layers.Conv2D(2, 3)(normal(image)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype("float32")
    plain = runtimes._without_normalization(network)
    assert not any(isinstance(layer, keras.layers.Normalization) for layer in plain.layers)
    np.testing.assert_allclose(
        plain.predict(pixels, verbose=0), network.predict(pixels, verbose=0), rtol=1e-4, atol=1e-3
    )
    assert runtimes._without_normalization(plain) is plain
