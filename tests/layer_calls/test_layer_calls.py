"""Layer calls: order, shapes, paths and data flow, against what Keras really runs; refusals in sentences."""

import functools
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from utils.layer_calls import LayerCall, layer_calls
from utils.layer_calls import keras_graph as keras_internals

L = keras.layers


def shapes(calls):
    return {call.path: call.output_shapes for call in calls}


def check_flow(calls):
    """Every tensor is made once, and before it is read."""
    made = []
    for at, call in enumerate(calls):
        assert call.index == at
        assert isinstance(call, LayerCall)
        assert set(call.inputs) <= set(made)
        assert len(call.inputs) == len(call.input_shapes) and len(call.outputs) == len(call.output_shapes)
        assert not set(call.outputs) & set(made)
        made += call.outputs
    assert len({call.path for call in calls}) == len(calls)


def test_what_is_read_of_keras_is_there():
    model = keras.Sequential([keras.Input((4,)), L.Dense(2)])
    graph = model._functional
    node = next(node for nodes in graph._nodes_by_depth.values() for node in nodes if not node.is_input)
    for thing, names in (
        (graph, ("_nodes_by_depth", "inputs", "outputs", "input")),
        (node, ("operation", "arguments", "input_tensors", "outputs", "is_input")),
        (node.arguments, ("args", "kwargs")),
        (node.outputs[0], ("_keras_history",)),
        (node.outputs[0]._keras_history, ("operation", "node_index")),
        (model.weights[0], ("_shape", "_dtype")),
        (model._layers[0], ("_auto_config",)),
        (node.operation, ("_inbound_nodes", "_outbound_nodes", "_flatten_layers", "_assert_input_compatibility")),
    ):
        for name in names:
            assert hasattr(thing, name), f"Keras {keras.__version__} has no {type(thing).__name__}.{name} any more"
    own = type("Own", (keras.Model,), {"call": lambda self, x: x})()
    own.build((None, 3))
    assert keras_internals.built_shapes(own) == (None, 3), "Keras no longer keeps _build_shapes_dict"


# --- the graphs that Keras draws --------------------------------------------------------------------------------------


def test_sequential():
    model = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), L.Flatten(name="flat"), L.Dense(2)])
    calls = layer_calls(model)
    check_flow(calls)
    assert [call.type for call in calls] == ["InputLayer", "Conv2D", "Flatten", "Dense"]
    conv = calls[1]
    assert (conv.path, conv.layer) == ("conv", model.layers[0])
    assert (conv.input_shapes, conv.output_shapes) == (((None, 8, 8, 3),), ((None, 6, 6, 4),))
    assert conv.output_dtypes == ("float32",)
    assert shapes(layer_calls(model, batch_size=5))["flat"] == ((5, 144),)
    assert repr(conv) == "1: conv (Conv2D) (None, 8, 8, 3) -> (None, 6, 6, 4)"


def test_another_input_size_than_the_model_was_built_with_or_none():
    model = keras.Sequential([L.Conv2D(4, 3, name="conv"), L.GlobalAveragePooling2D(name="gap")])
    with pytest.raises(ValueError, match="input_shape"):
        layer_calls(model)
    assert shapes(layer_calls(model, (32, 32, 3), batch_size=2))["conv"] == ((2, 30, 30, 4),)  # built for it
    assert shapes(layer_calls(model, (64, 48, 3)))["conv"] == ((None, 62, 46, 4),)
    assert shapes(layer_calls(model, (7, 64, 48, 3)))["gap"] == ((7, 4),)


def test_nested_models_take_the_outer_shape_and_path():
    inner = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(4, 3, strides=2, name="conv")], name="inner")
    middle_in = keras.Input((None, None, 3))
    middle = keras.Model(middle_in, L.ReLU(name="relu")(inner(middle_in)), name="middle")
    outer_in = keras.Input((33, 17, 3), name="photo")
    model = keras.Model(outer_in, L.GlobalAveragePooling2D(name="gap")(middle(outer_in)))
    calls = layer_calls(model)
    check_flow(calls)
    assert [call.path for call in calls] == ["photo", "middle/inner/conv", "middle/relu", "gap"]
    assert calls[1].output_shapes == ((None, 16, 8, 4),)
    assert calls[1].inputs == calls[0].outputs and calls[3].inputs == calls[2].outputs


