"""FLOPs and MACs: published values, every kind of layer and operation, rules, and what is refused."""

import keras
import numpy as np
import pandas as pd
import pytest

from utils import flops
from utils.flops.formulas import ACTIVATION_OPS, einsum_macs
from utils.flops.layers import RULES

L, ops = keras.layers, keras.ops
ADAPTIVE = hasattr(L, "AdaptiveMaxPooling2D")  # newer than the lowest Keras that pyproject.toml names


def build(shape, *layers):
    return keras.Sequential([keras.Input(shape), *layers])


def joined(layer, *shapes):
    """The functional model of a layer that takes its inputs one by one."""
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, layer(*inputs))


def check_sums(report, model=None):
    """Sums of rows equal the totals, in every table."""
    for table in (report.to_frame(), report.by_type(), report.by_block(), report.by_block(2)):
        for name in ("macs", "flops", "params", "elementwise_ops", "weight_bytes", "activation_bytes"):
            assert table[name].sum() == getattr(report, f"total_{name}")
        if report.total_macs:
            assert table["share"].sum() == pytest.approx(1)
            assert table["cumulative_share"].iloc[-1] == pytest.approx(1)
    assert report.total_flops == 2 * report.total_macs
    if model is not None:
        assert report.total_params == model.count_params()


# --- published values -------------------------------------------------------------------------------------------------

