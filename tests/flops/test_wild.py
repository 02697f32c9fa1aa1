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


class Matmul(keras.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        return x @ self.w


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
    "learned queries": (
        own(lambda layer, x: layer.inner[0](ops.tile(layer.q, (ops.shape(x)[0], 1, 1)), x), (7, 6), q=(1, 4, 6),
            inner=[L.MultiHeadAttention(2, 3)]), 2 * 4 * 36 + 2 * 7 * 36 + 2 * 2 * 4 * 7 * 3),
    "not used": (own(lambda layer, x: (layer.u @ layer.v, x)[1], (5,), u=(1, 6), v=(6, 5)), 0),
}  # fmt: skip


@pytest.mark.parametrize("traced", [False, True], ids=["inside", "graph"])
def test_products_of_weights_are_repeated_at_every_time_step(traced):
    product = tf.matmul if traced else ops.matmul
    layer = Own(lambda layer, x: product(x, product(layer.u, layer.v)), u=(6, 2), v=(2, 5))
    layer.compute_output_shape = lambda shape: (*shape[:-1], 5)
    assert macs(functional(L.TimeDistributed(layer), (4, 6)), batch_size=3) == 4 * (6 * 2 * 5 + 3 * 6 * 5)
    dense = L.Dense(5)
    model = functional(L.TimeDistributed(dense), (4, 6))
    dense.enable_lora(4)
    assert macs(model, batch_size=3) == 4 * (6 * 4 * 5 + 3 * 6 * 5)


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


# --- the batch that is named is the batch that was counted (K6); a bare layer (K7) ------------------------------------


def test_a_fixed_batch_is_named():
    fixed, free = (keras.Sequential([keras.Input((8,), batch_size=batch), L.Dense(16)]) for batch in (4, None))
    called = own_model(lambda self, x: self.dense(x), dense=L.Dense(16))
    called(np.ones((4, 8)))
    for model, shape, batch, wanted in (
        *((fixed, None, batch, wanted) for batch, wanted in ((None, 4), (1, 1), (4, 4), (2, 2))),
        (free, (4, 8), None, 4), (called, None, None, 1), (called, None, 3, 3),
    ):  # fmt: skip
        report = flops.count(model, shape, batch_size=batch)
        assert (report.batch_size, report.total_macs) == (wanted, 128 * wanted)
        assert f"batch {wanted}" in repr(report)
    with pytest.raises(ValueError, match="batch_size must be 4, which input_shape"):
        flops.count(free, (4, 8), batch_size=2)


