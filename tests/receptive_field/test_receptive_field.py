"""utils.receptive_field against published values, an independent gradient oracle, and cases worked out by hand."""

import functools
import pathlib
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st
from keras import layers
from support_oracle import positive_linear, support

from utils.receptive_field import receptive_field, rules, table

REFERENCE = pd.read_csv(
    pathlib.Path(__file__).parents[1] / "data" / "receptive_field_reference.csv", keep_default_na=False
)


@functools.cache
def application(name, side):
    return getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(side, side, 3))


def conv(kernel, stride=1, padding="valid", dilation=1, name=None):
    return layers.Conv2D(2, kernel, strides=stride, padding=padding, dilation_rate=dilation, use_bias=False, name=name)


def sequential(*parts, size=(40, 56)):
    return keras.Sequential([keras.Input((*size, 3)), *parts])


# Published values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, side", list(dict.fromkeys(zip(REFERENCE["model"], REFERENCE["input_size"], strict=True)))
)
def test_the_reference_librarys_values(model, side):
    rows = REFERENCE[(REFERENCE["model"] == model) & (REFERENCE["input_size"] == side)]
    built = application(model, None if side == "None" else int(side))
    for row in rows.itertuples():
        found = receptive_field(built, row.layer)
        padding = None if row.padding == "" else int(row.padding)
        assert (found.size, found.stride, found.padding) == ((row.size,) * 2, (row.stride,) * 2, (padding,) * 2), row
        assert found.aligned is (None if padding is None else True)
        # EfficientNet's squeeze-excite sees all; the reference tool leaves that branch out.
        assert found.whole_image is (model == "EfficientNetB0" and row.layer != "stem_conv")
    assert len(rows) >= 3


def test_study_b_is_what_a_model_without_a_named_layer_gives():
    found = receptive_field(application("MobileNetV2", 224))
    assert (found.size, found.stride, found.padding) == ((491, 491), (32, 32), (214, 214))


def pad_before(x):
    return layers.ZeroPadding2D(((1, 0), (1, 0)))(x)


def two_branches(x, pool=False, same=False, drop=False):
    """The reference's net1 (and 2, 4, 6): a 1x1 stride 4 branch against 3x3 stride 2 and 1x1 stride 2."""
    left = conv(1, 4)(x)
    if pool:
        right = layers.MaxPooling2D(1, 2)(layers.MaxPooling2D(3, 2)(pad_before(x)))
    else:
        right = conv(3, 2, "same")(x) if same else conv(3, 2)(pad_before(x))
        right = conv(1, 2)(right)
    if drop:
        right = layers.Dropout(0.5)(right)
    return layers.ReLU(name="joined" if not same else None)(layers.Add(name="add")([left, right]))


def intermediate_add(x, same=False):
    joined = two_branches(x, same=same)
    before = joined if same else pad_before(joined)
    return layers.ReLU()(layers.Add(name="add2")([conv(1, 2)(joined), conv(3, 2, "same" if same else "valid")(before)]))


def network(build, size=(None, None)):
    image = keras.Input((*size, 1))
    return keras.Model(image, build(image))


@pytest.mark.parametrize(
    "case, build, side, size, stride, padding",
    [
        ("net1", two_branches, None, (3, 3), (4, 4), (1, 1)),
        ("net2", functools.partial(two_branches, pool=True), None, (3, 3), (4, 4), (1, 1)),
        ("net4 undefined", functools.partial(two_branches, same=True), None, (3, 3), (4, 4), (None, None)),
        ("net4 9x9", functools.partial(two_branches, same=True), 9, (3, 3), (4, 4), (1, 1)),
        ("net5", lambda x: layers.ReLU()(conv((3, 1), 2)(conv((3, 5), 2)(x))), None, (7, 5), (4, 4), (0, 0)),
        ("net6", functools.partial(two_branches, drop=True), None, (3, 3), (4, 4), (1, 1)),
        ("net7", two_branches, 8, (3, 3), (4, 4), (1, 1)),
        ("net8", intermediate_add, None, (11, 11), (8, 8), (5, 5)),
        ("net9", functools.partial(intermediate_add, same=True), 17, (11, 11), (8, 8), (5, 5)),
    ],
)
def test_the_reference_librarys_small_networks(case, build, side, size, stride, padding):
    found = receptive_field(network(build, (side, side)))
    assert (found.size, found.stride, found.padding) == (size, stride, padding)
    assert found.aligned is (None if padding[0] is None else True)


