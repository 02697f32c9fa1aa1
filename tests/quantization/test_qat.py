"""Quantization-aware training: folding, rounding and its gradients by hand; and int8 comes nearer to float."""

import keras
import numpy as np
import pytest
import quantization_models as small
import tensorflow as tf

from utils import quantization
from utils.quantization import qat


def test_folding_changes_nothing_but_the_layers_also_with_a_bias_and_without_scale():
    model, images = small.network(), small.photos(6)
    folded = qat.fold(model)
    assert np.abs(folded.predict(images, verbose=0) - model.predict(images, verbose=0)).max() < 1e-5
    kept = [layer.name for layer in model.layers if not isinstance(layer, keras.layers.BatchNormalization)]
    assert [layer.name for layer in folded.layers] == kept
    image = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=True, bias_initializer="ones", name="c")(image)
    x = keras.layers.BatchNormalization(scale=False, center=False, name="n")(x)
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="d")(x)
    x = keras.layers.BatchNormalization(name="m")(x)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(x))
    random = np.random.default_rng(0)
    for name in "nm":
        layer = model.get_layer(name)
        layer.set_weights([random.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    photo = random.normal(size=(2, 6, 6, 3)).astype("float32")
    assert np.allclose(qat.fold(model)(photo), model(photo), atol=1e-5)


def test_kernels_are_rounded_a_channel():
    kernel = np.array([[1.0, 100.0], [-0.5, 0.7], [0.26, -50.0]], np.float32)
    rounded = np.asarray(qat.round_kernel(keras.ops.convert_to_tensor(kernel), (0,)))
    expected = np.stack([np.round(kernel[:, c] / (peak / 127)) * peak / 127 for c, peak in enumerate((1.0, 100.0))], 1)
    assert np.allclose(rounded, expected, atol=1e-6)
    assert not np.allclose(rounded, kernel, atol=1e-4)
    with tf.GradientTape() as tape:
        variable = tf.Variable(kernel)
        total = tf.reduce_sum(qat.round_kernel(variable, (0,)) * 3)
    assert np.allclose(tape.gradient(total, variable), 3)


def test_activations_are_rounded_and_clipped():
    layer = qat.RoundedActivation(-1.0, 4.1)  # scale 0.02, zero at level 50: -1.0 .. 4.1
    values = np.array([-2.0, -0.995, 0.0, 0.013, 3.0, 9.0], np.float32)
    assert np.allclose(layer(values), [-1.0, -1.0, 0.0, 0.02, 3.0, 4.1], atol=0.0101)
    assert float(layer(np.zeros(1, np.float32))[0]) == 0  # zero must be exact: padding
    assert np.allclose(layer(np.array([0.013], np.float32)), 0.02, atol=1e-6)
    with tf.GradientTape() as tape:
        variable = tf.Variable(values)
        total = tf.reduce_sum(layer(variable))
    assert list(tape.gradient(total, variable).numpy()) == [0, 1, 1, 1, 1, 0]
    positive = qat.RoundedActivation(0.5, 6.0)  # a range always holds zero
    assert (positive.low, positive.zero) == (0, 0)
    assert np.isfinite(qat.RoundedActivation(0, 0)(np.ones(1, np.float32))).all()  # no division by 0


def test_training_sees_what_the_int8_file_computes():
    model, images = small.network(), small.photos()
    exact = model.predict(images, verbose=0)
    felt = qat.prepare(model, images).predict(images, verbose=0)
    stored = quantization.TFLiteModel(small.files()["int8"])(images)
    assert np.abs(felt - stored).mean() < 0.5 * np.abs(stored - exact).mean()


def test_a_prepared_model_can_be_saved_and_finish_gives_the_plain_one_back(tmp_path):
    model, images = small.network(), small.photos(4)
    prepared = qat.prepare(model, small.photos())
    prepared.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.allclose(again.predict(images, verbose=0), prepared.predict(images, verbose=0), atol=1e-6)
    plain = qat.finish(prepared)
    assert {type(layer) for layer in plain.layers} <= {type(layer) for layer in model.layers}
    assert np.abs(plain.predict(images, verbose=0) - model.predict(images, verbose=0)).max() < 1e-5


def test_training_brings_int8_nearer_to_float():
    model, images = small.network(), small.photos()
    exact = model.predict(images, verbose=0)
    trained, history = qat.train(model, images, images, epochs=10, learning_rate=1e-4, batch_size=8)
    assert len(history) == 10
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    changes = [
        np.abs(quantization.TFLiteModel(quantization.convert(network, "int8", images))(images) - exact).mean()
        for network in (model, trained)
    ]
    assert changes[1] < 0.9 * changes[0]


PHOTOS = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("float32")
LABELS = np.arange(32) % 2


def tiny(head, units=2, behind=lambda x: x):
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, use_bias=False)(image))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    return keras.Model(image, behind(keras.layers.Dense(units, activation=head, name="head")(x)))


