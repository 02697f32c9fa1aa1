"""FLOPs and MACs: published values, counting by hand in NumPy, the TensorFlow profiler, and sums that must agree."""

import itertools
import math

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from utils import flops
from utils.flops.formulas import ACTIVATION_OPS, einsum_macs

L = keras.layers
ADAPTIVE = hasattr(L, "AdaptiveMaxPooling2D")  # newer than the lowest Keras that pyproject.toml names


def baseline():
    """The baseline CNN as study A prints it."""
    blocks = [(L.Conv2D(n, 3, name=name), L.BatchNormalization(), L.MaxPooling2D()) for n, name in BASELINE_CONVS]
    layers = [layer for block in blocks for layer in block]
    return keras.Sequential(
        [keras.Input((224, 224, 3)), *layers, L.Flatten(), L.Dense(64, name="dense"), L.Dense(17, name="dense_1")],
        name="baseline",
    )


BASELINE_CONVS = ((128, "conv2d"), (128, "conv2d_1"), (64, "conv2d_2"))


def build(*layers_and_input, **kwargs):
    shape, *layers = layers_and_input
    return keras.Sequential([keras.Input(shape), *layers], **kwargs)


def check_sums(report, model=None):
    """Sums of rows equal the totals, in every table."""
    frame = report.to_frame()
    for table in (frame, report.by_type(), report.by_block(), report.by_block(2)):
        assert table["macs"].sum() == report.total_macs
        assert table["flops"].sum() == report.total_flops == 2 * report.total_macs
        assert table["params"].sum() == report.total_params
        assert table["elementwise_ops"].sum() == report.total_elementwise_ops
        assert table["weight_bytes"].sum() == report.total_weight_bytes
        assert table["activation_bytes"].sum() == report.total_activation_bytes
        if report.total_macs:
            assert table["share"].sum() == pytest.approx(1)
            assert table["cumulative_share"].iloc[-1] == pytest.approx(1)
    if model is not None:
        assert report.total_params == model.count_params()


# --- published values -------------------------------------------------------------------------------------------------

# Exact MACs from output shapes and parameters, measured with the field's reference tools on Keras 2.12 (fvcore agrees).
MODELS = {
    ("MobileNet", 1000): (568_740_352, 4_253_864),
    ("MobileNetV2", 1000): (300_774_272, 3_538_984),
    ("VGG16", 1000): (15_470_264_320, 138_357_544),
    ("ResNet50", 1000): (3_857_973_248, 25_636_712),
    ("ResNet50V2", 1000): (3_482_255_360, 25_613_800),
    ("DenseNet121", 1000): (2_834_161_664, 8_062_504),
    ("InceptionV3", 1000): (5_713_216_096, 23_851_784),
}
# Families without a reference measurement: what their papers print, in millions of multiply-adds.
PAPERS = {
    "Xception": (8_400, 0.02),  # 8.4 G, keras.io and the NASNet paper's table 2
    "NASNetMobile": (564, 0.02),  # Zoph et al. 2018, table 2
    "InceptionResNetV2": (13_200, 0.02),  # Zoph et al. 2018, table 2
    "MobileNetV3Small": (56, 0.03),  # Howard et al. 2019, table 3
    "EfficientNetV2B0": (720, 0.03),  # Tan and Le 2021, the authors' repository
    "ConvNeXtTiny": (4_500, 0.02),  # Liu et al. 2022, table 1
}


@pytest.mark.parametrize("name, classes", MODELS, ids=str)
def test_models_of_the_reference_table(name, classes):
    model = getattr(keras.applications, name)(weights=None, classes=classes)
    report = flops.count(model, unsupported="raise")
    assert (report.total_macs, report.total_params) == MODELS[name, classes]
    check_sums(report, model)


@pytest.mark.parametrize("name", PAPERS)
def test_a_model_of_every_other_family(name):
    model = getattr(keras.applications, name)(weights=None)
    size = (224, 224, 3) if name == "MobileNetV3Small" else None  # it is built without one
    report = flops.count(model, size, unsupported="raise")
    millions, tolerance = PAPERS[name]
    assert report.total_macs / 1e6 == pytest.approx(millions, rel=tolerance)
    check_sums(report, model)