def test_a_shared_layer_and_a_shared_model_are_called_twice():
    tower = keras.Sequential([keras.Input((None, 8)), L.Dense(4, name="dense")], name="tower")
    a, b = keras.Input((5, 8), name="a"), keras.Input((7, 8), name="b")
    head = L.Dense(3, name="head")
    model = keras.Model([a, b], [head(tower(a)), head(tower(b))])
    calls = layer_calls(model)
    check_flow(calls)
    assert {call.path for call in calls} == {"a", "b", "tower/dense", "tower:1/dense", "head", "head:1"}
    by_path = {call.path: call for call in calls}
    assert by_path["head"].layer is by_path["head:1"].layer
    found = {shape for call in calls if call.type == "Dense" for shape in call.output_shapes}
    assert found == {(None, steps, units) for steps in (5, 7) for units in (4, 3)}


def test_several_inputs_by_list_and_by_name():
    a, b = keras.Input((None, None, 3), name="photo"), keras.Input((10,), name="meta")
    x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, name="conv")(a))
    model = keras.Model({"photo": a, "meta": b}, L.Concatenate(name="join")([x, b]))
    by_name = layer_calls(model, {"photo": (12, 10, 3), "meta": (10,)})
    in_order = [tuple(tensor.shape)[1:] if tensor.name == "meta" else (12, 10, 3) for tensor in model.inputs]
    for calls in (by_name, layer_calls(model, in_order)):
        check_flow(calls)
        assert shapes(calls)["conv"] == ((None, 10, 8, 4),)
        assert shapes(calls)["join"] == ((None, 14),)
    outer = keras.Input((12, 10, 3)), keras.Input((10,))
    nested = keras.Model(outer, model({"meta": outer[1], "photo": outer[0]}))
    assert next(c for c in layer_calls(nested) if c.type == "Conv2D").output_shapes == ((None, 10, 8, 4),)


def test_several_outputs_and_arguments_that_are_no_tensors():
    x = keras.Input((6, 8))
    sequence, state, _ = L.LSTM(5, return_sequences=True, return_state=True, name="lstm")(x)
    y = L.MultiHeadAttention(2, 4, name="mha")(query=sequence, value=sequence, use_causal_mask=True)
    calls = layer_calls(keras.Model(x, [y, state]), batch_size=3)
    check_flow(calls)
    assert shapes(calls)["lstm"] == ((3, 6, 5), (3, 5), (3, 5))
    mha = next(call for call in calls if call.path == "mha")
    assert mha.call_kwargs == {"use_causal_mask": True}
    assert mha.input_shapes == ((3, 6, 5), (3, 6, 5))


def test_masks_are_inputs_but_no_operands_and_operands_follow_the_signature():
    query, value, key = keras.Input((4, 6)), keras.Input((9, 6)), keras.Input((9, 7))
    mask = keras.Input((4, 9), dtype="bool")
    y = L.MultiHeadAttention(2, 3, name="mha")(key=key, attention_mask=mask, value=value, query=query)
    mha = layer_calls(keras.Model([query, value, key, mask], y), batch_size=1)[-1]
    assert mha.operand_shapes == ((1, 4, 6), (1, 9, 6), (1, 9, 7))
    assert sorted(mha.input_shapes) == [(1, 4, 6), (1, 4, 9), (1, 9, 6), (1, 9, 7)]


def test_a_batch_that_is_folded_is_counted_whole():
    """Windowed attention folds windows into the batch: (None, …) is not the batch then."""
    x = keras.Input((8, 8, 4))
    windows = keras.ops.reshape(x, (-1, 16, 4))
    model = keras.Model(x, L.Dense(6, name="dense")(windows))
    assert shapes(layer_calls(model))["dense"] == ((None, 16, 6),)
    assert shapes(layer_calls(model, batch_size=3))["dense"] == ((12, 16, 6),)


def test_positional_arguments_and_the_models_outputs_are_kept():
    image = keras.Input((8, 8, 3))
    left, right = keras.ops.split(image[:, 2:], 2, axis=2)
    calls = layer_calls(keras.Model(image, [right, left]))
    assert calls[1].call_args[1] == (slice(None), slice(2, None))
    assert calls.outputs == calls[2].outputs[::-1]


# --- operations, wrappers, layers of one's own ------------------------------------------------------------------------


def test_operations_are_calls_with_their_constants_as_operands():
    x = keras.Input((5, 8))
    y = keras.ops.matmul(x, np.ones((8, 3), "float32"))
    model = keras.Model(x, keras.ops.relu(y) + 1.0)
    calls = layer_calls(model, batch_size=2)
    check_flow(calls)
    assert [call.type for call in calls] == ["InputLayer", "Matmul", "Relu", "Add"]
    assert calls[1].operand_shapes == ((2, 5, 8), (8, 3)) and calls[1].input_shapes == ((2, 5, 8),)


