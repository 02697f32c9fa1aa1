"""Grad-CAM against class activation maps, which it equals for global pooling followed by one dense layer."""

import numpy as np
import pandas as pd
import pytest

keras = pytest.importorskip("keras")

from utils import evaluation, plots  # noqa: E402


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 48, 3))
    maps = keras.layers.Conv2D(6, 3, strides=4, padding="same", activation="relu", name="conv")(image)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled_features")(maps)
    return keras.Model(image, keras.layers.Dense(3, activation="softmax", name="classifier")(pooled))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3)).astype(np.uint8)


def class_activation(model, images, number):
    """Zhou et al. 2016: sum over channels of dense weight times map, computed in numpy, upsampled by TensorFlow."""
    import tensorflow as tf

    maps = keras.Model(model.input, model.get_layer("conv").output)(images.astype(np.float32)).numpy()
    weights = model.get_layer("classifier").kernel.numpy()[:, number]
    heat = np.maximum((maps * weights).sum(-1, keepdims=True), 0)
    heat = tf.image.resize(heat, images.shape[1:3]).numpy()[..., 0]
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_equals_class_activation_maps(model, images, number):
    found = evaluation.gradcam(model, images, class_index=number, batch_size=2)
    assert found.grid == (8, 12)
    assert np.allclose(found.heat, class_activation(model, images, number), atol=1e-4)
    assert found.heat.shape == (5, 32, 48)


def test_explains_what_the_model_predicts(model, images):
    found = evaluation.gradcam(model, images)
    probabilities = model(images.astype(np.float32)).numpy()
    assert np.array_equal(found.class_index, probabilities.argmax(-1))
    assert np.allclose(found.probability, probabilities.max(-1))


def test_each_photo_is_explained_for_its_own_class(model, images):
    wanted = [0, 1, 2, 2, 0]
    together = evaluation.gradcam(model, images, class_index=wanted)
    alone = [
        evaluation.gradcam(model, image[None], class_index=number).heat[0]
        for image, number in zip(images, wanted, strict=True)
    ]
    assert np.allclose(together.heat, alone, atol=1e-5)


def test_heat_lies_where_the_evidence_is():
    image = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(2, 4, strides=4, use_bias=False, name="conv")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)  # found without the name pooled_features
    model = keras.Model(image, keras.layers.Dense(2, activation="softmax")(pooled))
    red, blue = np.zeros((2, 4, 4, 3))
    red[..., 0] = blue[..., 2] = 1 / 1000
    model.layers[1].set_weights([np.stack([red, blue], -1)])
    model.layers[-1].set_weights([np.array([[1.0, -1.0], [-1.0, 1.0]]), np.zeros(2)])
    photo = np.zeros((1, 32, 32, 3))
    photo[0, :16, :16, 0] = 255  # red top left
    photo[0, 16:, 16:, 2] = 255  # blue bottom right
    heat = evaluation.gradcam(model, photo, class_index=0).heat[0]
    assert heat[:12, :12].min() == 1.0
    assert heat[20:, 20:].max() == 0.0
    assert evaluation.gradcam(model, photo, class_index=1).heat[0][20:, 20:].min() == 1.0


def test_a_frozen_model_and_one_that_ends_in_flatten_work_too(images):
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 48, 3))
    maps = keras.layers.Conv2D(4, 3, padding="same", activation="relu", trainable=False)(image)
    hidden = keras.layers.MaxPooling2D(4, name="last_map")(maps)
    out = keras.layers.Softmax()(keras.layers.Dense(2, trainable=False)(keras.layers.Flatten()(hidden)))
    model = keras.Model(image, out)
    assert not model.trainable_weights
    found = evaluation.gradcam(model, images)
    assert found.layer == "last_map"
    assert (found.heat.max(axis=(1, 2)) > 0).any()


def test_a_map_in_front_of_every_weight_works(images):
    image = keras.Input((32, 48, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.AveragePooling2D(4)(image))
    found = evaluation.gradcam(keras.Model(image, keras.layers.Dense(2, activation="softmax")(pooled)), images)
    assert found.grid == (8, 12)


def test_a_sure_model_still_has_a_gradient(model, images):
    sure = keras.models.clone_model(model)
    sure.set_weights([weight * (1000 if "classifier" in variable.path else 1)
                      for weight, variable in zip(model.get_weights(), model.weights, strict=True)])  # fmt: skip
    found = evaluation.gradcam(sure, images)
    assert found.probability.min() > 0.999
    assert (found.heat.max(axis=(1, 2)) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "conv9"}, "no layer 'conv9'"),
        ({"layer": "classifier"}, "no map"),
        ({"class_index": 3}, "class_index must lie between 0 and 2, got 3"),
    ],
)
def test_bad_requests_are_named(model, images, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.gradcam(model, images, **arguments)


def test_bad_photos_are_refused(model):
    for photos in (np.zeros((32, 48, 3)), pd.DataFrame({"path": []})):
        with pytest.raises(ValueError, match="expected at least one photo"):
            evaluation.gradcam(model, photos)


def test_a_frame_of_mistakes_brings_its_captions(tmp_path, images):
    from PIL import Image

    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "a.png")
    frame = pd.DataFrame({"path": [str(tmp_path / "a.png")], "label": ["hat"], "true": ["hat"], "predicted": ["shirt"]})
    image = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(2, 3)(image)
    model = keras.Model(image, keras.layers.Dense(2, "softmax")(keras.layers.GlobalAveragePooling2D()(maps)))
    found = evaluation.gradcam(model, frame)
    assert found.captions[0].startswith("hat, called shirt (")
    assert plots.gradcam_overlay(found).get_size_inches()[0] > 2