def test_sequential_models_are_trained_like_functional_ones_built_or_not():
    functional = tiny("softmax")
    layers = [layer for layer in functional.layers if not isinstance(layer, keras.layers.InputLayer)]
    models = functional, keras.Sequential([keras.Input((8, 8, 3)), *layers]), keras.Sequential(layers)
    losses = [qat.train(model, PHOTOS, PHOTOS, epochs=1)[1]["loss"][0] for model in models]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_regression_head_learns_its_targets():
    wanted = PHOTOS.mean((1, 2))[:, :1] / 255
    options = {"epochs": 8, "learning_rate": 1e-2, "loss": "mean_squared_error"}
    trained, history = qat.train(tiny(None, 1), PHOTOS, PHOTOS, wanted, **options)
    assert history["loss"].iloc[-1] < 0.1 * history["loss"].iloc[0]
    assert trained.output_shape == (None, 1)


SOFTMAX = (
    keras.layers.Activation("softmax"),
    keras.ops.softmax,
    lambda x: keras.layers.Dropout(0.1)(keras.layers.Identity()(keras.layers.Softmax()(x))),
)
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    "model, targets, loss",
    [
        (lambda: tiny("sigmoid", 1), LABELS, None),
        (lambda: tiny("sigmoid", 1), LABELS[:, None], None),
        (lambda: tiny("softmax"), list(LABELS), None),
        (lambda: tiny("softmax"), LABELS[:, None], None),
        (lambda: tiny("softmax"), np.eye(2)[LABELS], "kl_divergence"),
        (lambda: tiny(None), LABELS, LOGITS),
        *((lambda behind=behind: tiny(None, behind=behind), LABELS, None) for behind in SOFTMAX),
    ],
)
def test_heads_and_targets_get_the_cross_entropy_that_fits(model, targets, loss):
    """Every first loss is near the log of 2 classes or of a few times that; a head of logits gave -17."""
    assert 0.1 < qat.train(model(), PHOTOS, PHOTOS, targets, epochs=1, loss=loss)[1]["loss"][0] < 20


ONE_HOT = np.eye(3)[np.arange(32) % 3]