def test_study_a_baseline_published_and_exact():
    model = baseline()
    exact = flops.count(model)
    assert (exact.total_macs, exact.total_flops, exact.total_params) == (2_124_380_736, 4_248_761_472, 2_996_305)
    study = flops.count(model, convention="input_over_stride")
    assert study.total_flops == 4_415_948_928
    rows = study.to_frame().set_index("path")["flops"]
    assert rows[rows > 0].to_dict() == {
        "conv2d": 346_816_512,
        "conv2d_1": 3_633_610_752,
        "conv2d_2": 429_981_696,
        "dense": 5_537_792,
        "dense_1": 2_176,
    }
    assert study.total_flops / exact.total_flops - 1 == pytest.approx(0.039, abs=0.0005)
    assert "input / stride" in repr(study) and "input_over_stride" in repr(study)
    check_sums(study, model)


def test_study_a_efficientnet_rows():
    model = keras.applications.EfficientNetB0(weights=None, classes=17)
    exact = flops.count(model)
    assert (exact.total_macs, exact.total_params) == (384_556_512, 4_071_348)
    assert exact.by_type().loc["GlobalAveragePooling2D", "elementwise_ops"] == 2_369_248
    study = flops.count(model, convention="input_over_stride")
    rows, studied = (report.to_frame().set_index("path")["flops"] for report in (exact, study))
    for path, published in {
        "stem_conv": 21_676_032,
        "block1a_dwconv": 7_225_344,
        "block1a_project_conv": 12_845_056,
        "block2a_expand_conv": 38_535_168,
        "block2a_dwconv": 5_419_008,
        "block4a_dwconv": 846_720,
    }.items():
        assert rows[path] == studied[path] == published


@pytest.fixture(scope="module")
def mobilenet():
    return flops.count(keras.applications.MobileNetV2(weights=None, classes=10))


def test_study_b_ten_layers_with_the_tie_shown(mobilenet):
    top = mobilenet.top(10)
    assert list(zip(top["rank"], top["path"], top["flops"], strict=True))[:3] == [
        ("1", "Conv_1", 40_140_800),
        ("2", "block_1_expand", 38_535_168),
        ("3", "block_16_project", 30_105_600),
    ]
    tie = top.iloc[3:]
    assert set(tie["rank"]) == {"4="} and set(tie["flops"]) == {21_676_032} and len(tie) == 9
    assert {"Conv1", "block_2_expand", "block_2_project", "block_3_expand", "block_11_expand"} <= set(tie["path"])
    assert (mobilenet.total_macs, mobilenet.total_params) == (299_507_072, 2_270_794)
    assert len(mobilenet.top(3)) == 3 and len(mobilenet.top(4)) == 12
    assert top["cumulative_share"].iloc[-1] == pytest.approx(top["macs"].sum() / mobilenet.total_macs)


# --- one layer each ---------------------------------------------------------------------------------------------------