def two_strides(x):
    left = conv(5, 2)(layers.ZeroPadding2D(((2, 1), (2, 1)))(x))
    return layers.ReLU()(layers.Add(name="add")([left, conv(3)(conv(3)(x))]))


@pytest.mark.parametrize(
    "build, size, what, values",
    [
        (two_strides, (None, None), "stride", (2, 1)),
        (functools.partial(two_branches, same=True), (8, 8), "center", (0, 1)),
    ],
)
def test_branches_that_disagree_are_named_with_both_values(build, size, what, values):
    model = network(build, size)
    found = receptive_field(model)
    assert found.aligned is False and len(found.conflicts) == 2
    assert found.conflicts == tuple(("add", axis, what, values) for axis in (0, 1))
    with pytest.raises(ValueError, match=f"'add' disagree along axis 0: {what} {values[0]} against {values[1]} pixels"):
        receptive_field(model, require_aligned=True)
    if what == "center":  # the union still says exactly what is seen: pixel 0 by one branch, 0..2 by the other
        assert (found.region(0, 0).start, found.region(0, 0).stop) == ((0, 0), (3, 3))
    assert "aligned=False" in repr(found) and "disagree" in repr(found)
    assert "not aligned" in found._repr_html_() and "<table" in found._repr_html_()
    assert list(found.to_frame().index) == ["y", "x"]


# The gradient oracle -----------------------------------------------------------------------------------------------


@pytest.fixture
def in_float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def test_gradients_of_mobilenet_v2_reach_491_pixels(in_float64):
    model = keras.applications.MobileNetV2(weights=None, include_top=False, alpha=0.35, input_shape=(544, 736, 3))
    model = positive_linear(keras.Model(model.inputs, model.get_layer("Conv_1").output))
    found = receptive_field(model)
    region = found.region(8, 11)
    assert region.size == (491, 491) and region.fraction_inside == 1
    assert (region.start, region.stop) == support(model, (8, 11))


KERNELS, STRIDES, DILATIONS, SIDES = (
    st.tuples(st.integers(least, most), st.integers(least, most)) for least, most in ((1, 4), (1, 2), (1, 3), (0, 2))
)
PADDINGS = st.sampled_from(["same", "valid"])


def branches(ways, strides, concatenated):
    """Ways of (kernel, dilation) through strides of their own product, joined."""

    def build(x):
        ends = [conv((1, 1), strides, "same")(x)]
        for kernel, dilation in ways:
            ends.append(conv(kernel, strides, "same")(conv((2, 3), 1, "same", dilation)(x)))
        return (layers.Concatenate() if concatenated else layers.Add())(ends)

    return build


WAYS = st.lists(st.tuples(KERNELS, DILATIONS), min_size=1, max_size=3)
BLOCKS = st.one_of(
    st.tuples(st.just(conv), KERNELS, STRIDES, PADDINGS),
    st.tuples(st.just(conv), KERNELS, st.just(1), PADDINGS, DILATIONS),
    st.tuples(st.just(layers.AveragePooling2D), KERNELS, STRIDES, PADDINGS),
    st.tuples(st.sampled_from([layers.ZeroPadding2D, layers.Cropping2D]), st.tuples(SIDES, SIDES)),
    st.tuples(st.just(branches), WAYS, STRIDES, st.booleans()),
)