NET = keras.Sequential([keras.Input((16, 12, 3)), L.Conv2D(4, 3, name="conv")], name="net")
WRAPPERS = {  # layer, shape, paths of the calls inside, their input, what it gives
    "time": (lambda: L.TimeDistributed(NET), (5, 16, 12, 3), ["/net/conv"], (10, 16, 12, 3), [(2, 5, 14, 10, 4)]),
    "norm": (
        lambda: L.SpectralNormalization(L.Conv2D(4, 3, name="c")), (8, 8, 3), ["/c"], (2, 8, 8, 3), [(2, 6, 6, 4)]),
    **{
        f"both {mode}": (
            lambda mode=mode: L.Bidirectional(L.LSTM(7, name="lstm"), merge_mode=mode), (5, 3),
            ["/forward_lstm", "/backward_lstm"], (2, 5, 3), gives)
        for mode, gives in (("concat", [(2, 14)]), ("sum", [(2, 7)]), (None, [(2, 7), (2, 7)]))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_opened(name):
    make, shape, paths, inner, gives = WRAPPERS[name]
    x, layer = keras.Input(shape), make()
    _, *inside, closing = calls = layer_calls(keras.Model(x, layer(x)), batch_size=2)
    check_flow(calls)
    assert [call.path.removeprefix(layer.name) for call in inside] == paths and closing.path == layer.name
    assert [call.opened for call in inside] == [False] * len(paths) and closing.opened
    assert {call.input_shapes for call in inside} == {(inner,)}
    assert all(call.inputs == calls[0].outputs for call in inside)
    assert closing.inputs == sum((call.outputs for call in inside), ()) and list(closing.output_shapes) == gives


class Block(keras.Layer):
    """A residual block with layers, operations, and a weight of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = L.Dense(units, name="first"), L.Dense(units, name="second")
        self.norm = L.BatchNormalization(name="norm")

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build(self.first.compute_output_shape(input_shape))
        self.norm.build(self.first.compute_output_shape(input_shape))
        self.matrix = self.add_weight(shape=(self.first.units, 3), name="matrix")

    def call(self, x, training=None):
        y = self.norm(self.first(x), training=training)
        y = y + self.second(keras.ops.relu(y))
        return keras.ops.relu(y) @ self.matrix


def test_a_layer_of_ones_own_is_opened_and_left_as_it_was():
    x = keras.Input((6,))
    block = Block(4, name="block")
    model = keras.Model(x, L.Softmax(name="softmax")(block(x)))
    before = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    statistics = [keras.ops.convert_to_numpy(weight) for weight in block.norm.weights]
    calls = layer_calls(model, batch_size=2)
    check_flow(calls)
    assert [call.path for call in calls[1:]] == [
        *("block/first", "block/norm", "block/relu", "block/second", "block/add", "block/relu_1", "block/matmul"),
        *("block", "softmax"),
    ]
    matmul = next(call for call in calls if call.path == "block/matmul")
    assert matmul.operand_shapes == ((2, 4), (4, 3))
    assert calls[-2].opened and not matmul.opened
    assert before == [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    for old, weight in zip(statistics, block.norm.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(weight))
    assert [call.path for call in layer_calls(model)] == [call.path for call in calls]  # and again
    closed = layer_calls(model, closed=(Block,))
    assert [call.type for call in closed] == ["InputLayer", "Block", "Softmax"]


class Diary(keras.Layer):
    """Writes down what it is called with."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen, self.last, self.first, self.all, self.by_rank = 0, None, True, [], {"ranks": [], "last": None}

    def build(self, shape):
        self.inner = L.Dense(2)
        self.inner.build(shape)

    def call(self, x):
        self.seen += 1
        self.last, self.first, self.by_rank["last"], self.fresh = x, False, x, len(x.shape)
        self.all.append(x)
        self.by_rank["ranks"].append(len(x.shape))
        self.by_rank[len(x.shape)] = x
        return self.inner(x)


@pytest.mark.parametrize("how", [{}, {"graphs": True, "opened": lambda layer: True}, {"closed": (Diary,)}])
def test_what_a_layer_writes_down_is_what_it_was_before(how):
    diary = Diary()
    model = keras.Sequential([diary])
    model(np.ones((1, 5, 3)))
    before = dict(vars(diary))
    last, seen, held, ranks = diary.last, diary.seen, list(diary.all), list(diary.by_rank["ranks"])
    layer_calls(model, (7, 3), **how)  # another shape, so that Keras has no record of it
    assert (diary.seen, diary.first, diary.fresh) == (seen, False, 3) and diary.last is last
    assert diary.all is before["all"] and [*map(id, diary.all)] == [*map(id, held)]
    assert diary.by_rank is before["by_rank"] and diary.by_rank.keys() == {"ranks", "last", 3}
    assert diary.by_rank["last"] is last and diary.by_rank["ranks"] == ranks
    assert vars(diary).keys() == before.keys()


class TensorFlowOnly(keras.Layer):
    def call(self, x):
        import tensorflow as tf

        return tf.reshape(tf.nn.relu(x), tf.shape(x))


def test_a_layer_that_cannot_be_traced_is_listed_whole_with_the_reason():
    x = keras.Input((6,))
    calls = layer_calls(keras.Model(x, L.Dense(2)(TensorFlowOnly(name="opaque")(x))))
    check_flow(calls)
    assert [call.type for call in calls] == ["InputLayer", "TensorFlowOnly", "Dense"]
    assert "KerasTensor" in calls[1].problem and not calls[1].opened


class TwoTowers(keras.Model):
    """Subclassed, two inputs, two outputs, with a loop and a layer that is called twice."""

    def __init__(self):
        super().__init__(name="two_towers")
        self.shared, self.block = L.Dense(4, name="shared"), Block(4, name="block")

    def call(self, inputs, training=None):
        a, b = inputs
        for _ in range(2):
            b = keras.ops.tanh(b)
        return self.block(self.shared(a), training=training), self.shared(b)


def test_a_subclassed_model_is_traced_and_left_as_it_was():
    model = TwoTowers()
    with pytest.raises(ValueError, match="pass input_shape"):
        layer_calls(model)
    calls = layer_calls(model, [(5,), (5,)], batch_size=3)
    check_flow(calls)
    paths = [call.path for call in calls]
    assert paths[:2] == ["input", "input_1"] and {"shared", "shared:1", "tanh", "tanh_1", "block/first"} <= set(paths)
    assert all(not layer._inbound_nodes for layer in model._flatten_layers())
    assert shapes(calls)["block"] == ((3, 3),)
    assert [call.path for call in layer_calls(model)] == paths  # the shapes that it was built with
    y = model([np.ones((2, 5)), np.ones((2, 5))])  # it still runs
    assert [tuple(part.shape) for part in y] == [(2, 3), (2, 4)]


def test_a_model_that_overrides_call_is_traced_not_read_from_its_graph():
    class Doubled(keras.Model):
        def call(self, x, training=None):
            return super().call(x) * 2.0

    x = keras.Input((4,))
    calls = layer_calls(Doubled(x, L.Dense(3, name="dense")(x)), (4,))
    assert [call.type for call in calls if call.type != "ConvertToTensor"] == ["InputLayer", "Dense", "Multiply"]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_walked_is_refused():
    class Opaque(keras.Model):
        def call(self, x):
            import tensorflow as tf

            return tf.nn.relu(x)

    with pytest.raises(ValueError, match=r"'opaque' \(Opaque\) cannot be walked.*keras.ops"):
        layer_calls(Opaque(name="opaque"), (4,))
    for thing in (object(), L.Dense, "model.keras"):
        with pytest.raises(TypeError, match="expected a Keras 3 model or layer, got"):
            layer_calls(thing)


@pytest.mark.parametrize(
    "kind, wrap",
    [
        (keras.Model, lambda failing: failing),
        (keras.Layer, lambda failing: keras.Sequential([failing])),
        (keras.Layer, lambda failing: keras.Sequential([keras.Sequential([failing])])),
    ],
)
def test_an_error_inside_a_model_that_is_not_built_is_said_as_it_was_raised(kind, wrap):
    def call(self, x):
        raise RuntimeError("a reason of one's own")

    failing = type("Failing", (kind,), {"__init__": lambda self: kind.__init__(self), "call": call})()
    failing.dense = L.Dense(3)
    with pytest.raises(ValueError, match="a reason of one's own") as error:
        layer_calls(wrap(failing), (6,))
    assert "Exception encountered" not in str(error.value)
    assert keras.config.is_traceback_filtering_enabled()


@pytest.mark.parametrize(
    "shape, words",
    [
        ((8, 8), "has 4 dimensions with the batch"),
        ((8, 8, 0), "must be a tuple of positive integers"),
        ((8, True, 3), "must be a tuple of positive integers"),
        ([(8, 8, 3), (8,)], "has 1 inputs and input_shape has 2"),
        ({"photos": (8, 8, 3)}, r"names \['photos'\], but the inputs"),
        ((16, 16, 3), "layer 'dense'.*cannot take the shape"),
        ((2, 2, 3), "layer 'conv'.*cannot take the shape"),
        ((8, 8, 4), "layer 'conv'.*cannot take the shape"),
    ],
)
def test_shapes_that_do_not_fit(shape, words):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), L.Flatten(), L.Dense(2, name="dense")]
    )
    with pytest.raises(ValueError, match=words):
        layer_calls(model, shape)