# Exact MACs and parameters, measured with the field's reference tools on Keras 2.12 (fvcore agrees).
MODELS = {
    "MobileNet": (568_740_352, 4_253_864),
    "MobileNetV2": (300_774_272, 3_538_984),
    "VGG16": (15_470_264_320, 138_357_544),
    "ResNet50": (3_857_973_248, 25_636_712),
    "ResNet50V2": (3_482_255_360, 25_613_800),
    "DenseNet121": (2_834_161_664, 8_062_504),
    "InceptionV3": (5_713_216_096, 23_851_784),
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


@pytest.mark.parametrize("name", [*MODELS, *PAPERS])
def test_models_of_the_reference_table_and_one_of_every_other_family(name):
    model = getattr(keras.applications, name)(weights=None)
    size = (224, 224, 3) if name == "MobileNetV3Small" else None  # it is built without one
    report = flops.count(model, size, unsupported="raise")
    check_sums(report, model)
    if name in MODELS:
        assert (report.total_macs, report.total_params) == MODELS[name]
    else:
        millions, tolerance = PAPERS[name]
        assert report.total_macs / 1e6 == pytest.approx(millions, rel=tolerance)


def test_study_a_baseline_published_and_exact():
    convs = (128, "conv2d"), (128, "conv2d_1"), (64, "conv2d_2")
    blocks = [(L.Conv2D(n, 3, name=name), L.BatchNormalization(), L.MaxPooling2D()) for n, name in convs]
    head = L.Flatten(), L.Dense(64, name="dense"), L.Dense(17, name="dense_1")
    model = build((224, 224, 3), *(layer for block in blocks for layer in block), *head)
    exact = flops.count(model)
    assert (exact.total_macs, exact.total_flops, exact.total_params) == (2_124_380_736, 4_248_761_472, 2_996_305)
    study = flops.count(model, convention="input_over_stride")
    rows = study.to_frame().set_index("path")["flops"]
    assert rows[rows > 0].to_dict() == {
        "conv2d": 346_816_512,
        "conv2d_1": 3_633_610_752,
        "conv2d_2": 429_981_696,
        "dense": 5_537_792,
        "dense_1": 2_176,
    }
    assert study.total_flops == 4_415_948_928
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


# --- one layer each ---------------------------------------------------------------------------------------------------

ZOO = {  # published values of the layer zoo: shape, layer, params, exact MACs
    "Conv1D": ((64, 8), lambda: L.Conv1D(16, 5, strides=2), 656, 30 * 5 * 8 * 16),
    "Conv2D same": ((32, 32, 8), lambda: L.Conv2D(16, 3, padding="same"), 1168, 1_179_648),
    "Conv2D same s2": ((33, 33, 8), lambda: L.Conv2D(16, 3, padding="same", strides=2), 1168, 332_928),
    "Conv2D 3x5": ((32, 32, 8), lambda: L.Conv2D(16, (3, 5), strides=(2, 1), use_bias=False), 1920, 806_400),
    "Conv2D dilated": ((32, 32, 8), lambda: L.Conv2D(16, 3, padding="same", dilation_rate=2), 1168, 1_179_648),
    "Conv3D": ((8, 16, 16, 2), lambda: L.Conv3D(4, 3), 220, 254_016),
    "Conv2DTranspose": ((16, 16, 8), lambda: L.Conv2DTranspose(16, 2, strides=2), 528, 131_072),
    "DepthwiseConv2D": ((33, 33, 8), lambda: L.DepthwiseConv2D(3, strides=2), 80, 18_432),
    "SeparableConv2D": ((32, 32, 8), lambda: L.SeparableConv2D(16, 3, padding="same"), 216, 204_800),
    "Dense": ((32,), lambda: L.Dense(16), 528, 512),
    "LSTM": ((10, 8), lambda: L.LSTM(16, return_sequences=True), 1600, 15_360),
    "SimpleRNN": ((10, 8), lambda: L.SimpleRNN(16), 400, 3_840),
    "Bidirectional": ((10, 8), lambda: L.Bidirectional(L.LSTM(16)), 3200, 30_720),
    "EinsumDense": ((10, 32), lambda: L.EinsumDense("abc,cd->abd", (None, 16), bias_axes="d"), 528, 5_120),
    "LayerNormalization": ((10, 32), L.LayerNormalization, 64, 0),
    "Embedding": ((10,), lambda: L.Embedding(100, 16), 1600, 0),
    "MaxPooling2D": ((32, 32, 8), lambda: L.MaxPooling2D(3, strides=2, padding="same"), 0, 0),
    "Softmax": ((100,), L.Softmax, 0, 0),
    # and by hand: cells in a stack, convolutional cells
    "RNN": ((10, 3), lambda: L.RNN([L.LSTMCell(4), L.GRUCell(5), L.SimpleRNNCell(6)]), 128 + 165 + 72, 3_130),
    "ConvLSTM2D": ((5, 8, 6, 2), lambda: L.ConvLSTM2D(4, 3, padding="same"), 880, 5 * 8 * 6 * 9 * (2 + 4) * 16),
    "ConvLSTM2D first": (
        (5, 2, 9, 7), lambda: L.ConvLSTM2D(4, 3, strides=2, data_format="channels_first"), 880, 5 * 4 * 3 * 9 * 6 * 16),
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_layer_zoo(name):
    shape, layer, params, macs = ZOO[name]
    report = flops.count(build(shape, layer()), unsupported="raise")
    assert (report.total_params, report.total_macs) == (params, macs)
    check_sums(report)


@pytest.mark.parametrize(
    "layer, shapes, macs",
    [
        # query (4, 6), value (9, 5), key (9, 6): scores 4*9*6, weighted sum 4*9*5
        (lambda *x: L.Attention()([*x]), [(4, 6), (9, 5), (9, 6)], 4 * 9 * (6 + 5)),
        (lambda *x: L.AdditiveAttention()([*x]), [(4, 6), (9, 5), (9, 6)], 4 * 9 * (6 + 5)),
        (lambda *x: L.AdditiveAttention(use_scale=False)([*x]), [(4, 6), (9, 5), (9, 6)], 4 * 9 * 5),
        (lambda *x: L.AdditiveAttention(use_scale=False)([*x]), [(2, 4, 6), (2, 9, 5), (2, 9, 6)], 2 * 4 * 9 * 5),
        (lambda *x: L.Attention(score_mode="concat")([*x]), [(4, 6), (9, 5), (9, 6)], 4 * 9 * 5),
        (lambda *x: L.Attention(score_mode="concat")([*x]), [(2, 4, 6), (2, 9, 5), (2, 9, 6)], 2 * 4 * 9 * 5),
        (lambda *x: L.Dot(axes=(2, 2))([*x]), [(4, 6), (9, 6)], 4 * 9 * 6),
        (lambda *x: L.Dot(axes=1)([*x]), [(6,), (6,)], 6),
        # projections of the query, of keys and values with fewer heads, scores and sum, output
        (lambda x: L.GroupQueryAttention(4, 6, 2)(x, x), [(8, 16)], 8 * 16 * 24 + 2 * 8 * 16 * 8 + 12 * 256 + 8 * 384),
        # four projections of 5 rows, each row with 7 x 7 pairs
        (lambda x: L.MultiHeadAttention(2, 3, attention_axes=(2,))(x, x), [(5, 7, 6)], 4 * 1260 + 2 * 5 * 2 * 49 * 3),
    ],
)
def test_attention_and_products_of_inputs(layer, shapes, macs):
    assert flops.count(joined(layer, *shapes), batch_size=3, unsupported="raise").total_macs == 3 * macs


def test_shared_layers_several_inputs_and_outputs():
    dense = L.Dense(4)
    report = flops.count(joined(lambda a, b: L.Add()([dense(a), dense(b)]), (8,), (8,)))
    assert (report.total_macs, report.total_params) == (2 * 8 * 4, 36)
    assert sorted(row.params for row in report.rows if row.type == "Dense") == [0, 36]

    def heads(photo, meta):
        x = L.Concatenate()([L.Flatten()(L.Conv2D(4, 3, strides=2)(photo)), L.Dense(6)(meta)])
        return [L.Dense(3)(x), L.Dense(2)(x)]

    report = flops.count(joined(heads, (16, 16, 3), (10,)))
    assert (report.total_macs, report.total_params) == (6_362, 1_193)


def test_time_distributed_counts_every_step():
    conv = build((8, 8, 3), L.Conv2D(4, 3))
    whole = flops.count(build((5, 8, 8, 3), L.TimeDistributed(conv)), batch_size=2)
    assert whole.total_macs == 10 * flops.count(conv).total_macs
    assert whole.total_params == flops.count(conv).total_params


def test_the_batch_of_the_call_that_built_a_model_is_not_counted_and_that_of_an_input_is():
    one = 7 * 7 * 3 * 9  # positions, filters, pixels of a window
    called, built = keras.Sequential([L.Conv2D(3, 3)]), keras.Sequential([L.Conv2D(3, 3)])
    called.predict(np.zeros((10, 9, 9, 1)), verbose=0)
    built.build((10, 9, 9, 1))
    for model in (called, built):
        assert flops.count(model).total_macs == one
        assert flops.count(model, batch_size=2).total_macs == 2 * one
    for head in (
        keras.Input((9, 9, 1), batch_size=4),
        L.InputLayer(batch_shape=(4, 9, 9, 1)),
        L.InputLayer.from_config(L.InputLayer(batch_shape=(4, 9, 9, 1)).get_config()),
    ):
        assert flops.count(keras.Sequential([head, L.Conv2D(3, 3)])).total_macs == 4 * one


class Branches(keras.Layer):
    """Another product in training than at inference."""

    def __init__(self):
        super().__init__()
        self.inference, self.training = L.Dense(8), L.Dense(100)

    def build(self, shape):
        self.inference.build(shape)
        self.training.build(shape)

    def call(self, x, training=False):
        return (self.training if training else self.inference)(x)


def test_a_layer_that_was_recorded_in_training_counts_as_it_predicts():
    model = joined(lambda x: L.Identity()(Branches()(x, training=True)), (8,))
    assert model.predict(np.zeros((1, 8)), verbose=0).shape == (1, 8)
    assert flops.count(model).total_macs == 8 * 8

    class Forced(keras.Layer):  # as Monte Carlo dropout is: here Keras predicts in training mode
        def __init__(self):
            super().__init__()
            self.inner = Branches()

        def call(self, x):
            return self.inner(x, training=True)

    model = joined(Forced(), (8,))
    assert model.predict(np.zeros((1, 8)), verbose=0).shape == (1, 100)
    assert flops.count(model).total_macs == 8 * 100


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
        (lambda x: ops.matmul(x, np.ones((6, 5))), 4 * 6 * 5),
        (lambda x: x @ ops.transpose(x, (0, 2, 1)), 4 * 4 * 6),
        (lambda x: ops.einsum("...ij,...kj->...ik", x, x), 4 * 4 * 6),
        (lambda x: ops.tensordot(x, np.ones((6, 5, 2)), axes=1), 4 * 6 * 10),
        (lambda x: ops.conv(x, np.ones((3, 6, 5))), 2 * 3 * 6 * 5),
        (lambda x: ops.depthwise_conv(x, np.ones((3, 6, 2))), 2 * 3 * 12),
        (lambda x: ops.separable_conv(x, np.ones((3, 6, 2)), np.ones((1, 12, 5))), 2 * (36 + 60)),
        (lambda x: ops.conv_transpose(x, np.ones((2, 5, 6)), strides=2), 4 * 2 * 5 * 6),
        (lambda x: ops.einsum("b...i,bi->b...", x, x[:, 0]), 4 * 6),
        (lambda x: ops.sum(x * 2.0 + 1.0, axis=1), 0),
    ],
)
def test_operations(function, macs):
    assert flops.count(joined(function, (4, 6)), batch_size=3, unsupported="raise").total_macs == 3 * macs


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
        ([L.Activation(lambda x: x * ops.sigmoid(1.702 * x))], (1 + 4 + 1) * 192),
        *([([L.AdaptiveMaxPooling2D(3)], 10 * 10 * 3)] if ADAPTIVE else []),  # 8 into 3 bins: windows of 3, 4 and 3
    ],
)
def test_elementwise(layers, operations):
    report = flops.count(build((8, 8, 3), *layers), unsupported="raise")
    assert report.total_elementwise_ops == operations


