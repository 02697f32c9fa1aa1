"""utils.receptive_field.effective: a field that is known beforehand, a Gaussian that theory predicts, and what is
refused."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

from utils.receptive_field import effective

effective_rf = importlib.import_module("utils.receptive_field.effective")


def linear_net(depth, size=(61, 81), kernel=3):
    parts = [layers.Conv2D(1, kernel, padding="same", use_bias=False, kernel_initializer="ones") for _ in range(depth)]
    return keras.Sequential([keras.Input((*size, 1)), *parts])


def test_a_linear_network_gives_the_binomial_shape_of_the_paper():
    # n box filters of width k in a row: variance n (k^2 - 1) / 12 a axis, whatever the image.
    found = effective(linear_net(20), np.zeros((2, 61, 81, 1)))
    assert found.theoretical.size == (41, 41)
    assert found.feature == (30, 40)
    assert found.sigma == pytest.approx((np.sqrt(20 * 8 / 12),) * 2, rel=0.02)
    assert found.center == pytest.approx((30, 40), abs=1e-3)
    assert found.gaussian_size == tuple(4 * sigma for sigma in found.sigma)
    # Above the threshold lies a disc of radius sigma * sqrt(2 ln(1 / 0.0455)).
    radius = np.sqrt(20 * 8 / 12 * 2 * np.log(1 / effective_rf.THRESHOLD))
    assert found.area_size == pytest.approx(np.sqrt(np.pi) * radius, rel=0.03)


def test_axes_are_not_mixed_up():
    found = effective(linear_net(8, kernel=(1, 7)), np.zeros((1, 61, 81, 1)), feature=(3, 50))
    assert found.sigma[1] == pytest.approx(np.sqrt(8 * 48 / 12), rel=0.03)
    assert np.flatnonzero(found.map.sum(1)).tolist() == [3]
    assert found.center[1] == pytest.approx(50, abs=1e-3)


def test_everything_lies_inside_the_theoretical_region_but_for_the_whole_image():
    keras.utils.set_random_seed(0)
    photos = np.random.default_rng(0).uniform(0, 1, (3, 48, 64, 3))  # small numbers: the sigmoid must not saturate
    image = keras.Input((48, 64, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="first")(image)
    weights = layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras.Model(image, layers.Conv2D(4, 3, padding="same", name="last")(layers.Multiply()([x, weights])))
    local, whole = effective(model, photos, "first"), effective(model, photos)
    assert local.share_inside == 1 and local.layer == "first"
    assert whole.share_inside < 1 and whole.layer == "last" and whole.theoretical.whole_image
    assert local.map.shape == (48, 64) and local.map.max() == 1
    assert (local.map > 0).sum() <= 9


def test_the_answer_repeats_and_does_not_hang_on_the_batches():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((24, 24, 3)), layers.Conv2D(8, 5, activation="relu"), layers.Conv2D(8, 3)])
    photos = np.random.default_rng(1).uniform(0, 1, (5, 24, 24, 3))
    one, two = effective(model, photos, batch_size=5), effective(model, photos, batch_size=2)
    np.testing.assert_allclose(one.map, two.map, rtol=1e-4)


@pytest.mark.parametrize(
    "ask, error",
    [
        (
            lambda m: effective(m, np.zeros((16, 16, 3))),
            r"images must be \(n, height, width, channels\).*\(16, 16, 3\)",
        ),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "pooled"), "'pooled' has no grid of features"),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "conv", feature=(20, 0)), r"features and none at \(20, 0\)"),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "conv", feature=3), "features and none at 3; count from 0"),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "conv", feature=(1.5, 0)), r"none at \(1.5, 0\)"),
        (
            lambda m: effective(m, np.zeros((1, 16, 16, 3)), batch_size=0),
            "batch_size must be a positive integer, got 0",
        ),
        (lambda m: effective(m, np.full((1, 16, 16, 3), "a")), "images must hold numbers, got <U1"),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "dead"), "no image moves feature"),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "steps"), "no image moves feature"),
        (lambda m: effective(m, np.zeros((1, 18, 16, 3))), r"images must have the shape \(None, 16, 16, 3\)"),
        (lambda m: effective(m, np.zeros((1, 16, 16, 3)), "cnv"), "no layer 'cnv'; near it are 'conv'"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(ask, error):
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(2, 3, name="conv")(image)
    x = layers.Conv2D(2, 3, activation="relu", bias_initializer=keras.initializers.Constant(-1), name="dead")(x)
    x = layers.Lambda(keras.ops.round, name="steps")(x)
    with pytest.raises(ValueError, match=error):
        ask(keras.Model(image, layers.GlobalAveragePooling2D(name="pooled")(x)))


class Own(keras.Model):
    """A subclassed model that slices its image and keeps a layer within a layer."""

    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([layers.Conv2D(2, 3, padding="same", name="conv")], name="inner")

    def call(self, x):
        return keras.ops.relu(self.inner(x[:, 2:]))


class Named(keras.Model):
    """A subclassed model that takes its image by name."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(2, 3)

    def call(self, images):
        return self.conv(images["photo"])


def test_a_model_that_wants_more_than_the_images_is_refused_in_one_sentence():
    model = Named()
    model({"photo": np.zeros((1, 16, 16, 3))})
    with pytest.raises(ValueError, match=r"'named.*cannot be called with the images alone: .*; pass a model with"):
        effective(model, np.zeros((1, 16, 16, 3)))


def test_what_people_bring_is_measured_like_a_functional_model():
    keras.utils.set_random_seed(0)
    photos = np.random.default_rng(0).integers(0, 256, (2, 24, 36, 3))
    image = keras.Input((24, 36, 3), dtype="uint8")
    whole_numbers = keras.Model(image, layers.Conv2D(2, (3, 5), padding="same")(layers.Rescaling(1 / 255)(image)))
    found = effective(whole_numbers, photos.astype("uint8"), feature=(4, 20))
    rows, columns = np.nonzero(found.map)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 5, 18, 22) and found.share_inside == 1

    image = keras.Input((24, 36, 3))
    turned = keras.Model(image, layers.Permute((2, 1, 3))(layers.Conv2D(2, 3, padding="same")(image)))
    rows, columns = np.nonzero(effective(turned, photos, feature=(4, 20)).map)
    assert (rows.min(), columns.min()) == (3, 19)

    own = Own()
    own(np.zeros((1, 24, 36, 3), "float32"))
    found = effective(own, photos / 255, "inner/conv", feature=(4, 20))
    rows, columns = np.nonzero(found.map)
    assert (rows.min(), columns.min()) == (5, 19) and found.theoretical.grid == (22, 36)

    half = layers.Conv2D(2, 3, dtype="mixed_float16")
    found = effective(keras.Sequential([keras.Input((24, 36, 3)), half]), photos / 255)
    assert np.count_nonzero(found.map) == 9 and found.share_inside == 1


def test_results_print_themselves():
    found = effective(linear_net(2), np.zeros((1, 61, 81, 1)))
    assert "theoretical=(5, 5)" in repr(found) and "<table" in found._repr_html_()
    frame = found.to_frame()
    assert frame["theoretical_y_px"][0] == 5 and 0 < frame["area_share"][0] <= 1