@pytest.mark.parametrize(
    "layer, shape, wanted",
    [
        (L.Dense(11), (10,), 110),
        (L.Conv2D(8, 3, padding="same"), (16, 16, 3), 256 * 27 * 8),
        (L.LSTM(4), (10, 3), 10 * 4 * 4 * (3 + 4)),
        (L.Bidirectional(L.LSTM(4)), (10, 3), 2 * 10 * 4 * 4 * (3 + 4)),
        (L.TimeDistributed(L.Dense(5)), (10, 3), 150),
        (L.MultiHeadAttention(2, 3), [(5, 6), (5, 6)], 4 * 5 * 6 * 6 + 2 * 2 * 5 * 5 * 3),
        (L.Add(), [(5,), (5,)], 0),
        (L.Attention(), [(4, 6), (9, 6)], 2 * 4 * 9 * 6),
        (L.Embedding(10, 4), (7,), 0),
        (Matmul(), (6,), 30),
        (L.Lambda(lambda x: x @ ops.transpose(x, (0, 2, 1))), (5, 6), 150),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else "",
)
def test_a_bare_layer_is_counted_once(layer, shape, wanted):
    report = flops.count(layer, shape, unsupported="raise")
    assert (report.total_macs, report.total_params) == (wanted, layer.count_params())


# --- names that mean something else (K11), channels first (K8) --------------------------------------------------------


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


# --- what Keras can call is counted (K5) ------------------------------------------------------------------------------


def own_model(function, **layers):
    class OwnModel(keras.Model):
        def __init__(self):
            super().__init__(name="own")
            for name, layer in layers.items():
                setattr(self, name, layer)

    OwnModel.call = function
    return OwnModel()


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


ANY = {
    "training= to a layer without it": (lambda s, x, training=None: s.a(x, training=training), {"a": Matmul()}, 30),
    "a variable on the left": (lambda s, x: s.a(x), {"a": Own(lambda s, x: s.g * x @ s.w, g=(6,), w=(6, 5))}, 30),
    "a layer that returns None too": (lambda s, x: s.a(x)[0], {"a": WithNothing()}, 30),
    "TensorFlow inside": (lambda s, x: tf.nn.relu(s.a(x)), {"a": L.Dense(5)}, 30),
    "TensorFlow's product": (lambda s, x: tf.matmul(x, s.a.g), {"a": Own(None, g=(6, 5))}, 30),
    "NumPy on the left": (lambda s, x: np.ones((1, 6), "float32") * s.a(x), {"a": L.Dense(6)}, 36),
    "two layers deep": (
        lambda s, x: s.a(x), {"a": Own(lambda s, x: tf.nn.relu(s.inner[0](x)), inner=[Matmul()])}, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", ANY)
def test_what_keras_can_call_is_counted(name):
    function, layers, wanted = ANY[name]
    assert macs(own_model(function, **layers), (6,)) == wanted
    assert macs(own_model(function, **layers), (6,), batch_size=3) == 3 * wanted


class Wrapped(keras.Layer):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(5)

    @tf.function
    def call(self, x):
        return self.dense(tf.nn.relu(x))


def test_what_tf_function_wraps_is_seen():
    """TensorFlow traces the function for an open batch: before, all its shapes "depended on the data"."""
    for batch in (1, 3):
        report = flops.count(functional(Wrapped(), (6,)), batch_size=batch, unsupported="raise")
        assert (report.total_macs, report.total_elementwise_ops) == (batch * 30, batch * (6 + 5))
        assert [row.type for row in report.rows] == ["InputLayer", "Dense", "Wrapped"]
    assert not tf.config.functions_run_eagerly()


SEQUENCES = {
    "attention with a cache": (functional(lambda x: WithCache(2, 3)(x, x), (5, 6)), 4 * 5 * 36 + 300),
    "shape of EinsumDense": (
        own(heads, (5, 6), inner=[L.EinsumDense("abc,cde->abde", (None, 2, 3))], w=(6, 4)), 5 * 36 + 5 * 24),
    "fori_loop": (
        own(lambda s, x: ops.fori_loop(0, 7, lambda at, h: h @ s.w, x), (5, 6), w=(6, 6)), 7 * 5 * 36),
    "while_loop": (
        own(lambda s, x: ops.while_loop(lambda at, h: at < 7, lambda at, h: (at + 1, h @ s.w), (0, x))[1],
            (5, 6), w=(6, 6)), 7 * 5 * 36),
    "scan": (
        own(lambda s, x: ops.scan(lambda h, step: (h @ s.w + step, h), ops.zeros((1, 6)),
                                  ops.transpose(x, (1, 0, 2)))[0], (5, 6), w=(6, 6)), 5 * 36),
    "map": (own(lambda s, x: ops.map(lambda row: row @ s.w, x), (5, 6), w=(6, 4)), 5 * 24),
    "vectorized_map": (own(lambda s, x: ops.vectorized_map(lambda row: row @ s.w, x), (5, 6), w=(6, 4)), 5 * 24),
    "cond of equal branches": (
        own(lambda s, x: ops.cond(ops.sum(x) > 0, lambda: x @ s.w, lambda: x @ (2.0 * s.w)), (5, 6), w=(6, 4)), 120),
    "tf.map_fn": (own(lambda s, x: tf.map_fn(lambda row: row @ s.w.value, x), (5, 6), w=(6, 6)), 180),
}  # fmt: skip


@pytest.mark.parametrize("name", [*WEIGHTS_ONLY, *SEQUENCES])
def test_products_of_weights_sequences_and_loops_are_counted(name):
    model, wanted = {**WEIGHTS_ONLY, **SEQUENCES}[name]
    assert macs(model) == wanted


def test_several_arguments_of_a_subclassed_model():
    def both(self, x, y):
        return self.a(x) + self.b(y)

    make = lambda: own_model(both, a=L.Dense(5), b=L.Dense(5))  # noqa: E731
    for given in ([(6,), (8,)], {"x": (6,), "y": (8,)}):
        assert macs(make(), given) == 30 + 40
    with pytest.raises(ValueError, match="call takes x, y; pass a list with one input_shape for each"):
        flops.count(make(), (6,))


def test_inputs_of_a_subclassed_model_that_are_numbers_or_text():
    """TensorFlow's gather takes no floats: before, the shape was said not to fit."""
    gathered = own_model(lambda s, x: s.a(tf.gather(s.e.g.value, x)), a=L.Dense(5), e=Own(None, g=(20, 6)))
    words = {"l": L.StringLookup(vocabulary=["a", "b"]), "e": L.Embedding(4, 6), "a": L.Dense(5)}
    assert macs(gathered, (7,)) == 7 * 30
    assert macs(own_model(lambda s, x: s.a(s.e(s.l(x))), **words), (7,)) == 7 * 30
    with pytest.raises(ValueError, match="no_such_method"):
        flops.count(own_model(lambda s, x: x.no_such_method()), (7,))


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


def test_pytorch_tells_a_sum_only_and_has_no_graph_which_is_said(monkeypatch):
    cost = graph.operations_cost([30])
    assert cost.macs == 0 and "30 MACs" in cost.unknown
    model = own(lambda layer, x: tf.nn.relu(x @ layer.w), (6,), w=(6, 5))
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    (one,) = flops.count(model, unsupported="ignore").unsupported
    assert one.type == "Own" and "graph of the torch backend is not read; count it on TensorFlow or JAX" in one.reason


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
    hidden = lambda s, x: ops.cond(ops.sum(x) > 0, lambda: tf.linalg.inv(s.w)[:1] + x, lambda: x + x + x)  # noqa: E731
    masked = lambda s, x: tf.boolean_mask(x, x[:, 0] > 0) @ s.w  # noqa: E731
    for function, cause in (
        (endless, "how often its loop runs depends on the data (36 MACs each time)"),
        (uneven, "which branch runs depends on the data (72 or 36 MACs)"),
        (masked, "depends on the data"),
        (hidden, "'MatrixInverse' of TensorFlow has no rule"),
        (lambda s, x: tf.linalg.inv(x[:, None] * s.w) @ x[..., None], "'MatrixInverse' of TensorFlow has no rule"),
        (lambda s, x: x.no_such_method(), "no_such_method"),
    ):
        layer = Own(function, name="layer", w=(6, 6))
        layer.compute_output_spec = lambda x: keras.KerasTensor(x.shape)
        (one,) = flops.count(functional(layer, (6,)), unsupported="ignore").unsupported
        assert (one.path, one.type) == ("layer", "Own") and cause in one.reason, one.reason
        assert "Exception encountered" not in one.reason


def test_a_norm_of_singular_values_is_not_elementwise():
    norm = lambda order, axis: functional(lambda x: ops.norm(x, order, axis), (4, 5))  # noqa: E731
    for order in ("nuc", 2, -2):
        (one,) = flops.count(norm(order, (1, 2)), unsupported="ignore").unsupported
        assert one.type == "Norm" and "singular value decomposition" in one.reason
    for order, axis in (("fro", (1, 2)), (2, 1), (None, None), (1, (1, 2))):
        report = flops.count(norm(order, axis), unsupported="raise")
        assert (report.total_macs, report.total_elementwise_ops) == (0, 2 * 20)


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
