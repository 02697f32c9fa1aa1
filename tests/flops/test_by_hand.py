"""The counts against arithmetic in NumPy that counts itself, and against the TensorFlow profiler."""

import itertools
import math

import keras
import numpy as np
import pytest
import random_networks
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from test_flops import check_sums, joined

from utils import flops

L, ops = keras.layers, keras.ops

# --- counted by hand, in NumPy: the arithmetic is done, checked against Keras, and counted as it is done ------------


class Counter:
    """Arithmetic that counts its multiply-accumulates."""

    def __init__(self):
        self.macs = 0

    def contract(self, a, b, axes):
        result = np.tensordot(a, b, axes)
        self.macs += result.size * math.prod(a.shape[axis] for axis in axes[0])
        return result

    def matmul(self, a, b):
        result = a @ b
        self.macs += result.size * a.shape[-1]
        return result

    def convolve(self, x, kernel, strides, dilation, groups, padding):
        """Any rank, channels last: every output position multiplies one patch by the kernel."""
        rank = len(strides)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
        pads = [(0, 0)] * rank
        if padding == "same":
            total = [max((-(-n // s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[1:], strides, spans, strict=False)]
            pads = [(one // 2, one - one // 2) for one in total]
        elif padding == "causal":
            pads = [(spans[0] - 1, 0)]
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
        out = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:], spans, strides, strict=False)]
        width, filters = kernel.shape[-2], kernel.shape[-1] // groups
        result = np.zeros((x.shape[0], *out, kernel.shape[-1]))
        for at in itertools.product(*map(range, out)):
            window = tuple(slice(i * s, i * s + k, d) for i, s, k, d in zip(at, strides, spans, dilation, strict=True))
            patch = x[(slice(None), *window)]
            for g in range(groups):
                chosen = slice(g * filters, (g + 1) * filters)
                axes = (list(range(1, rank + 2)), list(range(rank + 1)))
                part = patch[..., g * width : (g + 1) * width]
                result[(slice(None), *at, chosen)] = self.contract(part, kernel[..., chosen], axes)
        return result


def compare(layer, shapes, computed):
    """`computed(counter, weights, *inputs)` answers what the layer answers, and has counted what its rule says."""
    inputs = [np.random.default_rng(0).normal(size=(2, *shape)) for shape in shapes]
    model, counter = joined(layer, *shapes), Counter()
    weights = [ops.convert_to_numpy(weight).astype(float) for weight in layer.weights]
    answer = ops.convert_to_numpy(model(inputs if len(inputs) > 1 else inputs[0]))
    np.testing.assert_allclose(computed(counter, weights, *inputs), answer, rtol=1e-3, atol=1e-4)
    assert flops.count(model, batch_size=2, unsupported="raise").total_macs == counter.macs


@pytest.mark.oracle
@examples(20)
@given(st.data())
def test_convolutions_counted_by_hand(data):
    rank = data.draw(st.integers(1, 3))
    groups = data.draw(st.sampled_from([1, 1, 2, 3])) if rank < 3 else 1  # TensorFlow's CPU has no grouped Conv3D
    pick = lambda low, high: tuple(data.draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, size = pick(1, 3), pick(7, 9 if rank < 3 else 7)
    dilated = data.draw(st.booleans())
    strides = (1,) * rank if dilated else (data.draw(st.integers(1, 2)),) * rank
    dilation = (2,) * rank if dilated else (1,) * rank
    padding = data.draw(st.sampled_from(["valid", "same", *(["causal"] if rank == 1 else [])]))
    layer = getattr(L, f"Conv{rank}D")(
        3 * groups, kernel, strides=strides, dilation_rate=dilation, groups=groups, padding=padding, use_bias=False
    )
    convolve = lambda counter, w, x: counter.convolve(x, w[0], strides, dilation, groups, padding)  # noqa: E731
    compare(layer, [(*size, 2 * groups)], convolve)


@pytest.mark.parametrize("multiplier, padding", [(1, "valid"), (2, "valid"), (2, "same")])
def test_depthwise_and_separable_counted_by_hand(multiplier, padding):
    options = {"strides": 2, "padding": padding, "depth_multiplier": multiplier, "use_bias": False}

    def depthwise(counter, weights, x):
        return counter.convolve(x, weights[0].reshape(3, 2, 1, 3 * multiplier), (2, 2), (1, 1), 3, padding)

    def separable(counter, weights, x):
        return counter.convolve(depthwise(counter, weights, x), weights[1], (1, 1), (1, 1), 1, "valid")

    compare(L.DepthwiseConv2D((3, 2), **options), [(8, 9, 3)], depthwise)
    compare(L.SeparableConv2D(5, (3, 2), **options), [(8, 9, 3)], separable)


@pytest.mark.parametrize("strides, padding", [(1, "valid"), (2, "valid"), (3, "valid"), (2, "same")])
def test_transposed_convolution_counted_by_hand(strides, padding):
    def scatter(counter, weights, x):  # the kernel is (k, k, C_out, C_in)
        canvas = np.zeros((2, 3 * strides + 3, 4 * strides + 3, 2))
        for i, j in itertools.product(range(4), range(5)):
            patch = counter.contract(x[:, i, j], weights[0], ([1], [3]))
            canvas[:, i * strides : i * strides + 3, j * strides : j * strides + 3] += patch
        if padding == "same":  # TensorFlow cuts the surplus, one row and column here, from the far side
            return canvas[:, : 4 * strides, : 5 * strides]
        pad = max(strides - 3, 0)
        return np.pad(canvas, [(0, 0), (0, pad), (0, pad), (0, 0)])

    compare(L.Conv2DTranspose(2, 3, strides=strides, padding=padding, use_bias=False), [(4, 5, 3)], scatter)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(counter, weights, x):
    (kernel, recurrent, bias), h, c = weights, np.zeros((2, 4)), np.zeros((2, 4))
    for t in range(5):
        i, f, g, o = np.split(counter.matmul(x[:, t], kernel) + counter.matmul(h, recurrent) + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
    return h


def gru(counter, weights, x):
    (kernel, recurrent, bias), h = weights, np.zeros((2, 4))
    for t in range(5):
        xz, xr, xg = np.split(counter.matmul(x[:, t], kernel) + bias, 3, axis=1)
        gates = counter.matmul(h, recurrent[:, :8])
        z, r = sigmoid(xz + gates[:, :4]), sigmoid(xr + gates[:, 4:])
        h = z * h + (1 - z) * np.tanh(xg + counter.matmul(r * h, recurrent[:, 8:]))
    return h


def attention(counter, weights, q, v, k):
    wq, wk, wv, wo = weights
    queries, keys, values = (counter.contract(a, w, ([2], [0])) for a, w in ((q, wq), (k, wk), (v, wv)))
    scores = np.exp(counter.matmul(queries.transpose(0, 2, 1, 3), keys.transpose(0, 2, 3, 1)) / np.sqrt(3))
    heads = counter.matmul(scores / scores.sum(-1, keepdims=True), values.transpose(0, 2, 1, 3))
    return counter.contract(heads.transpose(0, 2, 1, 3), wo, ([2, 3], [0, 1]))


def test_recurrent_layers_and_attention_counted_by_hand():
    compare(L.LSTM(4), [(5, 3)], lstm)
    compare(L.GRU(4, reset_after=False), [(5, 3)], gru)
    compare(L.MultiHeadAttention(2, 3, value_dim=4, use_bias=False), [(4, 6), (7, 5), (7, 3)], attention)


# --- against the TensorFlow profiler, on random networks --------------------------------------------------------------


def profiled_macs(model, shape):
    """MACs of the operators that the TensorFlow profiler knows how to count, from the frozen graph."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

    concrete = tf.function(model).get_concrete_function(tf.TensorSpec(shape))
    frozen, _ = convert_variables_to_constants_v2_as_graph(concrete)
    options = {**tf.compat.v1.profiler.ProfileOptionBuilder.float_operation(), "output": "none"}
    profile = tf.compat.v1.profiler.profile(graph=frozen.graph, cmd="op", options=options)
    total, nodes = 0, list(profile.children)
    while nodes:
        node = nodes.pop()
        nodes += node.children
        if node.name in ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2", "Conv2DBackpropInput"):
            total += node.float_ops
    return total / 2


@pytest.mark.oracle
@examples(12)
@given(random_networks.networks(grouped=False), st.integers(1, 3))
def test_random_networks_against_the_profiler(network, batch):
    model, shape = network[0], network[0].input_shape[1:]
    report = flops.count(model, batch_size=batch, unsupported="raise")
    assert report.total_macs == profiled_macs(model, (batch, *shape))
    check_sums(report, model)
    assert report.total_macs == batch * flops.count(model, shape).total_macs