# --- against what Keras runs ------------------------------------------------------------------------------------------


def run_recorded(model, inputs):
    """The (layer, input shapes, output shapes) of every leaf layer, as a real forward pass meets them."""
    seen = []
    leaves = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    for layer in leaves:
        original = layer.call

        @functools.wraps(original)
        def call(*args, _layer=layer, _original=original, **kwargs):
            result = _original(*args, **kwargs)
            given = tuple(tuple(leaf.shape) for leaf in keras.tree.flatten(args) if hasattr(leaf, "shape"))
            seen.append((id(_layer), given, tuple(tuple(leaf.shape) for leaf in keras.tree.flatten(result))))
            return result

        layer.call = call
    try:
        model(inputs)
    finally:
        for layer in leaves:
            del layer.call
    return seen


@st.composite
def networks(draw):
    """A random branching network of one input, with joins, shared layers and nested models."""
    size = draw(st.integers(5, 12)), draw(st.integers(5, 12))
    x = keras.Input((*size, 2))
    tensors, shared = [x], L.Conv2D(2, 3, padding="same")

    def layer():
        strides, kernel, inner = draw(st.integers(1, 2)), draw(st.integers(1, 3)), keras.Input((None, None, 2))
        return draw(st.sampled_from([
            lambda: L.Conv2D(2, kernel, strides=strides, padding="same"),
            lambda: L.DepthwiseConv2D((1, 3), padding="same"),
            lambda: keras.Model(inner, L.ReLU()(L.Conv2D(2, 3, padding="same", strides=strides)(inner))),
            lambda: L.MaxPooling2D(2, strides=strides, padding="same"),
            lambda: L.UpSampling2D(2),
            lambda: L.ZeroPadding2D(((1, 0), (0, 1))),
            lambda: shared,
            L.BatchNormalization,
        ]))()  # fmt: skip

    for _ in range(draw(st.integers(1, 6))):
        y = layer()(tensors[draw(st.integers(0, len(tensors) - 1))])
        twins = [tensor for tensor in tensors if tensor.shape == y.shape]
        if twins and draw(st.booleans()):
            y = L.Add()([y, twins[draw(st.integers(0, len(twins) - 1))]])
        tensors.append(y)
    return keras.Model(x, tensors[-1] if draw(st.booleans()) else tensors[1:]), (3, *size, 2)