@pytest.mark.oracle
@examples(40)
@given(
    blocks=st.lists(BLOCKS, min_size=1, max_size=4),
    height=st.integers(90, 110),
    width=st.integers(111, 131),
    shift=st.tuples(st.integers(-1, 1), st.integers(-1, 1)),
)
def test_gradients_of_random_branching_networks(blocks, height, width, shift):
    keras.config.set_floatx("float64")
    try:
        image = keras.Input((height, width, 2))
        x = image
        for make, *settings in blocks:
            x = make(*settings)(x)
        model = positive_linear(keras.Model(image, x))
        found = receptive_field(model)
        feature = tuple(count // 2 + step for count, step in zip(found.grid, shift, strict=True))
        seen = support(model, feature)
        region = found.region(*feature)
        assert (region.start, region.stop) == seen
    finally:
        keras.config.set_floatx("float32")


# Transposed convolutions: more of them in test_index_maps -------------------------------------------------------------


def test_a_dilated_transposed_convolution_by_hand():
    # TensorFlow cannot run it on a processor, but o = i + 2 j - 2 is easy: feature 5 reads pixels 3, 5, 7.
    found = receptive_field(sequential(layers.Conv2DTranspose(2, 3, dilation_rate=2, padding="same")))
    assert found.size == (5, 5) and (found.region(5, 5).start, found.region(5, 5).stop) == ((3, 3), (8, 8))


def test_an_encoder_and_decoder_comes_back_to_the_stride_of_the_input():
    image = keras.Input((32, 48, 3))
    down = conv(3, 2, "same")(image)
    up = layers.Conv2DTranspose(2, 2, strides=2)(down)
    found = receptive_field(keras.Model(image, layers.Concatenate()([image, up])))
    assert found.stride == (1, 1) and found.grid == (32, 48)
    assert receptive_field(keras.Model(image, up)).size == (3, 3)  # 4 for both phases together, 3 for each


# The whole image ---------------------------------------------------------------------------------------------------


def squeeze_excite(x):
    weights = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Conv2D(2, 1, activation="sigmoid")(weights)])


WHOLE = {
    "squeeze-excite": lambda x: squeeze_excite(conv(3, 2)(x)),
    "global pooling": lambda x: layers.GlobalMaxPooling2D()(conv(3, 2)(x)),
    "flatten and dense": lambda x: layers.Dense(4)(layers.Flatten()(conv(3, 2)(x))),
    "attention": lambda x: attended(conv(3, 2)(x)),
    "group normalization": lambda x: layers.GroupNormalization(1)(conv(3, 2)(x)),
    "instance normalization": lambda x: standardized(conv(3, 2)(x)),
    "mean over rows": lambda x: keras.ops.mean(conv(3, 2)(x), axis=1),
    "mixing rows": lambda x: layers.Dense(9)(layers.Permute((2, 3, 1))(conv(3, 2)(x))),
    "recurrent over rows": lambda x: layers.TimeDistributed(layers.LSTM(3))(conv(3, 2)(x)),
    "recurrent over rows of columns": lambda x: layers.LSTM(3, return_sequences=True)(rows(conv(3, 2)(x))),
    "attention over rows of columns": lambda x: attended_rows(layers.MultiHeadAttention(1, 2), conv(3, 2)(x)),
    "attention without weights": lambda x: layers.Attention()([rows(conv(3, 2)(x))] * 2),
    "softmax over positions": lambda x: soft_mask(conv(3, 2)(x)),
    "activation over the image": lambda x: layers.Conv2D(2, 3, 2, activation=without_mean)(x),
    "activation of rows": lambda x: layers.TimeDistributed(layers.Activation(lambda row: row[:, ::-1]))(conv(3, 2)(x)),
    "activation that is a layer": lambda x: layers.Conv2D(2, 3, 2, activation=layers.Softmax(axis=1))(x),
}


def rows(x):
    return layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)


def attended_rows(attention, x):
    return attention(rows(x), rows(x))


def soft_mask(x):
    weights = layers.Activation("softmax")(layers.Flatten()(conv(1)(x)[..., :1]))
    return layers.Multiply()([x, layers.Reshape((*x.shape[1:3], 1))(weights)])


def standardized(x):
    mean, variance = keras.ops.moments(x, axes=[1, 2], keepdims=True)
    return (x - mean) / keras.ops.sqrt(variance + 1e-5)


def without_mean(x):
    return x - keras.ops.mean(x, axis=(1, 2), keepdims=True)


def attended(x):
    tokens = layers.Reshape((-1, 2))(x) if None in x.shape[1:] else layers.Reshape((x.shape[1] * x.shape[2], 2))(x)
    tokens = layers.MultiHeadAttention(1, 2)(tokens, tokens)
    return layers.Reshape(x.shape[1:])(tokens)


