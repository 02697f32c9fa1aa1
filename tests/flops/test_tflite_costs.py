"""Costs read from `.tflite` files: equal to the Keras model in every scheme, honest bytes, hostile files refused."""

import foreign_files
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import flops

L = keras.layers
SCHEMES = ("float32", "float16", "dynamic_range", "int8", "int16x8")


def convert(model, scheme="float32"):
    """A `.tflite` file as bytes, straight from TensorFlow's converter (the oracle must not be this project's own)."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in ("int8", "int16x8"):
        shape = (1, *model.inputs[0].shape[1:])
        converter.representative_dataset = lambda: ([np.random.default_rng(i).random(shape, "f4")] for i in range(3))
        sets = tf.lite.OpsSet
        wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [sets.TFLITE_BUILTINS_INT8 if scheme == "int8" else wide]
    return converter.convert()


def mobile_block():
    """Everything that MobileNetV2 and EfficientNet are made of, small."""
    x = y = keras.Input((24, 20, 3))
    y = L.BatchNormalization()(L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(y))
    skip = y = L.ReLU(6.0)(y)
    y = L.Activation("silu")(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same")(y)))
    gate = L.Reshape((1, 1, 8))(L.GlobalAveragePooling2D()(y))
    gate = L.Conv2D(8, 1, activation="sigmoid")(L.Conv2D(2, 1, activation="relu")(gate))
    y = L.Add()([skip, L.Conv2D(8, 1)(L.Multiply()([y, gate]))])
    y = L.Dense(256, activation="relu")(L.GlobalAveragePooling2D()(y))
    model = keras.Model(x, L.Dense(5, activation="softmax")(y))
    rng = np.random.default_rng(0)  # no zero biases: the converter would leave them out
    model.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def block():
    model = mobile_block()
    return model, {scheme: convert(model, scheme) for scheme in SCHEMES}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_the_macs_of_the_keras_model_and_bytes_of_its_own(block, scheme):
    model, files = block
    report = flops.count_tflite(files[scheme], unsupported="raise")
    assert report.total_macs == flops.count(model).total_macs and report.total_flops == 2 * report.total_macs
    assert report.batch_size == 1 and report.unsupported == ()
    types = report.by_type()
    assert types.loc["CONV_2D", "calls"] == 4 and types.loc["DEPTHWISE_CONV_2D", "macs"] == 12 * 10 * 8 * 9
    assert types.loc["FULLY_CONNECTED", "macs"] == 8 * 256 + 256 * 5
    assert types.loc["MEAN", "elementwise_ops"] == 2 * 12 * 10 * 8
    for column in ("macs", "params", "elementwise_ops", "weight_bytes", "activation_bytes"):
        assert report.to_frame()[column].sum() == getattr(report, f"total_{column}")
    params, biases = flops.count_tflite(files["float32"]).total_params, 8 + 8 + 2 + 8 + 8 + 256 + 5
    least, most = {
        "float32": (4 * params, 4 * params),
        "float16": (2 * params, 2 * params),
        "dynamic_range": (params + 1, 4 * params - 1),
        "int8": (params + 3 * biases, params + 3 * biases),  # biases in int32
        "int16x8": (params + 7 * biases - 7 * 69, params + 7 * biases),  # biases in int64 (Dense ones may be int32)
    }[scheme]
    assert report.total_params == params and least <= report.total_weight_bytes <= most < len(files["float32"])
    assert report.total_weight_bytes < len(files[scheme])
    row = next(row for row in report.rows if row.type == "CONV_2D")
    assert row.activation_bytes == 12 * 10 * 8 * {"int8": 1, "int16x8": 2}.get(scheme, 4)
    assert (row.kernel, row.strides, row.filters) == ((3, 3), (2, 2), 8)
    assert row.input_shapes == ((1, 24, 20, 3),) and row.output_shapes == ((1, 12, 10, 8),)


@pytest.mark.parametrize("name, last", [("MobileNetV2", "block_6_project_BN"), ("EfficientNetB0", "block3b_add")])
def test_files_of_the_studies_networks(name, last, tmp_path):
    """Study A: quantization is said to cut FLOPs from 771 M to 2.4 M; EfficientNetB0's MEAN operators come to 2.37 M.

    Converting the whole networks takes a minute, so their first halves stand for them here. That the pooling of all of
    EfficientNetB0 comes to 2,369,248 is in test_flops; that MEAN is that pooling, here.
    """
    whole = getattr(keras.applications, name)(weights=None, classes=17)
    model = keras.Model(whole.input, L.GlobalAveragePooling2D()(whole.get_layer(last).output))
    path = tmp_path / f"{name}.tflite"
    path.write_bytes(convert(model))
    wanted, report = flops.count(model), flops.count_tflite(path, unsupported="raise")
    assert report.total_macs == wanted.total_macs
    assert report.name == path.name and str(tmp_path) not in repr(report)
    pooling = wanted.by_type().loc["GlobalAveragePooling2D", "elementwise_ops"]
    assert report.by_type().loc["MEAN", "elementwise_ops"] == pooling


@pytest.mark.parametrize(
    "shape, layer",
    [
        ((9, 7, 4), lambda: L.Conv2DTranspose(5, 3, strides=2, padding="same")),
        ((10, 8, 4), lambda: L.Conv2D(6, 3, groups=2, dilation_rate=2)),
        ((9, 7, 4), lambda: L.SeparableConv2D(6, 3, depth_multiplier=2)),
        ((20, 4), lambda: L.Conv1D(6, 3, strides=2)),
        ((6, 7, 8, 2), lambda: L.Conv3D(3, 2)),
        ((6, 8), lambda: L.EinsumDense("abc,cde->abde", output_shape=(6, 2, 3))),
        ((6, 8), lambda: lambda x: L.MultiHeadAttention(2, 4)(x, x)),
        # what the converter folds into an open batch
        ((10, 32), lambda: L.Dense(16)),
        ((16, 12, 3), lambda: L.Conv2D(8, 3, dilation_rate=2)),  # SPACE_TO_BATCH, BATCH_TO_SPACE
        ((4, 9, 9, 3), lambda: L.TimeDistributed(L.Conv2D(8, 3))),
        ((6, 6, 2), lambda: L.Conv2DTranspose(5, 3, strides=2)),  # its shape is computed in the file
    ],
)
def test_a_file_with_a_fixed_or_an_open_batch_has_the_macs_of_the_keras_model(shape, layer):
    for batch in (None, 2):
        x = keras.Input(shape, batch_size=batch)
        model = keras.Model(x, layer()(x))
        data, wanted = convert(model), flops.count(model)
        assert batch or any(None in tensor.shape for tensor in flops.tflite.File(data).tensors)
        report = flops.count_tflite(data, unsupported="raise")
        assert (report.total_macs, report.batch_size) == (wanted.total_macs, batch or 1)
        assert wanted.total_macs > 0


def test_a_side_that_stays_open_is_named_and_never_one():
    x = keras.Input((None, 8))
    report = flops.count_tflite(convert(keras.Model(x, L.Dense(4)(x))), unsupported="ignore")
    assert "FULLY_CONNECTED" in {one.type for one in report.unsupported}
    assert "is open or depends on the data" in report.unsupported[0].reason


def test_a_signature_in_another_graph_is_named():
    class Two(tf.Module):
        def __init__(self):
            self.w = tf.Variable(tf.ones((6, 5)))

        @tf.function(input_signature=[tf.TensorSpec((1, 6))])
        def encode(self, x):
            return {"y": x @ self.w}

        @tf.function(input_signature=[tf.TensorSpec((2, 5))])
        def decode(self, y):
            return {"x": y @ tf.transpose(self.w)}

    module = Two()
    concrete = [module.encode.get_concrete_function(), module.decode.get_concrete_function()]
    data = tf.lite.TFLiteConverter.from_concrete_functions(concrete, module).convert()
    report = flops.count_tflite(data, unsupported="ignore")
    assert report.total_macs in (30, 60) and [one.type for one in report.unsupported] == ["signature"]


def test_an_output_without_a_rank_is_named_and_never_one(block):
    import flatbuffers

    model = flops.tflite.File(block[1]["float32"]).model
    graph = model.subgraphs[0]
    last = next(op for op in reversed(graph.operators) if len(op.inputs) == 3)
    graph.tensors[last.outputs[0]].shape = graph.tensors[last.outputs[0]].shapeSignature = None
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    (one,) = flops.count_tflite(bytes(builder.Output()), unsupported="ignore").unsupported
    assert one.type == "FULLY_CONNECTED" and "not in the file" in one.reason


class Flow(tf.Module):
    """Loops and branches as people write them in TensorFlow."""

    def __init__(self):
        self.w = tf.Variable(tf.random.normal((6, 6)))

    def counted(self, x):
        return tf.while_loop(lambda i, h: i < 7, lambda i, h: (i + 2, tf.nn.relu(h @ self.w)), (0, x))[1]

    def nested(self, x):
        return tf.while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, self.counted(h) @ self.w), (0, x))[1]

    def endless(self, x):
        return tf.while_loop(lambda h: tf.reduce_sum(h) < 9, lambda h: [h @ self.w], [x])[0]

    def even(self, x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ self.w, lambda: (x + 1.0) @ self.w)

    def uneven(self, x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ self.w, lambda: x @ self.w @ self.w)


@pytest.mark.parametrize(
    "name, macs, cause",
    [
        ("counted", 4 * 36, None),
        ("nested", 3 * (4 * 36 + 36), None),
        ("endless", 0, "how often its loop runs depends on the data (36 MACs each time)"),
        ("even", 36, None),
        ("uneven", 0, "which branch runs depends on the data (36 or 72 MACs)"),
    ],
)
def test_loops_and_branches_are_counted_where_the_file_says_how_often(name, macs, cause):
    flow = Flow()
    concrete = tf.function(getattr(flow, name)).get_concrete_function(tf.TensorSpec((1, 6)))
    data = tf.lite.TFLiteConverter.from_concrete_functions([concrete], flow).convert()
    assert len(flops.tflite.File(data).model.subgraphs) > 1
    report = flops.count_tflite(data, unsupported="ignore")
    assert report.total_macs == macs
    assert [one.reason for one in report.unsupported] == ([cause] if cause else [])
    assert report.total_params >= 36
    if cause:
        assert next(row for row in report.rows if row.type in ("WHILE", "IF")).macs is None
        with pytest.raises(ValueError, match="depends on the data"):
            flops.count_tflite(data, unsupported="raise")
        with pytest.raises(ValueError, match="got 'zero'"):
            flops.count_tflite(data, unsupported="zero")


@pytest.mark.parametrize("layer", [L.SimpleRNN, L.GRU])
def test_recurrent_layers_are_loops_with_the_macs_of_the_keras_model(layer):
    x = keras.Input((5, 3), batch_size=2)
    model = keras.Model(x, layer(4)(x))
    report = flops.count_tflite(convert(model), unsupported="raise")
    assert report.total_macs == report.by_type().loc["WHILE", "macs"] == flops.count(model).total_macs > 0


def test_a_graph_that_runs_once_costs_nothing_and_holds_its_weights():
    class Counts(tf.Module):
        def __init__(self):
            self.w, self.sum = tf.Variable(tf.ones((6, 6))), tf.Variable(tf.zeros((1, 6)))

        @tf.function(input_signature=[tf.TensorSpec((1, 6))])
        def add(self, x):
            return self.sum.assign_add(x @ self.w)

    module = Counts()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.add.get_concrete_function()], module)
    converter.experimental_enable_resource_variables = True
    report = flops.count_tflite(converter.convert(), unsupported="raise")
    assert report.total_macs == 36 and "CALL_ONCE" in report.by_type().index
    assert report.total_params >= 36


def macs_by_interpreter(content):
    """The oracle: shapes and operators as LiteRT lists them; it shares no code with the reader or the rules."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=kernels)
    shapes, total = {d["index"]: d["shape"] for d in interpreter.get_tensor_details()}, 0
    for op in interpreter._get_ops_details():
        given, gives = ([shapes.get(int(at), ()) for at in op[key]] for key in ("inputs", "outputs"))
        kernel = {"CONV_2D": slice(1, 4), "DEPTHWISE_CONV_2D": slice(1, 3), "FULLY_CONNECTED": slice(1, 2)}
        if op["op_name"] in kernel:
            total += int(np.prod(gives[0]) * np.prod(given[1][kernel[op["op_name"]]]))
        if op["op_name"] == "TRANSPOSE_CONV":
            total += int(np.prod(given[2]) * np.prod(given[1][:3]))
    return total


