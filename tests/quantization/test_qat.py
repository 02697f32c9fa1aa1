"""Quantization-aware training: folding, rounding and its gradients by hand; and int8 comes nearer to float."""

import keras
import numpy as np
import pytest
import quantization_models as small
import tensorflow as tf

from utils import quantization
from utils.quantization import qat


def test_folding_changes_nothing_but_the_layers():
    model, images = small.network(), small.photos(6)
    folded = qat.fold(model)
    assert np.abs(folded.predict(images, verbose=0) - model.predict(images, verbose=0)).max() < 1e-5
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    assert [layer.name for layer in folded.layers] == [
        layer.name for layer in model.layers if not layer.name.endswith("bn")
    ]


def test_folding_with_a_bias_and_without_scale():
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
    assert (
        float(qat.RoundedActivation(0, 0)(np.ones(1, np.float32))[0]) >= 0
    )  # a silent activation does not divide by 0


def test_training_sees_what_the_int8_file_computes():
    model, images = small.network(), small.photos()
    exact = model.predict(images, verbose=0)
    felt = qat.prepare(model, images).predict(images, verbose=0)
    stored = quantization.TFLiteModel(small.files()["int8"])(images)
    assert np.abs(felt - stored).mean() < 0.5 * np.abs(stored - exact).mean()


def test_finish_gives_the_plain_model_back():
    model = small.network()
    plain = qat.finish(qat.prepare(model, small.photos()))
    assert {type(layer) for layer in plain.layers} <= {type(layer) for layer in model.layers}
    assert np.abs(plain.predict(small.photos(4), verbose=0) - model.predict(small.photos(4), verbose=0)).max() < 1e-5


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


def test_prepared_models_can_be_saved(tmp_path):
    prepared = qat.prepare(small.network(), small.photos())
    prepared.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.allclose(
        again.predict(small.photos(4), verbose=0), prepared.predict(small.photos(4), verbose=0), atol=1e-6
    )


def tiny(head, sequential=False, units=2):
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Conv2D(4, 3, use_bias=False), keras.layers.BatchNormalization(), keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(units, activation=head, name="head"),
    ]  # fmt: skip
    if sequential:
        return keras.Sequential([keras.Input((8, 8, 3)), *layers])
    x = image = keras.Input((8, 8, 3))
    for layer in layers:
        x = layer(x)
    return keras.Model(image, x)


PHOTOS = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)).astype("float32")


def test_a_sequential_model_is_trained_like_the_functional_one():
    losses = [qat.train(tiny("softmax", way), PHOTOS, PHOTOS, epochs=1)[1]["loss"][0] for way in (False, True)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_fits_the_head():
    """A regression head learns its targets; sigmoid, class indices and logits get the cross-entropy that fits."""
    wanted = PHOTOS.mean((1, 2))[:, :1] / 255
    options = {"epochs": 8, "learning_rate": 1e-2, "loss": "mean_squared_error"}
    trained, history = qat.train(tiny(None, units=1), PHOTOS, PHOTOS, wanted, **options)
    assert history["loss"].iloc[-1] < 0.1 * history["loss"].iloc[0]
    assert trained.output_shape == (None, 1)
    labels = np.arange(32) % 2
    for head, units, targets in (("sigmoid", 1, labels[:, None]), ("sigmoid", 1, labels), ("softmax", 2, labels)):
        assert 0.3 < qat.train(tiny(head, units=units), PHOTOS, PHOTOS, targets, epochs=1)[1]["loss"][0] < 20
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert qat.train(tiny(None), PHOTOS, PHOTOS, labels, epochs=1, loss=logits)[1]["loss"][0] > 0


@pytest.mark.parametrize("head, units, loss", [(None, 1, None), (None, 3, None), (None, 3, "categorical_crossentropy"),
                                               (None, 3, keras.losses.CategoricalCrossentropy(from_logits=True)),
                                               ("tanh", 2, None), ("softmax", 1, None)])  # fmt: skip
def test_a_head_that_fits_no_loss_is_refused(head, units, loss):
    with pytest.raises(ValueError, match=r"ends in .*(pass loss=|use a sigmoid)"):
        qat.train(tiny(head, units=units), PHOTOS, PHOTOS, loss=loss)


def test_a_model_inside_a_model_is_refused_by_name():
    image = keras.Input((8, 8, 3))
    outer = keras.Model(image, keras.layers.Dense(2, activation="softmax")(tiny(None)(image)))
    with pytest.raises(ValueError, match=r"got the model 'functional.*' inside"):
        qat.prepare(outer, PHOTOS)


def test_bad_input():
    image = keras.Input((8, 8, 3))
    lone = keras.Model(
        image, keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization(name="lone")(image))
    )
    with pytest.raises(ValueError, match="'lone' does not directly follow"):
        qat.fold(lone)
    with pytest.raises(ValueError, match="expected a functional model"):
        qat.fold(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="representative photos"):
        qat.prepare(small.network(), None)
    with pytest.raises(ValueError, match="each of 24 photos, got 3"):
        qat.train(small.network(), small.photos(), small.photos(), np.zeros((3, 4)))