LOCAL = {
    "dense on channels": lambda x: layers.Dense(4)(conv(3, 2)(x)),
    "layer normalization": lambda x: layers.LayerNormalization()(conv(3, 2)(x)),
    "softmax over channels": lambda x: layers.Softmax()(conv(3, 2)(x)),
    "flatten alone": lambda x: layers.Flatten()(conv(3, 2)(x)),
    "there and back": lambda x: conv(1)(layers.Reshape((17, 25, 2))(layers.Reshape((17 * 25, 2))(conv(3, 2)(x)))),
    "einsum over channels": lambda x: layers.EinsumDense("bhwc,cd->bhwd", (None, None, 4))(conv(3, 2)(x)),
    "transposed twice": lambda x: conv(1)(layers.Permute((2, 1, 3))(layers.Permute((2, 1, 3))(conv(3, 2)(x)))),
    "time distributed": lambda x: layers.TimeDistributed(layers.Conv1D(2, 1))(conv(3, 2)(x)),
    "activation of TensorFlow": lambda x: layers.Conv2D(2, 3, 2, activation=lambda y: y * tf.nn.sigmoid(y))(x),
    "activation of these channels": lambda x: layers.Conv2D(7, 3, 2, activation=lambda y: y * np.ones(7, "float32"))(x),
    "embedded colours": lambda x: conv(3, 2)(layers.Reshape((36, 52, 6))(layers.Embedding(256, 2)(x))),
    "softmax of classes": lambda x: layers.Dense(4, activation="softmax")(conv(3, 2)(x)),
    "preprocessing": lambda x: conv(3, 2)(
        layers.Rescaling(1 / 255)(layers.RandomFlip()(layers.RandomRotation(0.1)(x)))
    ),
    "spectral normalization": lambda x: layers.SpectralNormalization(conv(3, 2))(x),
}


@pytest.mark.parametrize("whole, name", [(True, name) for name in WHOLE] + [(False, name) for name in LOCAL])
def test_operations_over_the_whole_image_are_flagged_and_keep_the_local_path(whole, name):
    image = keras.Input((36, 52, 3))
    model = keras.Model(image, (WHOLE if whole else LOCAL)[name](image))
    found = receptive_field(model, unsupported="raise")
    assert (found.size, found.stride, found.padding, found.whole_image) == ((3, 3), (2, 2), (0, 0), whole)
    if name in ("squeeze-excite", "group normalization", "attention"):
        assert found.grid == (17, 25)


@pytest.mark.parametrize(
    "name", ["recurrent over rows of columns", "attention over rows of columns", "attention without weights"]
)
def test_columns_in_the_features_of_a_row_are_mixed_too(name):
    image = keras.Input((36, 52, 3))
    with pytest.raises(ValueError, match="has no grid of features left"):
        receptive_field(keras.Model(image, WHOLE[name](image))).region(0, 0)


def test_softmax_lets_no_channel_see_less_than_another():
    image = keras.Input((36, 52, 3))
    joined = layers.Concatenate()([conv(5, padding="same")(image), image])
    for soft in (layers.Activation("softmax"), layers.DepthwiseConv2D(1, activation="softmax")):
        assert receptive_field(keras.Model(image, soft(joined)[..., 2:])).size == (5, 5)


def test_a_grid_of_one_feature_is_not_the_whole_image():
    found = receptive_field(sequential(conv(3, 2), layers.Flatten(), layers.Dense(4), size=(4, 4)))
    assert found.size == (3, 3) and found.whole_image is False