def test_files_that_others_made_equal_an_independent_count():
    files = foreign_files.mediapipe()
    assert len(files) == 14
    for name, content in files.items():
        report = flops.count_tflite(content, unsupported="ignore")
        assert report.total_macs == macs_by_interpreter(content) > 9e6, name
        assert {row.type for row in report.rows if row.macs is None} == {one.type for one in report.unsupported}
        assert all(one.type.startswith("CUSTOM ") for one in report.unsupported), name


def test_an_operator_of_a_newer_schema_is_named_and_the_rest_counted(block):
    """Before, the whole file was "not a TensorFlow Lite model that can be read (900)"."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(block[1]["float32"], 0)
    model.operatorCodes.append(code := schema.OperatorCodeT())
    code.builtinCode, code.deprecatedBuiltinCode = 900, 127
    (graph,) = model.subgraphs
    graph.operators[-1].opcodeIndex = len(model.operatorCodes) - 1
    graph.tensors[graph.operators[-1].outputs[0]].type = 77
    for tensor in graph.tensors:  # no open batch: LiteRT, which then tells the shapes, cannot open such a file
        tensor.shapeSignature = None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    report = flops.count_tflite(bytes(builder.Output()), unsupported="ignore")
    assert [one.type for one in report.unsupported] == ["OPERATOR 900"] and report.total_macs > 0


# --- files that are none ----------------------------------------------------------------------------------------------


def test_foreign_files_are_refused_by_name(tmp_path, block):
    _, files = block
    for name, data in {
        "empty.tflite": b"",
        "photo.tflite": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(500),
        "archive.tflite": b"PK\x03\x04" + bytes(500),
        "marked.tflite": b"\x10\x00\x00\x00TFL3" + bytes(500),
        "renamed.tflite": files["float32"][:4] + b"ONNX" + files["float32"][8:],
        "noise.tflite": b"\x10\x00\x00\x00TFL3" + bytes(range(256)) * 20,
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"^{name} is not a TensorFlow Lite model"):
            flops.count_tflite(path)
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.tflite"):
        flops.count_tflite(tmp_path / "missing.tflite")
    for thing in (None, 3, keras.Sequential()):
        with pytest.raises(TypeError, match=r"expected the path or the bytes of a \.tflite file, got .*; count a"):
            flops.count_tflite(thing)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        flops.count_tflite(tmp_path)
    with pytest.raises(ValueError, match=r"^the model given as bytes is not"):
        flops.count_tflite(files["float32"][:100])


def test_choosing_the_largest_is_moved_data():
    x = keras.Input((6,))
    values, indices = keras.ops.top_k(L.Dense(5)(x), 2)
    report = flops.count_tflite(convert(keras.Model(x, [values, indices])), unsupported="raise")
    assert report.total_macs == 30 and "TOPK_V2" in {row.type for row in report.rows}


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_a_file_that_is_cut_short_is_refused(block, scheme):
    data = block[1][scheme]
    for keep in [*range(0, len(data) - 64, max(1, len(data) // 60)), len(data) // 2]:
        with pytest.raises(ValueError, match="is not a TensorFlow Lite model"):
            flops.count_tflite(data[:keep], unsupported="ignore")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_gives_a_report_or_one_valueerror(block, data):
    contents = bytearray(block[1]["int8"])
    for _ in range(data.draw(st.integers(1, 8))):
        contents[data.draw(st.integers(8, len(contents) - 1))] = data.draw(st.integers(0, 255))
    try:
        flops.count_tflite(bytes(contents), unsupported="ignore")
    except ValueError as error:
        assert "is not a TensorFlow Lite model" in str(error)
