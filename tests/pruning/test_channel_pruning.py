"""utils.pruning.channels: which blocks there are, and that the rebuilt model computes the same with fewer channels."""

import keras
import numpy as np
import pytest
from pruning_models import inverted_residuals

from utils import flops
from utils.pruning import channels as cp

L = keras.layers


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(1).uniform(-1, 1, (4, 16, 16, 3)).astype("float32")


def silence(model, block, channels):
    """Nobody reads these channels any more."""
    for name in block.consumers:
        weights = model.get_layer(name).get_weights()
        weights[0][:, :, channels, :] = 0
        model.get_layer(name).set_weights(weights)


@pytest.mark.parametrize("squeeze_excite", [False, True])
def test_the_blocks_by_data_flow(squeeze_excite):
    first, second = cp.find_blocks(inverted_residuals(squeeze_excite))
    assert (first.name, first.channels, second.name) == ("a_expand", 24, "b_expand")
    assert first.channelwise == ("a_expand_bn", "a_depthwise", "a_bn")
    assert set(first.producers) == ({"a_expand", "a_gate"} if squeeze_excite else {"a_expand"})
    assert set(first.consumers) == ({"a_reduce", "a_project"} if squeeze_excite else {"a_project"})
    assert first.reshapes == (("a_reshape",) if squeeze_excite else ())


@pytest.mark.parametrize("squeeze_excite", [False, True])
def test_removing_dead_channels_changes_nothing(squeeze_excite, photos):
    model = inverted_residuals(squeeze_excite)
    dead = np.array([0, 5, 6, 11, 17, 23, 20, 2])
    for block in cp.find_blocks(model):
        silence(model, block, dead)
    before = model.count_params()
    np.testing.assert_array_equal(cp.prune_channels(model, 0.0).model(photos), model(photos))
    result = cp.prune_channels(model, 1 / 3)
    assert result.kept["a_expand"].tolist() == sorted(set(range(24)) - set(dead.tolist()))
    np.testing.assert_allclose(result.model(photos), model(photos), atol=1e-6)
    assert result.model.count_params() < before
    assert result.model.get_layer("b_depthwise").kernel.shape == (3, 3, 16, 1)
    wrong = {name: np.arange(16) for name in result.kept}  # the test can fail: other channels are missed
    assert np.abs(cp.rebuild(model, cp.find_blocks(model), wrong)(photos) - model(photos)).max() > 1e-4


