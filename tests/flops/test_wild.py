"""Cases from the wild: kinds of models on which a counter is silently wrong, each with the right number by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from utils import flops
from utils.flops import graph

L, ops = keras.layers, keras.ops


def functional(layer, *shapes, **how):
    inputs = [keras.Input(shape, **how) for shape in shapes]
    return keras.Model(inputs, layer(*inputs))


def macs(model, *arguments, **more):
    report = flops.count(model, *arguments, unsupported="raise", **more)
    assert sum(row.macs for row in report.rows) == report.total_macs
    return report.total_macs


# --- a subclass of a layer of Keras that computes something else (K1) -------------------------------------------------


class Excite(L.GlobalAveragePooling2D):
    def __init__(self):
        super().__init__()
        self.squeeze, self.excite = L.Dense(4), L.Dense(16)

    def build(self, shape):
        self.squeeze.build((None, shape[-1]))
        self.excite.build((None, 4))

    def call(self, x):
        return x * ops.reshape(self.excite(self.squeeze(super().call(x))), (-1, 1, 1, 16))

    def compute_output_shape(self, shape):
        return shape


class TwiceConv(L.Conv2D):
    def call(self, x):
        return super().call(x) + super().call(x)


class TwiceConvolved(L.Conv2D):
    """Its `call` is Keras', what that calls is not."""

    def convolution_op(self, x, kernel):
        return super().convolution_op(x, kernel) + super().convolution_op(x, kernel)


class LowRank(L.Dense):
    @property
    def kernel(self):
        return self.u @ self.v

    def build(self, shape):
        self.u = self.add_weight(shape=(shape[-1], 2))
        self.v = self.add_weight(shape=(2, self.units))
        self.bias = self.add_weight(shape=(self.units,))
        self.built = True


class DoubleCell(L.LSTMCell):
    def call(self, x, states, training=False):
        _, states = super().call(x, states, training=training)
        return super().call(x, states, training=training)


@keras.saving.register_keras_serializable()
class OwnCell(keras.Layer):
    def __init__(self, units, **how):
        super().__init__(**how)
        self.units, self.state_size, self.output_size = units, units, units

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], self.units))
        self.u = self.add_weight(shape=(self.units, self.units))

    def call(self, x, states):
        h = ops.tanh(x @ self.w + states[0] @ self.u)
        return h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Folded(L.TimeDistributed):
    def call(self, x):
        return super().call(x) + super().call(x)


class Attended(L.MultiHeadAttention):
    def _compute_attention(self, *arguments, **more):
        super()._compute_attention(*arguments, **more)
        return super()._compute_attention(*arguments, **more)


class Renamed(L.Conv2D):
    """Changes nothing that computes: it stays a convolution."""

    def get_config(self):
        return super().get_config()

    def helper(self):
        return 5


CONV = 16 * 16 * 9 * 3 * 8
SUBCLASSES = {
    "squeeze and excite": (Excite, (8, 8, 16), 128),
    "call twice": (lambda: TwiceConv(8, 3, padding="same"), (16, 16, 3), 2 * CONV),
    "convolution_op twice": (lambda: TwiceConvolved(8, 3, padding="same"), (16, 16, 3), 2 * CONV),
    "kernel of two factors": (lambda: LowRank(5), (6,), 6 * 2 * 5 + 6 * 5),
    "cell that steps twice": (lambda: L.RNN(DoubleCell(4)), (10, 3), 2 * 10 * 4 * 4 * (3 + 4)),
    "cell of one's own": (lambda: L.RNN(OwnCell(4)), (10, 3), 10 * 4 * (3 + 4)),
    "cells in a stack": (
        lambda: L.RNN([L.GRUCell(5), DoubleCell(4)]), (10, 3), 10 * (3 * 5 * (3 + 5) + 2 * 16 * (5 + 4))),
    "two directions": (lambda: L.Bidirectional(L.RNN(OwnCell(4))), (10, 3), 2 * 10 * 4 * (3 + 4)),
    "wrapper": (lambda: Folded(L.Dense(5)), (10, 3), 2 * 10 * 3 * 5),
    "nothing that matters": (lambda: Renamed(8, 3, padding="same"), (16, 16, 3), CONV),
}  # fmt: skip


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_that_computes_otherwise_is_not_priced_as_its_base(name):
    make, shape, wanted = SUBCLASSES[name]
    assert macs(functional(make(), shape)) == wanted
    assert macs(functional(make(), shape), batch_size=3) == (3 * wanted if name != "kernel of two factors" else 150)