ZOO = {  # published values of the layer zoo: (model, params, exact MACs)
    "Conv1D": (lambda: build((64, 8), L.Conv1D(16, 5, strides=2)), 656, 30 * 5 * 8 * 16),
    "Conv2D same": (lambda: build((32, 32, 8), L.Conv2D(16, 3, padding="same")), 1168, 1_179_648),
    "Conv2D same s2": (lambda: build((33, 33, 8), L.Conv2D(16, 3, padding="same", strides=2)), 1168, 332_928),
    "Conv2D 3x5": (lambda: build((32, 32, 8), L.Conv2D(16, (3, 5), strides=(2, 1), use_bias=False)), 1920, 806_400),
    "Conv2D dilated": (lambda: build((32, 32, 8), L.Conv2D(16, 3, padding="same", dilation_rate=2)), 1168, 1_179_648),
    "Conv3D": (lambda: build((8, 16, 16, 2), L.Conv3D(4, 3)), 220, 254_016),
    "Conv2DTranspose": (lambda: build((16, 16, 8), L.Conv2DTranspose(16, 2, strides=2)), 528, 131_072),
    "DepthwiseConv2D": (lambda: build((33, 33, 8), L.DepthwiseConv2D(3, strides=2)), 80, 18_432),
    "SeparableConv2D": (lambda: build((32, 32, 8), L.SeparableConv2D(16, 3, padding="same")), 216, 204_800),
    "Dense": (lambda: build((32,), L.Dense(16)), 528, 512),
    "LSTM": (lambda: build((10, 8), L.LSTM(16, return_sequences=True)), 1600, 15_360),
    "SimpleRNN": (lambda: build((10, 8), L.SimpleRNN(16)), 400, 3_840),
    "Bidirectional": (lambda: build((10, 8), L.Bidirectional(L.LSTM(16))), 3200, 30_720),
    "EinsumDense": (
        lambda: build((10, 32), L.EinsumDense("abc,cd->abd", output_shape=(None, 16), bias_axes="d")),
        *(528, 5_120),
    ),
    "LayerNormalization": (lambda: build((10, 32), L.LayerNormalization()), 64, 0),
    "Embedding": (lambda: build((10,), L.Embedding(100, 16)), 1600, 0),
    "MaxPooling2D": (lambda: build((32, 32, 8), L.MaxPooling2D(3, strides=2, padding="same")), 0, 0),
    "Softmax": (lambda: build((100,), L.Softmax()), 0, 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_layer_zoo(name):
    make, params, macs = ZOO[name]
    report = flops.count(make(), unsupported="raise")
    assert (report.total_params, report.total_macs) == (params, macs)
    check_sums(report)


def test_shared_and_several_inputs_and_outputs():
    a, b = keras.Input((8,)), keras.Input((8,))
    dense = L.Dense(4)
    report = flops.count(keras.Model([a, b], L.Add()([dense(a), dense(b)])))
    assert (report.total_macs, report.total_params) == (2 * 8 * 4, 36)
    assert sorted(row.params for row in report.rows if row.type == "Dense") == [0, 36]

    photo, meta = keras.Input((16, 16, 3)), keras.Input((10,))
    x = L.Flatten()(L.Conv2D(4, 3, strides=2)(photo))
    x = L.Concatenate()([x, L.Dense(6)(meta)])
    report = flops.count(keras.Model([photo, meta], [L.Dense(3)(x), L.Dense(2)(x)]))
    assert (report.total_macs, report.total_params) == (6_362, 1_193)


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
                part = patch[..., g * width : (g + 1) * width]
                chosen = slice(g * filters, (g + 1) * filters)
                axes = (list(range(1, rank + 2)), list(range(rank + 1)))
                result[(slice(None), *at, chosen)] = self.contract(part, kernel[..., chosen], axes)
        return result


def compare(layer, x, computed, counter):
    """The counted arithmetic is that of the layer, and its count that of the rule."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    np.testing.assert_allclose(computed(), keras.ops.convert_to_numpy(model(x)), rtol=1e-3, atol=1e-4)
    assert flops.count(model, batch_size=len(x), unsupported="raise").total_macs == counter.macs


def built(layer, shape):
    layer.build(shape)
    return [keras.ops.convert_to_numpy(weight).astype(float) for weight in layer.weights]


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
    x = np.random.default_rng(0).normal(size=(2, *size, 2 * groups))
    layer = getattr(L, f"Conv{rank}D")(
        3 * groups, kernel, strides=strides, dilation_rate=dilation, groups=groups, padding=padding, use_bias=False
    )
    (weights,) = built(layer, x.shape)
    counter = Counter()
    compare(layer, x, lambda: counter.convolve(x, weights, strides, dilation, groups, padding), counter)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise_and_separable_counted_by_hand(padding, multiplier):
    x = np.random.default_rng(0).normal(size=(2, 8, 9, 3))
    options = {"strides": 2, "padding": padding, "depth_multiplier": multiplier, "use_bias": False}
    layer = L.DepthwiseConv2D((3, 2), **options)
    (weights,) = built(layer, x.shape)
    grouped = weights.reshape(3, 2, 1, 3 * multiplier)
    counter = Counter()
    compare(layer, x, lambda: counter.convolve(x, grouped, (2, 2), (1, 1), 3, padding), counter)

    layer = L.SeparableConv2D(5, (3, 2), **options)
    depthwise, pointwise = built(layer, x.shape)
    grouped = depthwise.reshape(3, 2, 1, 3 * multiplier)
    counter = Counter()

    def separable():
        middle = counter.convolve(x, grouped, (2, 2), (1, 1), 3, padding)
        return counter.convolve(middle, pointwise, (1, 1), (1, 1), 1, "valid")

    compare(layer, x, separable, counter)


@pytest.mark.parametrize("strides, padding", [(1, "valid"), (2, "valid"), (3, "valid"), (2, "same")])
def test_transposed_convolution_counted_by_hand(strides, padding):
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    layer = L.Conv2DTranspose(2, 3, strides=strides, padding=padding, use_bias=False)
    (weights,) = built(layer, x.shape)  # (k, k, C_out, C_in)
    counter = Counter()

    def scatter():
        canvas = np.zeros((2, 3 * strides + 3, 4 * strides + 3, 2))
        for i, j in itertools.product(range(4), range(5)):
            patch = counter.contract(x[:, i, j], weights, ([1], [3]))
            canvas[:, i * strides : i * strides + 3, j * strides : j * strides + 3] += patch
        if padding == "same":  # TensorFlow cuts the surplus, one row and column here, from the far side
            return canvas[:, : 4 * strides, : 5 * strides]
        pad = max(strides - 3, 0)
        return np.pad(canvas, [(0, 0), (0, pad), (0, pad), (0, 0)])

    compare(layer, x, scatter, counter)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_lstm_and_gru_counted_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    layer = L.LSTM(4)
    kernel, recurrent, bias = built(layer, x.shape)
    counter = Counter()

    def lstm():
        h, c = np.zeros((2, 4)), np.zeros((2, 4))
        for t in range(5):
            z = counter.matmul(x[:, t], kernel) + counter.matmul(h, recurrent) + bias
            i, f, g, o = np.split(z, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        return h

    compare(layer, x, lstm, counter)

    layer = L.GRU(4, reset_after=False)
    kernel, recurrent, bias = built(layer, x.shape)
    counter = Counter()

    def gru():
        h = np.zeros((2, 4))
        for t in range(5):
            xz, xr, xg = np.split(counter.matmul(x[:, t], kernel) + bias, 3, axis=1)
            gates = counter.matmul(h, recurrent[:, :8])
            z, r = sigmoid(xz + gates[:, :4]), sigmoid(xr + gates[:, 4:])
            h = z * h + (1 - z) * np.tanh(xg + counter.matmul(r * h, recurrent[:, 8:]))
        return h

    compare(layer, x, gru, counter)


def test_multi_head_attention_counted_by_hand():
    rng = np.random.default_rng(0)
    q, v, k = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 7, 5)), rng.normal(size=(2, 7, 3))
    layer = L.MultiHeadAttention(2, 3, value_dim=4, use_bias=False)
    inputs = [keras.Input(t.shape[1:]) for t in (q, v, k)]
    model = keras.Model(inputs, layer(*inputs))
    wq, wk, wv, wo = (keras.ops.convert_to_numpy(weight).astype(float) for weight in layer.weights)
    counter = Counter()
    queries, keys = counter.contract(q, wq, ([2], [0])), counter.contract(k, wk, ([2], [0]))
    values = counter.contract(v, wv, ([2], [0]))
    scores = counter.matmul(queries.transpose(0, 2, 1, 3), keys.transpose(0, 2, 3, 1)) / np.sqrt(3)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    heads = counter.matmul(weights, values.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    out = counter.contract(heads, wo, ([2, 3], [0, 1]))
    np.testing.assert_allclose(out, keras.ops.convert_to_numpy(model([q, v, k])), rtol=1e-3, atol=1e-4)
    assert flops.count(model, batch_size=2).total_macs == counter.macs


@pytest.mark.parametrize(
    "layer, shapes, macs",
    [
        # query (4, 6), value (9, 5): scores 4*9*6, weighted sum 4*9*5
        (lambda: L.Attention(), [(4, 6), (9, 5), (9, 6)], 4 * 9 * (6 + 5)),
        (lambda: L.AdditiveAttention(), [(4, 6), (9, 5), (9, 6)], 4 * 9 * (6 + 5)),
        (lambda: L.AdditiveAttention(use_scale=False), [(4, 6), (9, 5), (9, 6)], 4 * 9 * 5),
        (lambda: L.Attention(score_mode="concat"), [(4, 6), (9, 5), (9, 6)], 4 * 9 * 5),
        (lambda: L.Dot(axes=(2, 2)), [(4, 6), (9, 6)], 4 * 9 * 6),
        (lambda: L.Dot(axes=1), [(6,), (6,)], 6),
    ],
)
def test_layers_of_several_inputs(layer, shapes, macs):
    inputs = [keras.Input(shape) for shape in shapes]
    report = flops.count(keras.Model(inputs, layer()(inputs)), batch_size=3, unsupported="raise")
    assert report.total_macs == 3 * macs


def test_group_query_attention():
    x = keras.Input((8, 16))
    report = flops.count(keras.Model(x, L.GroupQueryAttention(4, 6, 2)(x, x)))
    q, kv, scores, out = 8 * 16 * 6 * 4, 2 * 8 * 16 * 2 * 4, 2 * 6 * 8 * 8 * 4, 8 * 6 * 4 * 16
    assert report.total_macs == q + kv + scores + out


def test_attention_over_chosen_axes():
    x = keras.Input((5, 7, 6))
    report = flops.count(keras.Model(x, L.MultiHeadAttention(2, 3, attention_axes=(2,))(x, x)))
    projections = 4 * 5 * 7 * 6 * 2 * 3
    assert report.total_macs == projections + 2 * 5 * 2 * 7 * 7 * 3  # 5 rows, each of 7 x 7 pairs


def test_recurrent_layers_of_other_kinds():
    cells = L.RNN([L.LSTMCell(4), L.GRUCell(5), L.SimpleRNNCell(6)])
    macs = 10 * (4 * 4 * (3 + 4) + 3 * 5 * (4 + 5) + 6 * (5 + 6))
    assert flops.count(build((10, 3), cells), unsupported="raise").total_macs == macs
    conv = L.ConvLSTM2D(4, 3, padding="same", return_sequences=True)
    assert flops.count(build((5, 8, 6, 2), conv)).total_macs == 5 * 8 * 6 * 9 * (2 + 4) * 16
    first = L.ConvLSTM2D(4, 3, strides=2, data_format="channels_first")
    assert flops.count(build((5, 2, 9, 7), first)).total_macs == 5 * 4 * 3 * 9 * (2 + 4) * 16


def test_time_distributed_counts_every_step():
    conv = build((8, 8, 3), L.Conv2D(4, 3))
    whole = flops.count(build((5, 8, 8, 3), L.TimeDistributed(conv)), batch_size=2)
    assert whole.total_macs == 10 * flops.count(conv).total_macs
    assert whole.total_params == flops.count(conv).total_params


def test_channels_first_costs_the_same():
    for make in (
        lambda **how: L.Conv2D(6, 3, groups=3, strides=2, **how),
        lambda **how: L.SeparableConv2D(5, 3, depth_multiplier=2, **how),
        lambda **how: L.Conv2DTranspose(5, 3, strides=2, **how),
        lambda **how: L.DepthwiseConv2D(3, **how),
        lambda **how: L.MaxPooling2D(2, **how),
        lambda **how: L.UpSampling2D(2, interpolation="bilinear", **how),
        *([lambda **how: L.AdaptiveAveragePooling2D((3, 2), **how)] if ADAPTIVE else []),
    ):
        for convention in flops.CONVENTIONS:
            last = flops.count(build((9, 11, 3), make(data_format="channels_last")), convention=convention)
            first = flops.count(build((3, 9, 11), make(data_format="channels_first")), convention=convention)
            assert last.total_macs == first.total_macs
            assert last.total_elementwise_ops == first.total_elementwise_ops


# --- keras.ops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function, macs",
    [
        (lambda x: keras.ops.matmul(x, np.ones((6, 5))), 4 * 6 * 5),
        (lambda x: x @ keras.ops.transpose(x, (0, 2, 1)), 4 * 4 * 6),
        (lambda x: keras.ops.einsum("bij,jk->bik", x, np.ones((6, 5))), 4 * 6 * 5),
        (lambda x: keras.ops.einsum("...ij,...kj->...ik", x, x), 4 * 4 * 6),
        (lambda x: keras.ops.tensordot(x, np.ones((6, 5, 2)), axes=1), 4 * 6 * 10),
        (lambda x: keras.ops.conv(x, np.ones((3, 6, 5))), 2 * 3 * 6 * 5),
        (lambda x: keras.ops.depthwise_conv(x, np.ones((3, 6, 2))), 2 * 3 * 12),
        (lambda x: keras.ops.separable_conv(x, np.ones((3, 6, 2)), np.ones((1, 12, 5))), 2 * (36 + 60)),
        (lambda x: keras.ops.conv_transpose(x, np.ones((2, 5, 6)), strides=2), 4 * 2 * 5 * 6),
        (lambda x: keras.ops.einsum("b...i,bi->b...", x, x[:, 0]), 4 * 6),
        (lambda x: keras.ops.sum(x * 2.0 + 1.0, axis=1), 0),
    ],
)
def test_operations(function, macs):
    x = keras.Input((4, 6))
    assert flops.count(keras.Model(x, function(x)), batch_size=3, unsupported="raise").total_macs == 3 * macs


@pytest.mark.parametrize(
    "equation, shapes, macs",
    [
        ("ab,bc->ac", [(2, 3), (3, 5)], 30),
        ("ab->ba", [(2, 3)], 0),
        ("ab,ab->a", [(2, 3), (2, 3)], 6),
        ("...a,ab->...b", [(7, 2, 3), (3, 5)], 7 * 2 * 3 * 5),
        ("abc,ade->abe", [(1, 5, 6), (1, 7, 3)], 5 * 3),  # c and d are summed before anything is multiplied
        ("...ab,bc,cd->...ad", [(2, 5, 6), (6, 7), (7, 3)], 6 * 7 * 3 + 2 * 5 * 6 * 3),
        ("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)], 3 * 4 * 5 + 2 * 3 * 5),  # the pair that TensorFlow takes first
    ],
)
def test_einsum(equation, shapes, macs):
    assert einsum_macs(equation, *shapes) == macs


# --- element-wise operations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layers, operations",
    [
        ([L.Conv2D(4, 3)], 36 * 4),  # bias
        ([L.Conv2D(4, 3, use_bias=False, activation="relu")], 36 * 4),
        ([L.BatchNormalization()], 2 * 192),
        ([L.LayerNormalization()], 7 * 192),
        ([L.ReLU(6.0)], 2 * 192),
        ([L.MaxPooling2D(2)], 4 * 48),
        ([L.GlobalAveragePooling2D()], 192),
        ([L.Dropout(0.5), L.ZeroPadding2D(1), L.RandomFlip(), L.Flatten(), L.Reshape((10, 30))], 0),
        ([L.Rescaling(1 / 255)], 2 * 192),
        ([L.UpSampling2D(2)], 0),
        ([L.UpSampling2D(2, interpolation="bilinear")], 7 * 768),
        ([L.Resizing(4, 4, antialias=True)], (2 * 16 - 1) * 48),
        ([L.Activation(lambda x: x * keras.ops.sigmoid(1.702 * x))], (1 + 4 + 1) * 192),
        *([([L.AdaptiveMaxPooling2D(3)], 10 * 10 * 3)] if ADAPTIVE else []),  # 8 into 3 bins: windows of 3, 4 and 3
    ],
)
def test_elementwise(layers, operations):
    report = flops.count(build((8, 8, 3), *layers), unsupported="raise")
    assert report.total_elementwise_ops == operations


def test_every_activation_of_keras_is_in_the_table():
    names = {name for name in dir(keras.activations) if callable(getattr(keras.activations, name))}
    assert names - {"get", "serialize", "deserialize", "swish", "hard_swish", "sparsemax"} <= set(ACTIVATION_OPS)
    assert flops.count(build((6,), L.Dense(4, activation="swish"))).total_elementwise_ops == 4 + 5 * 4


def test_every_layer_of_keras_has_a_rule_or_is_known_to_have_none():
    """A new Keras brings new layers: decide for each of them."""
    from utils.flops.layers import RULES

    bases = {"Layer", "Wrapper", "InputSpec"}
    cells = {"LSTMCell", "GRUCell", "SimpleRNNCell", "StackedRNNCells"}
    opened = {"Lambda", "Pipeline"}
    foreign = {"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
    uncounted = {"ContrastLimitedAdaptiveHistogramEqualization", "MelSpectrogram", "STFTSpectrogram"}
    lacking = {
        name
        for name, value in vars(keras.layers).items()
        if isinstance(value, type) and not any(base in RULES for base in value.__mro__)
    }
    assert lacking <= bases | cells | opened | foreign | uncounted


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


@st.composite
def networks(draw):
    """A random network of what the profiler counts right: ungrouped convolutions, depthwise, matrix products."""
    shape = draw(st.integers(6, 14)), draw(st.integers(6, 14)), draw(st.integers(1, 3))
    x = y = keras.Input(shape)
    for _ in range(draw(st.integers(1, 5))):
        padding = draw(st.sampled_from(["same", "valid"])) if min(y.shape[1:3]) > 3 else "same"
        strides, kernel = draw(st.integers(1, 2)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        kind = draw(st.sampled_from(["conv", "depthwise", "separable", "residual", "pool", "excite"]))
        filters = draw(st.integers(1, 4))
        if kind == "conv":
            y = L.Conv2D(filters, kernel, strides=strides, padding=padding, activation="relu")(y)
        elif kind == "depthwise":
            y = L.DepthwiseConv2D(3, strides=strides, padding="same", depth_multiplier=draw(st.integers(1, 2)))(y)
        elif kind == "separable":
            y = L.SeparableConv2D(filters, 3, padding="same")(y)
        elif kind == "residual":
            y = L.Add()([y, L.Conv2D(y.shape[-1], kernel, padding="same")(y)])
        elif kind == "pool":
            y = L.AveragePooling2D(2, padding="same")(L.BatchNormalization()(y))
        else:
            gate = L.Dense(y.shape[-1], activation="sigmoid")(L.GlobalAveragePooling2D()(y))
            y = L.Multiply()([y, L.Reshape((1, 1, y.shape[-1]))(gate)])
    y = L.Dense(draw(st.integers(1, 5)))(L.Flatten()(y))
    return keras.Model(x, y), shape


@pytest.mark.oracle
@examples(12)
@given(networks(), st.integers(1, 3))
def test_random_networks_against_the_profiler(network, batch):
    model, shape = network
    report = flops.count(model, batch_size=batch, unsupported="raise")
    assert report.total_macs == profiled_macs(model, (batch, *shape))
    check_sums(report, model)
    assert report.total_macs == batch * flops.count(model).total_macs
    assert flops.count(model, shape).total_macs == flops.count(model).total_macs


# --- what cannot be counted is said -----------------------------------------------------------------------------------


class Opaque(keras.Layer):
    """Runs Python behind TensorFlow's back, so that nobody can look inside."""

    def call(self, x):
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(np.tanh, [x], "float32"), x.shape)


def opaque_model():
    x = keras.Input((6,))
    return keras.Model(x, L.Dense(3, name="dense")(Opaque(name="opaque")(x)), name="model")


def test_a_layer_without_a_rule_is_named_and_not_zero():
    with pytest.warns(UserWarning, match=r"'model': not counted.*lower bounds: opaque \(Opaque\)"):
        report = flops.count(opaque_model())
    assert [(one.path, one.type) for one in report.unsupported] == [("opaque", "Opaque")]
    row = next(row for row in report.rows if row.path == "opaque")
    assert row.macs is None and row.flops is None and row.elementwise_ops is None and row.way == ""
    frame = report.to_frame().set_index("path")
    assert frame.loc["opaque", "macs"] is pd.NA and frame.loc["opaque", "share"] is pd.NA
    assert report.total_macs == 18 and frame["macs"].sum() == 18
    assert "at least 18 MACs" in repr(report) and "not counted: opaque" in repr(report)
    assert "not counted: opaque" in report._repr_html_()


def test_what_to_do_about_it_is_the_callers_choice(recwarn):
    model = opaque_model()
    with pytest.raises(ValueError, match="opaque"):
        flops.count(model, unsupported="raise")
    assert flops.count(model, unsupported="ignore").unsupported
    ruled = flops.count(model, rules={Opaque: lambda layer, given, gives: flops.Cost(5, 6)}, unsupported="raise")
    assert (ruled.total_macs, ruled.total_elementwise_ops, ruled.unsupported) == (23, 9, ())
    assert not recwarn.list
    assert flops.count(model, unsupported="ignore").unsupported, "a rule must not outlive its call"


def test_rules_are_looked_up_through_the_class_hierarchy_and_the_nearest_wins():
    class Wide(L.Dense):
        pass

    model = build((6,), Wide(4, name="wide"), L.Dense(2, name="dense"))
    assert flops.count(model).total_macs == 24 + 8
    by_base = flops.count(model, rules={L.Dense: lambda *_: 100})
    assert by_base.total_macs == 200
    both = flops.count(model, rules={L.Dense: lambda *_: 100, Wide: lambda *_: 7})
    assert both.total_macs == 107
    assert flops.count(model, rules={keras.Layer: lambda *_: 1}).total_macs == 24 + 8  # only what has no rule else
    x = keras.Input((6,))
    assert flops.count(keras.Model(x, keras.ops.relu(x)), rules={"Relu": lambda *_: 9}).total_macs == 9


def test_an_activation_that_is_not_of_keras_is_looked_into():
    import tensorflow as tf

    gate = lambda x: x * keras.ops.sigmoid(x)  # noqa: E731
    for function, operations in ((tf.nn.relu6, 4 + 2 * 4), (gate, 4 + 5 * 4), (L.LeakyReLU(), 4 + 2 * 4)):
        report = flops.count(build((6,), L.Dense(4, activation=function)), unsupported="raise")
        assert (report.total_macs, report.total_elementwise_ops) == (24, operations)


def test_an_unknown_input_size_is_asked_for():
    model = keras.applications.MobileNet(weights=None, include_top=False, alpha=0.25)
    with pytest.raises(ValueError, match=r"unknown dimensions.*pass input_shape, for example \(224, 224, 3\)"):
        flops.count(model)
    assert flops.count(model, (96, 64, 3)).total_macs > 0


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"convention": "macc"}, ValueError, "convention must be one of 'exact', 'input_over_stride', got 'macc'"),
        ({"unsupported": "explode"}, ValueError, '"warn", "raise" or "ignore"'),
        ({"batch_size": 0}, ValueError, "must be a positive integer, got"),
        ({"batch_size": 1.5}, ValueError, "must be a positive integer, got"),
        ({"rules": {L.Dense: 5}}, TypeError, "rules must be"),
        ({"rules": {L.Dense: lambda *_: -1}}, TypeError, "layer 'dense'.*must return a Cost or an int"),
        ({"rules": {L.Dense: lambda *_: None}}, TypeError, "must return a Cost or an int"),
        ({"rules": {L.Dense: lambda *_: 1 / 0}}, ValueError, "the rule for layer 'dense'.*failed"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, words):
    with pytest.raises(error, match=words):
        flops.count(build((6,), L.Dense(4, name="dense")), **arguments)