@pytest.mark.oracle
@examples(15)
@given(networks())
def test_random_networks_as_keras_runs_them(network):
    model, shape = network
    calls = layer_calls(model, batch_size=shape[0])
    check_flow(calls)
    listed = [(id(call.layer), call.input_shapes, call.output_shapes) for call in calls if call.type != "InputLayer"]
    assert sorted(listed) == sorted(run_recorded(model, np.zeros(shape, "float32")))
    assert math.prod(calls[-1].output_shapes[0]) > 0


ON_JAX = """
import keras, numpy
from utils.layer_calls import layer_calls

class Lazy(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)
    def call(self, x):
        return self.dense(x)
    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)

steps = keras.Input((3, 6))
model = keras.Model(steps, keras.layers.TimeDistributed(Lazy())(steps))
print([call.type for call in layer_calls(model)], model(numpy.ones((2, 3, 6))).shape, len(model.get_weights()))
"""


def test_weights_that_a_trace_makes_on_jax_have_values():
    """Before, they were tracers of a trace that had ended, and the model could no more be called."""
    pytest.importorskip("jax", reason="needs JAX: pip install -r tests/requirements.txt")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ON_JAX], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = "['InputLayer', 'Dense', 'Lazy', 'TimeDistributed'] (2, 3, 4) 2"
    assert done.stdout.splitlines()[-1] == wanted