def test_arithmetic_falls_by_hand():
    macs = {row.path: row.macs for row in flops.count(cp.prune_channels(inverted_residuals(), 1 / 3).model).rows}
    by_hand = {"a_expand": 8 * 16, "a_depthwise": 9 * 16, "b_project": 16 * 8, "stem": 27 * 8}
    assert {name: macs[name] for name in by_hand} == {name: 8 * 8 * each for name, each in by_hand.items()}


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "MobileNetV3Small"])
def test_published_networks(name):
    shape = (64, 64, 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=5)
    blocks = cp.find_blocks(model)
    assert len(blocks) == {"MobileNetV2": 16, "EfficientNetB0": 15, "MobileNetV3Small": 10}[name]
    if name == "MobileNetV3Small":  # its gates are hard sigmoids, made of operations: relu6(x + 3) / 6
        assert sum(block.channels for block in blocks) == 2440
    for block in blocks:
        silence(model, block, np.arange(block.channels // 4))
    result = cp.prune_channels(model, 0.25, divisor=1)
    photos = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype("float32")
    np.testing.assert_allclose(result.model(photos), model(photos), atol=1e-5)
    assert result.fraction == pytest.approx(0.25, abs=0.002)


def test_importance_finds_the_channels_that_matter_and_a_divisor_and_a_minimum_are_kept():
    model = inverted_residuals()
    block = cp.find_blocks(model)[0]
    kernel, bias = model.get_layer("a_depthwise").get_weights()
    kernel[:, :, 3] *= 50
    model.get_layer("a_depthwise").set_weights([kernel, bias])
    assert cp.channel_importance(model, block).argmax() == 3
    assert cp.channel_importance(model, block).mean() == pytest.approx(1)
    model = inverted_residuals()
    assert cp.prune_channels(model, 0.5, divisor=1).blocks["channels_after"].tolist() == [12, 12]
    assert cp.prune_channels(model, 0.95).blocks["channels_after"].tolist() == [8, 8]
    assert cp.prune_channels(model, 0.95, divisor=1, minimum=2).blocks["channels_after"].tolist() == [2, 2]


def test_the_result_names_what_was_left_alone_and_says_its_share_of_the_whole_model():
    image = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 1, name="stem")(image)
    x = L.Conv2D(4, 1)(L.DepthwiseConv2D(3, name="pruned")(L.Conv2D(16, 1)(x)))
    wide = L.Conv2D(24, 1)(x)
    x = L.Add()([L.DepthwiseConv2D(3, padding="same", name="seen_by_a_sum")(wide), wide])
    model = keras.Model(image, L.Dense(2)(L.GlobalAveragePooling2D()(L.Conv2D(40, 3)(x))), name="mixed")
    result = cp.prune_channels(model, 0.5)
    assert result.fraction == 0.5
    assert result.left_alone == {"seen_by_a_sum": 24}
    assert result.parameters_removed == 1 - result.model.count_params() / model.count_params()
    assert "8 of 16 expansion channels in 1 block" in repr(result)
    assert "left alone: seen_by_a_sum (24 channels)" in repr(result)
    assert f"{result.parameters_removed:.1%} of the model's parameters" in repr(result)


def one_block(between, **expand):
    """A 1x1 convolution to 16 channels, `between`, a depthwise and a 1x1 convolution."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = between(L.Conv2D(16, 1, name="expand", **expand)(image))
    return keras.Model(image, L.Conv2D(4, 1, name="project")(L.DepthwiseConv2D(3, padding="same")(x)))


@pytest.mark.parametrize(
    "gate",
    [
        keras.ops.silu, keras.ops.hard_silu, L.Activation("gelu"), lambda x: x * keras.ops.relu6(x + 3) / 6,
        lambda x: keras.ops.sigmoid(x) * x,
    ],
)  # fmt: skip
def test_activations_made_of_operations_are_followed(gate, photos):
    model = one_block(gate)
    (block,) = cp.find_blocks(model)
    silence(model, block, np.arange(8))
    smaller = cp.prune_channels(model, 0.5)
    assert smaller.kept["expand"].tolist() == list(range(8, 16))
    np.testing.assert_allclose(smaller.model(photos), model(photos), atol=1e-5)


@pytest.mark.parametrize(
    "between, expand",
    [
        (lambda x: x * keras.ops.arange(16, dtype="float32"), {}),  # a constant for every channel
        (lambda x: L.Add()([L.DepthwiseConv2D(3, padding="same")(x), x]), {}),  # a residual sum
        (L.Activation("softmax"), {}),  # each channel looks at all: before, they were taken out all the same
        (keras.ops.softmax, {}),
        (lambda x: x, {"activation": "softmax"}),
        (lambda x: x, {"activation": lambda x: x / keras.ops.sum(x, -1, keepdims=True)}),
        (L.GroupNormalization(4), {}),
    ],
)
def test_channels_that_others_see_are_left_alone(between, expand):
    with pytest.raises(ValueError, match="no inverted-residual block"):
        cp.find_blocks(one_block(between, **expand))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 1.0}, "fraction must be a share from 0 up to but excluding 1, got 1.0"),
        ({"fraction": -1}, "got -1"),
        ({"divisor": 0}, "divisor must be a positive integer, got 0"),
        ({"divisor": 2.5}, "divisor must be a positive integer, got 2.5"),
        ({"minimum": None}, "minimum must be a positive integer, got None"),
        ({"model": "model.keras"}, "got str"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        cp.prune_channels(**{"model": inverted_residuals(), "fraction": 0.5} | arguments)


def test_a_layer_that_is_called_twice_is_left_alone():
    image = keras.Input((8, 8, 3))
    project = L.Conv2D(4, 1)
    x = L.DepthwiseConv2D(3, padding="same")(L.Conv2D(16, 1)(image))
    y = L.DepthwiseConv2D(3, padding="same")(L.Conv2D(16, 1)(image))
    with pytest.raises(ValueError, match="no inverted-residual block"):
        cp.find_blocks(keras.Model(image, L.Add()([project(x), project(y)])))


@pytest.mark.parametrize("name", ["expand", "gate"])
def test_a_convolution_that_makes_other_channels_too_is_left_alone(name):
    """Before, the other call lost its channels as well, and the model's second output had another shape."""
    image = keras.Input((8, 8, 3))
    convs = {"expand": L.Conv2D(16, 1), "gate": L.Conv2D(16, 1, activation="sigmoid")}
    x = L.DepthwiseConv2D(3, padding="same")(convs["expand"](image)) * convs["gate"](image)
    with pytest.raises(ValueError, match="no inverted-residual block"):
        cp.find_blocks(keras.Model(image, [L.Conv2D(4, 1)(x), L.Flatten()(convs[name](L.MaxPool2D()(image)))]))


@pytest.mark.parametrize("reads", ["channels", "image"])
def test_a_gate_of_one_channel_opens_all_alike(reads, photos):
    """Spatial attention (CBAM, arXiv:1807.06521): before, its single filter was to lose channels, an IndexError."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    x = L.DepthwiseConv2D(3, padding="same")(L.Conv2D(16, 1, name="expand")(image))
    gate = L.Conv2D(1, 7, padding="same", activation="sigmoid", name="gate")(x if reads == "channels" else image)
    model = keras.Model(image, L.Conv2D(4, 1, name="project")(x * gate))
    (block,) = cp.find_blocks(model)
    assert block.producers == ("expand",)
    silence(model, block, np.arange(8))
    smaller = cp.prune_channels(model, 0.5)
    assert smaller.kept["expand"].tolist() == list(range(8, 16))
    np.testing.assert_allclose(smaller.model(photos), model(photos), atol=1e-5)


def test_channels_first_blocks_lose_the_same_arithmetic():
    first = {"data_format": "channels_first"}
    image = keras.Input((3, 8, 8))
    x = L.BatchNormalization(axis=1)(L.Conv2D(16, 1, **first)(image))
    x = L.DepthwiseConv2D(3, padding="same", **first)(x)
    gate = L.Conv2D(16, 1, **first)(L.GlobalAveragePooling2D(keepdims=True, **first)(x))
    model = keras.Model(image, L.Conv2D(4, 1, **first)(L.Multiply()([x, gate])))
    assert flops.count(model).total_macs == 64 * 16 * (3 + 9) + 16 * 16 + 64 * 16 * 4
    assert flops.count(cp.prune_channels(model, 0.5).model).total_macs == 64 * 8 * (3 + 9) + 8 * 8 + 64 * 8 * 4


@pytest.mark.parametrize("name", ["a_expand", "a_project"])
def test_a_block_with_lora_is_refused_by_name(name):
    model = inverted_residuals()
    model.get_layer(name).enable_lora(2)
    with pytest.raises(ValueError, match=f"got LoRA or quantized ones in {name}; prune before"):
        cp.prune_channels(model, 0.5)