# --- the report -------------------------------------------------------------------------------------------------------


def test_rows_describe_their_layers(mobilenet):
    row = next(row for row in mobilenet.rows if row.path == "Conv1")
    assert (row.kernel, row.strides, row.filters, row.type) == ((3, 3), (2, 2), 32, "Conv2D")
    assert row.input_shapes == ((1, 224, 224, 3),) and row.output_shapes == ((1, 112, 112, 32),)
    assert (row.params, row.weight_bytes) == (864, 864 * 4)
    assert row.activation_bytes == 112 * 112 * 32 * 4
    frame = mobilenet.to_frame()
    assert frame.loc[row.index, "input_shape"] == (1, 224, 224, 3) and frame.index.name == "call"
    assert str(frame["macs"].dtype) == "Int64"
    assert flops.count(build((10, 8), L.LSTM(16))).rows[-1].filters == 16
    row = flops.count(build((5, 2, 9, 7), L.ConvLSTM2D(4, 3, strides=2, data_format="channels_first"))).rows[-1]
    assert (row.kernel, row.strides, row.filters, row.channels_first) == ((3, 3), (2, 2), 4, True)


def test_bytes_follow_the_dtype():
    half = build((8, 8, 3), L.Conv2D(4, 3, dtype="float16"))
    report = flops.count(half)
    assert report.total_weight_bytes == 2 * report.total_params
    assert report.rows[-1].activation_bytes == 2 * 6 * 6 * 4
    mixed = flops.count(build((8, 8, 3), L.Conv2D(4, 3, dtype="mixed_bfloat16")))
    assert mixed.total_weight_bytes == 4 * mixed.total_params and mixed.rows[-1].activation_bytes == 2 * 6 * 6 * 4
    assert [flops.itemsize(name) for name in ("bool", "uint8", "int64", "bfloat16", "float8_e4m3fn")] == [1, 1, 8, 2, 1]