def test_attention_whose_inner_method_is_replaced():
    plain, twice = (functional(lambda x, one=one: one(2, 3)(x, x), (5, 6)) for one in (L.MultiHeadAttention, Attended))
    # the first result is used by nothing, so no backend computes it
    assert macs(plain) == macs(twice) == 4 * 5 * 6 * 6 + 2 * 2 * 5 * 5 * 3


def test_what_is_replaced_on_one_object():
    layer = L.Dense(5)
    model = functional(layer, (6,))
    layer.call = lambda x: L.Dense.call(layer, x) + L.Dense.call(layer, x)
    assert macs(model) == 2 * 6 * 5
    whole = functional(L.Dense(6), (6,))
    whole.call = lambda x: type(whole).call(whole, type(whole).call(whole, x))
    assert macs(whole) == 2 * 36
    conv = L.Conv2D(8, 3, padding="same")
    model = functional(conv, (16, 16, 3))
    once = lambda x, kernel: ops.conv(x, kernel, padding="same")  # noqa: E731
    conv.convolution_op = lambda x, kernel: once(x, kernel) + once(x + 1.0, kernel)
    assert macs(model) == 2 * CONV


# --- products of weights and constants (K2), LoRA (K3) ----------------------------------------------------------------


class Own(keras.Layer):
    """A layer from a function of (layer, *inputs), with weights by name."""

    def __init__(self, function, name=None, inner=(), **weights):
        super().__init__(name=name)
        self.function, self.inner = function, list(inner)
        for weight, shape in weights.items():
            setattr(self, weight, self.add_weight(shape=shape, name=weight))

    def call(self, *inputs):
        return self.function(self, *inputs)


def own(function, *shapes, dtype="float32", **more):
    return functional(Own(function, **more), *shapes, dtype=dtype)


def unrolled(layer, x):
    h = ops.zeros((ops.shape(x)[0], 4))
    for step in range(3):
        h = ops.tanh(x[:, step] @ layer.w + h @ layer.u)
    return h


def position_bias(layer, x):
    table = ops.cast(ops.reshape(ops.arange(14), (7, 2)), "float32")
    return x + ops.transpose(layer.inner[1](layer.inner[0](table)))


