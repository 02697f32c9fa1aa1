"""Subclasses of Keras' layers, and layers that were changed: none is priced as what it no longer is."""

import keras
import pytest
from test_wild import Own, functional, macs

L, ops = keras.layers, keras.ops


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


class Widened(L.Dense):
    """Only its weights are of its own making: twice as many units as it says."""

    def build(self, shape):
        self.units *= 2
        super().build(shape)
        self.units //= 2

    def compute_output_shape(self, shape):
        return (*shape[:-1], 2 * self.units)


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
    "weights of another shape": (lambda: Widened(5), (6,), 2 * 6 * 5),
    "wrapper": (lambda: Folded(L.Dense(5)), (10, 3), 2 * 10 * 3 * 5),
    "nothing that matters": (lambda: Renamed(8, 3, padding="same"), (16, 16, 3), CONV),
}  # fmt: skip


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_that_computes_otherwise_is_not_priced_as_its_base(name):
    make, shape, wanted = SUBCLASSES[name]
    assert macs(functional(make(), shape)) == wanted
    assert macs(functional(make(), shape), batch_size=3) == (3 * wanted if name != "kernel of two factors" else 150)


def test_a_method_inside_that_is_replaced():
    plain, twice = (functional(lambda x, one=one: one(2, 3)(x, x), (5, 6)) for one in (L.MultiHeadAttention, Attended))
    # the first result is used by nothing, so no backend computes it
    assert macs(plain) == macs(twice) == 4 * 5 * 6 * 6 + 2 * 2 * 5 * 5 * 3
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
    # and on a class that was counted before
    kind = type("Changed", (L.Dense,), {})
    model = functional(kind(5), (6,))
    assert macs(model) == 6 * 5
    kind.call = lambda self, x, training=None: L.Dense.call(self, x) + L.Dense.call(self, 2.0 * x)
    assert macs(model) == 2 * 6 * 5


@pytest.mark.parametrize("kind", [L.MultiHeadAttention, L.GroupQueryAttention])
def test_parts_of_attention_that_are_exchanged(kind):
    attention = kind(2, 3) if kind is L.MultiHeadAttention else kind(3, 2, 2)
    model = functional(lambda x: attention(x, x), (5, 6))
    before, plain = macs(model), attention._query_dense
    low_rank = Own(lambda layer, x: plain(x) + ops.reshape(x @ layer.u @ layer.v, (-1, 5, 2, 3)), u=(6, 4), v=(4, 6))
    attention._tracker.unlock()  # as the tutorials on LoRA do
    attention._query_dense = low_rank
    assert macs(model) == before + 5 * (6 * 4 + 4 * 6)
    attention._query_dense = plain
    attention._output_dense.activation = lambda y: y @ ops.ones((6, 6))
    assert macs(model) == before + 5 * 6 * 6
    attention._output_dense.activation = None
    plain.enable_lora(4)
    assert macs(model) == before + 6 * 4 * 6