def test_by_block_and_by_type(mobilenet):
    blocks = mobilenet.by_block()
    assert list(blocks.index)[:2] == ["input", "Conv1"] and blocks.loc["block_1", "calls"] == 9
    expected = sum(row.macs for row in mobilenet.rows if row.path.startswith("block_16_"))
    assert blocks.loc["block_16", "macs"] == expected
    types = mobilenet.by_type()
    assert types.index[0] == "Conv2D" and types.loc["DepthwiseConv2D", "macs"] == 20_716_416
    check_sums(mobilenet)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        mobilenet.by_block(0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        mobilenet.top(0)


def test_text_of_the_report(mobilenet):
    text = repr(mobilenet)
    assert "299,507,072 MACs" in text and "599,014,144 FLOPs" in text and "batch 1" in text and "'exact'" in text
    html = mobilenet._repr_html_()
    assert "<table" in html and "Conv_1" in html and "299,507,072" in html


def test_a_model_that_computes_nothing_has_a_report():
    report = flops.count(build((4, 4, 3), L.Flatten()))
    assert report.total_macs == 0 and len(report.top(5)) == 0
    assert "0 MACs" in report._repr_html_()
    check_sums(report)


def test_resolutions_sum_up_what_stands_between_two_halvings():
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(image)
    gate = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = keras.layers.Conv2D(6, 2, strides=2)(keras.layers.Multiply()([x, gate]))
    model = keras.Model(image, keras.layers.Dense(5)(keras.layers.Flatten()(x)))
    report = flops.count(model)
    found = report.by_resolution()
    assert found["side"].tolist() == [8, 4] and found["channels"].tolist() == [4, 6]
    assert found["layers"].tolist() == [2, 1]  # the gate on a grid of one cell belongs to the first
    assert found["macs"].tolist() == [64 * 4 * 27 + 4 * 4, 16 * 6 * 16]
    assert report.total_macs - found["macs"].sum() == 16 * 6 * 5


def test_a_network_without_a_grid_has_no_resolutions():
    vector = keras.Input((8,))
    assert flops.count(keras.Model(vector, keras.layers.Dense(2)(vector))).by_resolution().empty