def test_every_activation_and_layer_of_keras_has_a_rule_or_is_known_to_have_none():
    """A new Keras brings new ones: decide for each of them."""
    names = {name for name in dir(keras.activations) if callable(getattr(keras.activations, name))}
    assert names - {"get", "serialize", "deserialize", "swish", "hard_swish", "sparsemax"} <= set(ACTIVATION_OPS)
    assert flops.count(build((6,), L.Dense(4, activation="swish"))).total_elementwise_ops == 4 + 5 * 4
    none = """Layer Wrapper InputSpec LSTMCell GRUCell SimpleRNNCell StackedRNNCells Lambda Pipeline TFSMLayer
        TorchModuleWrapper JaxLayer FlaxLayer ContrastLimitedAdaptiveHistogramEqualization MelSpectrogram
        STFTSpectrogram"""
    layers = {name: value for name, value in vars(keras.layers).items() if isinstance(value, type)}
    lacking = {name for name, value in layers.items() if not any(base in RULES for base in value.__mro__)}
    assert lacking <= set(none.split())


# --- what cannot be counted is said -----------------------------------------------------------------------------------


class Opaque(keras.Layer):
    """Runs Python behind TensorFlow's back, so that nobody can look inside."""

    def call(self, x):
        import tensorflow as tf

        return tf.ensure_shape(tf.numpy_function(np.tanh, [x], "float32"), x.shape)