WEIGHTS_ONLY = {
    "u @ v": (own(lambda layer, x: x @ (layer.u @ layer.v), (6,), u=(6, 2), v=(2, 5)), 6 * 2 * 5 + 6 * 5),
    "matmul": (own(lambda layer, x: x + ops.matmul(layer.u, layer.v), (5,), u=(1, 6), v=(6, 5)), 30),
    "einsum": (own(lambda layer, x: x + ops.einsum("ab,bc->ac", layer.u, layer.v), (5,), u=(1, 6), v=(6, 5)), 30),
    "TensorFlow": (own(lambda layer, x: x + tf.matmul(layer.u, layer.v), (5,), u=(1, 6), v=(6, 5)), 30),
    "convolution": (own(lambda layer, x: x + ops.conv(ops.ones((1, 8, 3)), layer.u)[0, 0], (5,), u=(3, 3, 5)), 270),
    "hand-written recurrence": (own(unrolled, (3, 6), w=(6, 4), u=(4, 4)), 3 * (6 * 4 + 4 * 4)),
    "bias from positions": (
        own(position_bias, (3, 7), inner=[L.Dense(8), L.Dense(3)]), 7 * 2 * 8 + 7 * 8 * 3),
    "not used": (own(lambda layer, x: (layer.u @ layer.v, x)[1], (5,), u=(1, 6), v=(6, 5)), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_products_of_weights_and_constants_are_counted(name):
    model, wanted = WEIGHTS_ONLY[name]
    assert macs(model) == wanted


def test_learned_queries():
    class Pooling(keras.Layer):
        def __init__(self):
            super().__init__()
            self.attention = L.MultiHeadAttention(2, 3)
            self.query = self.add_weight(shape=(1, 4, 6))

        def call(self, x):
            return self.attention(ops.tile(self.query, (ops.shape(x)[0], 1, 1)), x)

    projections = 2 * 4 * 6 * 6 + 2 * 7 * 6 * 6
    assert macs(functional(Pooling(), (7, 6))) == projections + 2 * 2 * 4 * 7 * 3


@pytest.mark.parametrize("quantized", [False, True], ids=["float", "int8"])
def test_lora_is_counted(quantized):
    for layer, shape, plain, in_float, in_int8 in (
        (L.Embedding(1000, 64), (7,), 0, 1000 * 4 * 64, 7 * 4 * 64),
        (L.Dense(5), (6,), 30, 6 * 4 * 5, 6 * 4 + 4 * 5),
        (L.EinsumDense("abc,cd->abd", (None, 5)), (3, 6), 90, 6 * 4 * 5, 3 * (6 * 4 + 4 * 5)),
        (L.Conv2D(8, 3, padding="same"), (4, 4, 3), 16 * 27 * 8, 27 * 4 * 8, None),
    ):
        model = functional(layer, shape)
        assert macs(model) == plain
        if quantized and in_int8 is None:
            continue
        if quantized:
            layer.quantize("int8")
        layer.enable_lora(4)
        assert macs(model) == plain + (in_int8 if quantized else in_float), type(layer)


def test_lora_inside_of_attention_is_counted():
    attention = L.MultiHeadAttention(2, 3)
    model = functional(lambda x: attention(x, x), (5, 6))
    before = macs(model)
    attention._query_dense.enable_lora(4)
    assert macs(model) == before + 6 * 4 * 6


# --- the batch that is named is the batch that was counted (K6); a bare layer (K7) ------------------------------------


def test_a_fixed_batch_is_named():
    model = keras.Sequential([keras.Input((8,), batch_size=4), L.Dense(16)])
    for batch, wanted in ((None, 4), (1, 1), (4, 4), (2, 2)):
        report = flops.count(model, batch_size=batch)
        assert (report.batch_size, report.total_macs) == (wanted, 128 * wanted)
        assert f"batch {wanted}" in repr(report)
    free = keras.Sequential([keras.Input((8,)), L.Dense(16)])
    report = flops.count(free, (4, 8))
    assert (report.batch_size, report.total_macs) == (4, 512)
    with pytest.raises(ValueError, match="batch_size must be 4, which input_shape"):
        flops.count(free, (4, 8), batch_size=2)


def test_a_model_that_was_built_by_a_call_is_counted_for_one_input():
    model = own_model(lambda self, x: self.dense(x), dense=L.Dense(16))
    model(np.ones((4, 8)))
    report = flops.count(model)
    assert (report.batch_size, report.total_macs) == (1, 128)
    report = flops.count(model, batch_size=3)
    assert (report.batch_size, report.total_macs) == (3, 384)


@pytest.mark.parametrize(
    "layer, shape, wanted",
    [
        (L.Dense(11), (10,), 110),
        (L.Conv2D(8, 3, padding="same"), (16, 16, 3), CONV),
        (L.LSTM(4), (10, 3), 10 * 4 * 4 * (3 + 4)),
        (L.Bidirectional(L.LSTM(4)), (10, 3), 2 * 10 * 4 * 4 * (3 + 4)),
        (L.TimeDistributed(L.Dense(5)), (10, 3), 150),
        (L.MultiHeadAttention(2, 3), [(5, 6), (5, 6)], 4 * 5 * 6 * 6 + 2 * 2 * 5 * 5 * 3),
        (L.Add(), [(5,), (5,)], 0),
        (L.Attention(), [(4, 6), (9, 6)], 2 * 4 * 9 * 6),
        (L.Embedding(10, 4), (7,), 0),
        (Excite(), (8, 8, 16), 128),
        (L.Lambda(lambda x: x @ ops.transpose(x, (0, 2, 1))), (5, 6), 150),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else "",
)
def test_a_bare_layer_is_counted_once(layer, shape, wanted):
    report = flops.count(layer, shape, unsupported="raise")
    assert (report.total_macs, report.total_params) == (wanted, layer.count_params())


# --- names that mean something else (K11), channels first (K8) --------------------------------------------------------


class Matmul(keras.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        return x @ self.w


class Slice(keras.Layer):
    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(lambda a: a, [x], "float32"), x.shape)


def test_a_layer_with_the_name_of_an_operation_gets_no_rule_of_it():
    assert macs(functional(Matmul(), (6,))) == 30
    report = flops.count(functional(Slice(), (6,)), unsupported="ignore")
    assert len(report.unsupported) == 1 and "PyFunc" in str(report.unsupported[0])
    own_operation = type(
        "Transpose",
        (keras.Operation,),
        {"call": lambda self, x: ops.matmul(x, x), "compute_output_spec": lambda self, x: keras.KerasTensor(x.shape)},
    )
    x = keras.Input((6, 6))
    assert macs(keras.Model(x, own_operation()(x))) == 6**3


def test_resolutions_of_a_channels_first_model():
    x = keras.Input((3, 32, 32))
    y = L.Conv2D(16, 3, padding="same", data_format="channels_first")(x)
    y = L.ReLU()(L.BatchNormalization(axis=1)(y))
    y = L.Conv2D(64, 3, strides=2, padding="same", data_format="channels_first")(y)
    frame = flops.count(keras.Model(x, L.ReLU()(y))).by_resolution()
    assert frame["side"].tolist() == [32, 16] and frame["channels"].tolist() == [16, 64]
    image = keras.Input((32, 32, 3))
    turned = keras.Model(image, keras.Model(x, y)(L.Permute((3, 1, 2))(image)))
    assert flops.count(turned).by_resolution()["side"].tolist() == [32, 16]


# --- what Keras can call is counted (K5) ------------------------------------------------------------------------------


def own_model(function, **layers):
    class OwnModel(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            for name, layer in layers.items():
                setattr(self, name, layer)

    OwnModel.call = function
    return OwnModel()


class NoTraining(keras.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        return x @ self.w


class WithNothing(keras.Layer):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(5)

    def call(self, x):
        return self.dense(x), None


class WithCache(L.MultiHeadAttention):
    def call(self, query, value, key=None, cache=None, index=0):
        q, v, k = self._query_dense(query), self._value_dense(value), self._key_dense(value)
        out, _ = self._compute_attention(q, k, v)
        return self._output_dense(out)


def heads(layer, x):
    y = layer.inner[0](x)
    batch, steps, *_ = ops.shape(y)
    return ops.reshape(y, (batch, steps, ops.shape(y)[2] * ops.shape(y)[3])) @ layer.w


def doubled_in_a_loop(layer, x):
    return ops.fori_loop(0, 7, lambda at, h: h @ layer.w, x)


def while_counting(layer, x):
    return ops.while_loop(lambda at, h: at < 7, lambda at, h: (at + 1, h @ layer.w), (0, x))[1]


def scanned(layer, x):
    return ops.scan(lambda h, step: (h @ layer.w + step, h), ops.zeros((1, 6)), ops.transpose(x, (1, 0, 2)))[0]


ANY = {
    "training= to a layer without it": (lambda s, x, training=None: s.a(x, training=training), {"a": NoTraining()}, 30),
    "a variable on the left": (lambda s, x: s.a(x), {"a": Own(lambda s, x: s.g * x @ s.w, g=(6,), w=(6, 5))}, 30),
    "a layer that returns None too": (lambda s, x: s.a(x)[0], {"a": WithNothing()}, 30),
    "TensorFlow inside": (lambda s, x: tf.nn.relu(s.a(x)), {"a": L.Dense(5)}, 30),
    "TensorFlow's product": (lambda s, x: tf.matmul(x, s.a.g), {"a": Own(None, g=(6, 5))}, 30),
    "NumPy on the left": (lambda s, x: np.ones((1, 6), "float32") * s.a(x), {"a": L.Dense(6)}, 36),
    "two layers deep": (
        lambda s, x: s.a(x), {"a": Own(lambda s, x: tf.nn.relu(s.inner[0](x)), inner=[NoTraining()])}, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", ANY)
def test_what_keras_can_call_is_counted(name):
    function, layers, wanted = ANY[name]
    assert macs(own_model(function, **layers), (6,)) == wanted
    assert macs(own_model(function, **layers), (6,), batch_size=3) == 3 * wanted


SEQUENCES = {
    "attention with a cache": (functional(lambda x: WithCache(2, 3)(x, x), (5, 6)), 4 * 5 * 36 + 300),
    "shape of EinsumDense": (
        own(heads, (5, 6), inner=[L.EinsumDense("abc,cde->abde", (None, 2, 3))], w=(6, 4)), 5 * 36 + 5 * 24),
    "fori_loop": (own(doubled_in_a_loop, (5, 6), w=(6, 6)), 7 * 5 * 36),
    "while_loop": (own(while_counting, (5, 6), w=(6, 6)), 7 * 5 * 36),
    "scan": (own(scanned, (5, 6), w=(6, 6)), 5 * 36),
    "map": (own(lambda s, x: ops.map(lambda row: row @ s.w, x), (5, 6), w=(6, 4)), 5 * 24),
    "vectorized_map": (own(lambda s, x: ops.vectorized_map(lambda row: row @ s.w, x), (5, 6), w=(6, 4)), 5 * 24),
    "cond of equal branches": (
        own(lambda s, x: ops.cond(ops.sum(x) > 0, lambda: x @ s.w, lambda: x @ (2.0 * s.w)), (5, 6), w=(6, 4)), 120),
    "tf.map_fn": (own(lambda s, x: tf.map_fn(lambda row: row @ s.w.value, x), (5, 6), w=(6, 6)), 180),
}  # fmt: skip


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_and_loops_are_counted(name):
    model, wanted = SEQUENCES[name]
    assert macs(model) == wanted


def test_several_arguments_of_a_subclassed_model():
    def both(self, x, y):
        return self.a(x) + self.b(y)

    make = lambda: own_model(both, a=L.Dense(5), b=L.Dense(5))  # noqa: E731
    for given in ([(6,), (8,)], {"x": (6,), "y": (8,)}):
        assert macs(make(), given) == 30 + 40
    with pytest.raises(ValueError, match="call takes x, y; pass a list with one input_shape for each"):
        flops.count(make(), (6,))


def test_a_functional_model_with_its_own_call_needs_no_shape():
    class Twice(keras.Model):
        def call(self, x):
            return super().call(super().call(x))

    x = keras.Input((6,))
    assert macs(Twice(x, L.Dense(6)(x))) == 2 * 36


def test_masks_and_states_of_both_directions():
    lstm = 7 * 4 * 4 * (3 + 4)
    masked = functional(lambda x: L.Bidirectional(L.LSTM(4))(x, mask=ops.any(x != 0, -1)), (7, 3))
    other = L.Bidirectional(L.LSTM(4), backward_layer=L.GRU(4, go_backwards=True))
    started = functional(lambda x, *s: L.Bidirectional(L.LSTM(4))(x, initial_state=list(s)), (7, 3), *[(4,)] * 4)
    assert [macs(masked), macs(started)] == [2 * lstm, 2 * lstm]
    assert macs(functional(other, (7, 3))) == lstm * 7 // 4


def test_pytorch_tells_a_sum_only_which_is_unsupported():
    cost = graph.operations_cost([30])
    assert cost.macs == 0 and "30 MACs" in cost.unknown


def test_an_outer_product_is_elementwise_as_in_jax():
    report = flops.count(functional(lambda x: ops.outer(x, np.ones(5, "f")), (4,)), unsupported="raise")
    assert (report.total_macs, report.total_elementwise_ops) == (0, 20)


def test_rows_name_the_way_in_which_they_were_counted():
    inside = own(lambda layer, x: layer.inner[0](x) @ layer.w, (6,), inner=[L.Dense(5)], w=(5, 4))
    rows = flops.count(inside).to_frame().set_index("type")["way"]
    assert rows.to_dict() == {"InputLayer": "rule", "Dense": "rule", "Matmul": "rule", "Own": "inside"}
    traced = own(lambda layer, x: tf.matmul(layer.inner[0](x), layer.w), (6,), inner=[L.Dense(5)], w=(5, 4))
    report = flops.count(traced)
    rows = report.to_frame().set_index("type")
    assert rows["way"].to_dict() == {"InputLayer": "rule", "Dense": "rule", "Own": "graph"}
    assert rows["macs"].to_dict() == {"InputLayer": 0, "Dense": 30, "Own": 20} and not report.unsupported


def test_what_depends_on_the_data_is_unsupported_with_its_cause():
    endless = lambda s, x: tf.while_loop(lambda h: tf.reduce_sum(h) < 9, lambda h: [h @ s.w], [x])[0]  # noqa: E731
    uneven = lambda s, x: ops.cond(ops.sum(x) > 0, lambda: x @ s.w @ s.w, lambda: x @ s.w)  # noqa: E731
    masked = lambda s, x: tf.boolean_mask(x, x[:, 0] > 0) @ s.w  # noqa: E731
    for function, cause in (
        (endless, "how often its loop runs depends on the data (36 MACs each time)"),
        (uneven, "which branch runs depends on the data (72 or 36 MACs)"),
        (masked, "depends on the data"),
        (lambda s, x: tf.linalg.inv(x[:, None] * s.w) @ x[..., None], "'MatrixInverse' of TensorFlow has no rule"),
        (lambda s, x: x.no_such_method(), "no_such_method"),
    ):
        layer = Own(function, name="layer", w=(6, 6))
        layer.compute_output_spec = lambda x: keras.KerasTensor(x.shape)
        (one,) = flops.count(functional(layer, (6,)), unsupported="ignore").unsupported
        assert (one.path, one.type) == ("layer", "Own") and cause in one.reason, one.reason
        assert "Exception encountered" not in one.reason


def test_a_trace_leaves_no_mark():
    class Lazy(keras.Layer):
        table = None

        def call(self, x):
            if self.table is None:
                self.table = ops.ones((6, 5)) @ ops.ones((5, 5))
            return tf.nn.relu(x) @ self.table

    layer = Lazy()
    assert macs(layer, (6,)) == 6 * 25 + 30
    assert macs(layer, (6,)) == 6 * 25 + 30
    assert layer(np.ones((2, 6), "float32")).shape == (2, 5)


@pytest.mark.parametrize(
    "model, shape, words",
    [
        (keras.Sequential([], name="empty"), None, "'empty' has no layers"),
        (keras.Sequential([L.Dense(4)]), 8, "must be a tuple of positive integers"),
        (keras.Sequential([keras.Input((8,)), L.Dense(4)]), 8, "must be a tuple of positive integers"),
        (L.Dense(4), None, "pass input_shape"),
    ],
    ids=["no layers", "int", "int for a built one", "no shape"],
)
def test_what_makes_no_sense_ends_in_a_sentence(model, shape, words):
    with pytest.raises(ValueError, match=words):
        flops.count(model, shape)


def test_bins_that_are_not_known_yet():
    model = keras.Sequential([keras.Input((8,)), L.Discretization(num_bins=4)])
    (one,) = flops.count(model, unsupported="ignore").unsupported
    assert "adapt" in one.reason