@pytest.mark.parametrize(
    "head, units, targets, loss, message",
    [
        (None, 1, None, None, "ends in 'linear', not in probabilities, got loss=None; pass loss="),
        ("tanh", 2, None, None, "ends in 'tanh'"),
        ("softmax", 1, None, None, "which is always 1; use a sigmoid"),
        (None, 3, None, "categorical_crossentropy", "ends in 'linear'"),
        (None, 3, None, keras.losses.CategoricalCrossentropy(from_logits=True), "ends in 'linear'"),
        (None, 3, ONE_HOT, "kld", "ends in 'linear'"),  # before: a loss of 6.8 that means nothing
        (None, 3, ONE_HOT, keras.losses.Poisson(), "ends in 'linear'"),  # before: NaN
        ("softmax", 2, LABELS, LOGITS, "ends in 'softmax', got a loss of logits"),
        ("softmax", 2, LABELS + 1, None, r"class indices must be in 0..1, got 1..2"),
        ("softmax", 2, ONE_HOT, None, r"\(32, 2\) or class indices \(32,\), got \(32, 3\)"),
        ("softmax", 3, 5 * ONE_HOT, None, r"must be probabilities in 0\.\.1, got 0\.\.5"),
        ("sigmoid", 1, 2 * LABELS, None, r"must be probabilities in 0\.\.1, got 0\.\.2"),  # before: a loss below 0
        (None, 1, 2 * LABELS, keras.losses.BinaryCrossentropy(from_logits=True), "must be probabilities"),
        ("sigmoid", 1, LABELS, "categorical_crossentropy", "of one output is always 0; pass 'binary"),
        ("softmax", 2, LABELS[:3], None, r"each of 32 photos.* got \(3,\)"),
        ("sigmoid", 3, LABELS, None, r"needs targets of shape \(n, 3\)"),
        ("softmax", 3, ONE_HOT, "sparse_categorical_crossentropy", r"needs class indices \(n,\)"),
    ],
)
def test_heads_targets_and_losses_that_do_not_fit_are_refused(head, units, targets, loss, message):
    with pytest.raises(ValueError, match=message):
        qat.train(tiny(head, units), PHOTOS, PHOTOS, targets, loss=loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": PHOTOS * np.nan}, r"images must be finite numbers of shape \(n, 8, 8, 3\), got .*, with NaN"),
        ({"images": PHOTOS[:, :4]}, r"images must be finite numbers of shape \(n, 8, 8, 3\), got \(\d+, 4, 8, 3\)"),
        ({"representative": PHOTOS * np.nan}, "representative photos must be finite numbers"),
        ({"targets": np.full((len(PHOTOS), 2), np.nan)}, "targets must be finite numbers, got float64 such as"),
        ({"targets": np.array(["a"] * len(PHOTOS))}, "targets must be finite numbers, got <U1 such as"),
        ({"images": PHOTOS / 255}, "expected images and representative photos of one scale, got up to 1 and 255"),
        ({"representative": PHOTOS * 0}, "of one scale, got up to 255 and 0"),
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"batch_size": 1.5}, r"batch_size must be a positive integer, got 1\.5"),
        ({"learning_rate": float("nan"), "epochs": 2}, "the loss became nan; pass a lower learning_rate"),
    ],
)
def test_what_ends_in_nan_is_refused_and_never_returned(change, message):
    """Before: a network of NaN and a loss of NaN, or an error of NumPy's or Keras' own."""
    given = {"representative": PHOTOS, "images": PHOTOS, "targets": None} | change
    with pytest.raises(ValueError, match=message):
        qat.train(tiny("softmax", 2), **given)


def test_models_that_cannot_be_folded_are_refused_by_name():
    image = keras.Input((8, 8, 3))
    outer = keras.Model(image, keras.layers.Dense(2, activation="softmax")(tiny(None)(image)))
    with pytest.raises(ValueError, match=r"got the model 'functional.*' inside"):
        qat.prepare(outer, PHOTOS)
    other = keras.layers.Conv2D(3, 1)(image)
    for join in (
        lambda norm, x: norm(image),
        lambda norm, x: norm(x) + keras.ops.relu(x),  # these two were merged wrongly, in silence
        lambda norm, x: norm(x) + norm(other),
    ):
        x = keras.layers.Conv2D(3, 3, padding="same")(image)
        answer = keras.layers.GlobalAveragePooling2D()(join(keras.layers.BatchNormalization(name="lone"), x))
        with pytest.raises(ValueError, match="'lone' does not directly follow"):
            qat.fold(keras.Model(image, answer))
    rows = keras.layers.BatchNormalization(axis=1, name="lone")  # of as many rows as channels: merged wrongly before
    answer = keras.layers.GlobalAveragePooling2D()(rows(keras.layers.Conv2D(8, 3, padding="same")(image)))
    with pytest.raises(ValueError, match="'lone' does not directly follow"):
        qat.fold(keras.Model(image, answer))
    with pytest.raises(ValueError, match="expected a functional model"):
        qat.fold(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="representative photos"):
        qat.prepare(small.network(), None)
    with pytest.raises(ValueError, match="at least one photo"):
        qat.train(small.network(), small.photos(), small.photos(0))