def test_a_layer_without_a_rule_is_named_and_not_zero(recwarn):
    x = keras.Input((6,))
    model = keras.Model(x, L.Dense(3, name="dense")(Opaque(name="opaque")(x)), name="model")
    with pytest.raises(ValueError, match="opaque"):
        flops.count(model, unsupported="raise")
    ruled = flops.count(model, rules={Opaque: lambda layer, given, gives: flops.Cost(5, 6)}, unsupported="raise")
    assert (ruled.total_macs, ruled.total_elementwise_ops, ruled.unsupported) == (23, 9, ())
    assert flops.count(model, unsupported="ignore").unsupported, "a rule must not outlive its call"
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"'model': not counted.*lower bounds: opaque \(Opaque\)"):
        report = flops.count(model)
    assert [(one.path, one.type) for one in report.unsupported] == [("opaque", "Opaque")]
    row = next(row for row in report.rows if row.path == "opaque")
    assert row.macs is None and row.flops is None and row.elementwise_ops is None and row.way == ""
    frame = report.to_frame().set_index("path")
    assert frame.loc["opaque", "macs"] is pd.NA and frame.loc["opaque", "share"] is pd.NA
    assert report.total_macs == 18 and frame["macs"].sum() == 18
    assert "at least 18 MACs" in repr(report) and "not counted: opaque" in repr(report)
    assert "not counted: opaque" in report._repr_html_()