FIRST = {"data_format": "channels_first"}
LAYOUTS = {
    # Rows and columns change places before a (1, 5) kernel, so it stretches over rows.
    "permuted": ((40, 56, 3), [layers.Permute((2, 1, 3)), conv((1, 5)), layers.Permute((2, 1, 3))], (5, 1), (36, 56)),
    "channels first": (
        (3, 40, 56),
        [layers.Conv2D(2, (3, 5), (2, 1), "same", **FIRST), layers.ZeroPadding2D(((1, 0), (2, 0)), **FIRST),
         layers.AveragePooling2D(2, **FIRST)], (5, 6), (10, 29),
    ),
    "sequence": ((64, 3), [layers.Conv1D(2, 3, padding="causal", dilation_rate=4)], (9,), (64,)),
    "volume": ((8, 16, 16, 1), [layers.Conv3D(2, (1, 3, 5)), layers.MaxPooling3D(2)], (2, 4, 6), (4, 7, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_and_rank(name):
    shape, parts, size, grid = LAYOUTS[name]
    model = keras.Sequential([keras.Input(shape), *parts])
    assert (receptive_field(model).size, receptive_field(model).grid) == (size, grid)
    heads = list(table(model, macs=False).filter(like="size"))
    assert heads == [f"size_{axis}_px" for axis in {1: "t", 2: "yx", 3: "zyx"}[len(size)]]


# Layers by name, sizes, regions ------------------------------------------------------------------------------------


def test_shared_and_nested_layers_are_found_by_path():
    inner = keras.Sequential([keras.Input((None, None, 2)), conv(3, name="conv")], name="inner")
    image = keras.Input((32, 32, 2))
    model = keras.Model(image, conv(1, name="conv")(inner(inner(image))), name="outer")
    assert receptive_field(model, "conv").size == (5, 5)
    assert receptive_field(model, "inner/conv").size == (3, 3)
    assert receptive_field(model, "inner:1/conv").size == receptive_field(model, "inner:1").size == (5, 5)
    assert receptive_field(model, inner.get_layer("conv")).size == (3, 3)


def test_a_nested_model_is_asked_by_name_or_itself_for_each_of_its_outputs():
    image = keras.Input((16, 16, 3))
    fine = conv(3, name="a")(image)
    pyramid = keras.Model(image, [fine, conv(5, 2, name="b")(fine)], name="pyramid")
    tower = keras.Sequential([keras.Input((14, 14, 2)), conv(3), conv(3)], name="tower")
    photo = keras.Input((16, 16, 3))
    first, second = pyramid(photo)
    model = keras.Model(photo, [tower(first), second])
    for name in ("pyramid", pyramid):
        # Output 0 is one 3 x 3; output 1 a 5 x 5 on it, 3 + (5 - 1) * 1 = 7 pixels, every other feature.
        found = [receptive_field(model, name, output=number) for number in (0, 1)]
        assert [(one.size, one.stride) for one in found] == [((3, 3), (1, 1)), ((7, 7), (2, 2))]
        with pytest.raises(ValueError, match="'pyramid' has 2 outputs that see different pixels; choose one with"):
            receptive_field(model, name)
        with pytest.raises(ValueError, match="output must be a whole number from 0 to 1 for layer 'pyramid', got 2"):
            receptive_field(model, name, output=2)
    for name in ("tower", tower):  # three 3 x 3 one after the other
        assert receptive_field(model, name).size == (7, 7)


def test_the_input_size_decides_same_padding():
    model = sequential(conv(3, 2, "same", name="conv"), size=(None, None))
    assert receptive_field(model).padding == (None, None) and receptive_field(model).aligned is None
    assert receptive_field(model, input_size=(8, 9)).padding == (0, 1)
    assert receptive_field(model, input_size=9).padding == (1, 1)
    built = sequential(conv(3, 2, "same"), size=(8, 8))
    assert receptive_field(built).padding == (0, 0) and receptive_field(built, input_size=9).padding == (1, 1)


@pytest.mark.parametrize(
    "make, shape, size",
    [
        (lambda: keras.Sequential([conv(3)]), (2, 9, 9, 1), (3, 3)),
        (lambda: keras.Sequential([keras.Sequential([conv(3)])]), (2, 9, 9, 1), (3, 3)),
        (lambda: keras.Sequential([keras.Sequential([layers.Conv1D(2, 3)])]), (2, 9, 1), (3,)),
        (lambda: keras.Sequential([layers.MaxPooling1D(3)]), (2, 9, 1), (3,)),
        (lambda: keras.Sequential([layers.LSTM(2, return_sequences=True)]), (2, 9, 1), (1,)),  # itself; all are mixed
        (lambda: layers.LSTM(2, return_sequences=True), (2, 9, 1), (1,)),
    ],
)
def test_a_model_that_is_not_built_is_asked_by_a_size_and_stays_unbuilt(make, shape, size):
    model = make()
    for layer in (None, getattr(model, "layers", [None])[0]):
        assert receptive_field(model, layer, input_size=9).size == size
    assert len(table(model, input_size=9)) > 1
    assert not model.built and model(np.zeros(shape)).shape[0] == 2


def test_a_model_that_is_not_built_and_takes_no_rgb_images_is_to_be_built():
    model = keras.Sequential([keras.Sequential([keras.Input((9, 9, 4)), conv(3)])])
    model = keras.Sequential([layers.Identity(), *model.layers])
    with pytest.raises(ValueError, match=r"cannot be built for .*; input_size stands for RGB images, so build the"):
        receptive_field(model, input_size=9)


def test_a_model_that_cannot_be_copied_is_never_taken_for_another():
    class Wide(layers.Conv2D):  # its inherited configuration lacks its own argument
        def __init__(self, reach=0, filters=2, kernel_size=1, **kwargs):
            super().__init__(filters, 1 + 2 * reach, **kwargs)
            self.reach = reach

    assert receptive_field(keras.Sequential([Wide(reach=2)]), input_size=9).size == (5, 5)


def test_a_region_can_be_clipped_and_says_how_much_of_it_is_inside():
    found = receptive_field(sequential(conv(5, 2, "same"), size=(9, 9)))
    assert (found.region(0, 2).start, found.region(0, 2).stop) == ((-2, 2), (3, 7))
    assert found.region(0, 2).fraction_inside == pytest.approx(15 / 25)
    clipped = found.region(0, 2, clip=True)
    assert (clipped.start, clipped.stop, clipped.size) == ((0, 2), (3, 7), (3, 5))
    assert np.zeros((9, 9, 3))[clipped.slices].shape == (3, 5, 3)
    assert found.center(0, 2) == (0.0, 4.0)


@pytest.mark.parametrize(
    "ask, error",
    [
        (lambda m: receptive_field(m, "conv9"), r"has no layer 'conv9'; near it are 'conv1'"),
        (lambda m: receptive_field(m).region(0, 0), "padding of 'conv1' is unknown.*pass input_size"),
        (lambda m: receptive_field(m, input_size=8).region(4, 0), r"has \(4, 4\) features and none at \(4, 0\)"),
        (lambda m: receptive_field(m, input_size=8).region(1), "has 2 indices, one for each spatial axis"),
        (lambda m: receptive_field(m, input_size=8).region(1.0, "a"), r"must be whole numbers, got \(1.0, 'a'\)"),
        (
            lambda m: receptive_field(keras.Sequential([m, layers.GlobalMaxPooling2D(name="gone")])).region(),
            "no grid of features left, as 'gone' mixes all positions",
        ),
        (lambda m: receptive_field(m, output="a"), "output must be a whole number from 0 to 0 in 'seq.*got 'a'"),
        (lambda m: receptive_field(m, "conv1", output=1), "from 0 to 0 for layer 'conv1', got 1"),
        (lambda m: receptive_field(m, rules={"Conv2D": 3}), "rules must be a dict .*got {'Conv2D': 3}"),
        (lambda m: receptive_field(m, rules={"Conv2D": lambda *_: 3}), "'conv1' must return a Field, .*got 3"),
        (lambda _: receptive_field(keras.Sequential([layers.Conv2D(2, 3)])), "pass input_size, for example 224"),
        (
            lambda _: receptive_field(sequential(conv(3), size=(None, None))).region(0, 0, clip=True),
            "cannot be clipped",
        ),
        (lambda m: receptive_field(m, unsupported="zero"), "unsupported must be .* got 'zero'"),
        (lambda m: receptive_field(m, input="photo"), "has no image input 'photo'"),
        (lambda _: receptive_field(keras.Sequential([keras.Input((4,)), layers.Dense(2)])), "no input with a spatial"),
    ],
)
def test_errors_name_the_thing_and_what_to_do(ask, error):
    with pytest.raises(ValueError, match=error):
        ask(sequential(conv(3, 2, "same", name="conv1"), size=(None, None)))


def test_several_outputs_and_inputs_have_to_be_named():
    one, two = keras.Input((16, 16, 3), name="one"), keras.Input((32, 32, 3), name="two")
    model = keras.Model([one, two], [conv(3, name="a")(one), conv(5, name="b")(two)])
    with pytest.raises(ValueError, match=r"different sizes; choose one with input=, out of \['one', 'two'\]"):
        receptive_field(model, "a")
    with pytest.raises(ValueError, match=r"2 outputs .'[ab]', '[ab]'.; name one with layer="):
        receptive_field(model, input="one")
    assert receptive_field(model, "b", input="two").size == (5, 5)
    with pytest.raises(ValueError, match="'b' sees nothing of the image"):
        receptive_field(model, "b", input="one")


# Layers without a rule ---------------------------------------------------------------------------------------------


class Blur(layers.Layer):
    """A layer that cannot be traced: it leaves Keras."""

    def call(self, x):
        return keras.ops.convert_to_tensor(np.asarray(x) * 1.0)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def test_a_layer_without_a_rule_is_named_and_can_be_given_one():
    model = sequential(Blur(name="blur"), conv(3))
    with pytest.warns(
        UserWarning, match=r"no receptive-field rule for layer 'blur' \(Blur.*what comes after it is unknown"
    ):
        found = receptive_field(model)
    assert found.unsupported == ("blur",) and found.whole_image and "unknown" in repr(found)
    for ask in (lambda: found.size, lambda: found.region(0, 0), lambda: found.center(0, 0)):
        with pytest.raises(ValueError, match="is unknown: there is no receptive-field rule for layer 'blur'"):
            ask()
    with pytest.raises(ValueError, match="'blur'"):
        receptive_field(model, unsupported="raise")

    rule = {Blur: lambda call, fields: rules.stepped(call, fields, [rules.window(5, padding="same")] * 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert receptive_field(model, rules=rule).size == (7, 7)


class Residual(layers.Layer):
    """A layer of one's own that is made of Keras layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(3, 3, padding="same")

    def call(self, x):
        return keras.ops.relu(x + self.conv(x))


def test_a_layer_made_of_keras_layers_is_seen_through():
    model = sequential(Residual(name="one"), Residual(name="two"))
    found = receptive_field(model, unsupported="raise")
    assert found.size == (5, 5) and found.aligned is True
    assert receptive_field(model, "two/" + model.layers[1].conv.name).size == (5, 5)


PREPROCESSING = [
    cls for cls in vars(layers).values() if isinstance(cls, type) and issubclass(cls, layers.RandomFlip.__base__)
]
SETTINGS = {
    (5, 7): "CenterCrop RandomCrop Resizing",
    (0.1, 0.1): "RandomTranslation",
    (4,): "MaxNumBoundingBoxes RandomPosterization",
    (0.1,): """
        RandomBrightness RandomColorDegeneration RandomContrast RandomHue RandomRotation RandomSaturation
        RandomSharpness RandomZoom""",
}


@pytest.mark.parametrize("cls", PREPROCESSING, ids=lambda cls: cls.__name__)
def test_no_feature_of_a_preprocessing_layer_moves_with_a_pixel_that_it_is_said_not_to_see(cls):
    if cls is layers.Equalization:
        pytest.skip("at inference it returns its input itself, which Keras does not take into a model")
    layer = cls(*next((values for values, names in SETTINGS.items() if cls.__name__ in names.split()), ()))
    before = np.random.default_rng(0).uniform(50, 200, (1, 16, 24, 3)).astype("float32")
    after = before.copy()
    after[0, 8, 11] = 255
    moved = np.not_equal(*(np.asarray(layer(photo, training=False)) for photo in (before, after))).any((0, -1))
    found = receptive_field(sequential(layer, size=(16, 24)), unsupported="ignore")
    assert moved.any()
    assert found.whole_image or all(
        first <= at < end
        for feature in np.argwhere(moved)
        for first, at, end in zip(found.region(*feature).start, (8, 11), found.region(*feature).stop, strict=True)
    )


# Tables ------------------------------------------------------------------------------------------------------------


def test_the_table_has_one_row_a_call_and_the_macs_of_the_report():
    flops = pytest.importorskip("utils.flops")
    model = sequential(
        conv(3, 2, "same", name="conv"), layers.TimeDistributed(layers.Conv1D(4, 3), name="rows"), layers.ReLU(),
        layers.Flatten(), layers.Dense(5), size=(16, 20),
    )  # fmt: skip
    frame = table(model)
    assert list(frame["layer"][1:3]) == ["conv", "rows"]
    assert frame["macs"].sum() == flops.count(model).total_macs
    assert frame["macs"][1] == 8 * 10 * 2 * 27 and frame["macs"][2] == 8 * 8 * 4 * 6
    assert list(frame["whole_image"]) == [False] * 5 + [True]
    larger = table(sequential(conv(3, 2, "same")), input_size=(80, 56))
    assert larger["macs"].iloc[-1] == 40 * 28 * 2 * 27


def test_macs_are_unknown_rather_than_zero_without_an_input_size():
    model = sequential(conv(3, name="conv"), size=(None, None))
    assert table(model)["macs"].isna().all()
    assert table(model, input_size=5)["macs"].tolist() == [0, 9 * 2 * 27]


def test_a_cost_row_that_belongs_to_no_layer_is_named(monkeypatch):
    from utils import flops

    report = flops.count(sequential(conv(3, name="elsewhere")))
    monkeypatch.setattr(flops, "count", lambda *_, **__: report)
    with pytest.raises(ValueError, match=r"expected a layer '.*pass macs=False"):
        table(sequential(conv(3, name="conv")))