def test_rules_are_looked_up_through_the_class_hierarchy_and_the_nearest_wins():
    class Wide(L.Dense):
        pass

    model = build((6,), Wide(4, name="wide"), L.Dense(2, name="dense"))
    hundred, seven = (lambda *_: 100), (lambda *_: 7)
    for rules, macs in (
        ({}, 24 + 8),
        ({L.Dense: hundred}, 200),
        ({L.Dense: hundred, Wide: seven}, 107),
        ({keras.Layer: seven}, 24 + 8),  # only what has no rule else
    ):
        assert flops.count(model, rules=rules).total_macs == macs
    assert flops.count(joined(ops.relu, (6,)), rules={"Relu": seven}).total_macs == 7


def test_an_activation_that_is_not_of_keras_is_looked_into():
    import tensorflow as tf

    gate = lambda x: x * ops.sigmoid(x)  # noqa: E731
    for function, operations in ((tf.nn.relu6, 4 + 2 * 4), (gate, 4 + 5 * 4), (L.LeakyReLU(), 4 + 2 * 4)):
        report = flops.count(build((6,), L.Dense(4, activation=function)), unsupported="raise")
        assert (report.total_macs, report.total_elementwise_ops) == (24, operations)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"convention": "macc"}, ValueError, "convention must be one of 'exact', 'input_over_stride', got 'macc'"),
        ({"unsupported": "explode"}, ValueError, '"warn", "raise" or "ignore"'),
        ({"batch_size": 0}, ValueError, "must be a positive integer, got"),
        ({"batch_size": 1.5}, ValueError, "must be a positive integer, got"),
        ({"convention": ["exact"]}, ValueError, r"convention must be one of .*, got \['exact'\]"),
        ({"input_shape": (6.0,)}, ValueError, r"must be a tuple of positive integers .*, got \(6.0,\)"),
        ({"rules": {L.Dense: 5}}, TypeError, "rules must be"),
        ({"rules": [L.Dense]}, TypeError, r"rules must be .*, got \[<class 'keras.*Dense'>\]"),
        ({"rules": {L.Dense: lambda *_: -1}}, TypeError, "layer 'dense'.*must return a Cost or an int"),
        ({"rules": {L.Dense: lambda *_: None}}, TypeError, "must return a Cost or an int"),
        ({"rules": {L.Dense: lambda *_: 1 / 0}}, ValueError, "the rule for layer 'dense'.*failed"),
    ],
)
def test_arguments_that_make_no_sense(arguments, error, words):
    with pytest.raises(error, match=words):
        flops.count(build((6,), L.Dense(4, name="dense")), **arguments)
