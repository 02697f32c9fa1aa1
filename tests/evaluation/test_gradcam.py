"""Grad-CAM against class activation maps, which it equals for global pooling followed by one dense layer."""

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils import evaluation, plots

L = keras.layers
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    image = keras.Input((32, 48, 3))
    maps = L.Conv2D(6, 3, strides=4, padding="same", activation="relu", name="conv")(image)
    pooled = L.GlobalAveragePooling2D(name="pooled_features")(maps)
    return keras.Model(image, L.Dense(3, activation="softmax", name="classifier")(pooled))


def class_activation(model, number):
    """Zhou et al. 2016: sum over channels of dense weight times map, computed in numpy, upsampled by TensorFlow."""
    import tensorflow as tf

    maps = keras.Model(model.input, model.get_layer("conv").output)(IMAGES.astype(np.float32)).numpy()
    weights = model.get_layer("classifier").kernel.numpy()[:, number]
    heat = np.maximum((maps * weights).sum(-1, keepdims=True), 0)
    heat = tf.image.resize(heat, IMAGES.shape[1:3]).numpy()[..., 0]
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-12)


def test_equals_class_activation_maps(model):
    expected = np.stack([class_activation(model, number) for number in range(3)])
    for number in range(3):
        found = evaluation.gradcam(model, IMAGES, class_index=number)
        assert found.grid == (8, 12) and np.allclose(found.heat, expected[number], atol=1e-4)
    each = evaluation.gradcam(model, IMAGES, class_index=[0, 1, 2, 2, 0])
    assert np.allclose(each.heat, expected[[0, 1, 2, 2, 0], range(5)], atol=1e-4)
    probabilities = model(IMAGES.astype(np.float32)).numpy()
    found = evaluation.gradcam(model, IMAGES)  # explains what the model predicts
    assert np.array_equal(found.class_index, probabilities.argmax(-1))
    assert np.allclose(found.probability, probabilities.max(-1))


def test_heat_lies_where_the_evidence_is():
    image = keras.Input((32, 32, 3))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(2, 4, strides=4, use_bias=False)(image))  # not named pooled_features
    model = keras.Model(image, L.Dense(2, activation="softmax")(pooled))
    red, blue = np.zeros((2, 4, 4, 3))
    red[..., 0] = blue[..., 2] = 1 / 1000
    model.layers[1].set_weights([np.stack([red, blue], -1)])
    model.layers[-1].set_weights([np.array([[1.0, -1.0], [-1.0, 1.0]]), np.zeros(2)])
    photo = np.zeros((1, 32, 32, 3))
    photo[0, :16, :16, 0] = 255  # red top left
    photo[0, 16:, 16:, 2] = 255  # blue bottom right
    heat = evaluation.gradcam(model, photo, class_index=0).heat[0]
    assert heat[:12, :12].min() == 1.0 and heat[20:, 20:].max() == 0.0
    assert evaluation.gradcam(model, photo, class_index=1).heat[0][20:, 20:].min() == 1.0


def test_a_frozen_model_one_that_ends_in_flatten_and_a_map_in_front_of_every_weight_work_too():
    image = keras.Input((32, 48, 3))
    maps = L.Conv2D(4, 3, padding="same", activation="relu", trainable=False)(image)
    hidden = L.MaxPooling2D(4, name="last_map")(maps)
    frozen = keras.Model(image, L.Softmax()(L.Dense(2, trainable=False)(L.Flatten()(hidden))))
    found = evaluation.gradcam(frozen, IMAGES)
    assert (found.layer, found.grid) == ("last_map", (8, 12)) and (found.heat.max(axis=(1, 2)) > 0).any()
    pooled = L.GlobalAveragePooling2D()(L.AveragePooling2D(4)(image))
    assert evaluation.gradcam(keras.Model(image, L.Dense(2, activation="softmax")(pooled)), IMAGES).grid == (8, 12)


def test_a_sure_model_still_has_a_gradient(model):
    sure = keras.models.clone_model(model)
    sure.set_weights([weight * (1000 if "classifier" in variable.path else 1)
                      for weight, variable in zip(model.get_weights(), model.weights, strict=True)])  # fmt: skip
    found = evaluation.gradcam(sure, IMAGES)
    assert found.probability.min() > 0.999 and (found.heat.max(axis=(1, 2)) > 0).all()


ENDS = {
    "softmax": lambda x: L.Dense(3, activation="softmax", name="dense")(x),
    "sigmoid": lambda x: L.Dense(3, activation="sigmoid", name="dense")(x),
    "layer": lambda x: L.Softmax()(L.Dense(3, name="dense")(x)),
    "operation": lambda x: keras.ops.softmax(L.Dense(3, name="dense")(x)),
    "operation of units": lambda x: keras.ops.sigmoid(L.Dense(3, name="dense")(x)),
    "dropout": lambda x: L.Dropout(0.5)(L.Activation("softmax")(L.Dense(3, name="dense")(x))),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_score_is_the_logit_whatever_squashes_it(end):
    # Logits are 1000 times the mean red, green, blue: probabilities are flat, and class c is explained by its colour.
    image = keras.Input((32, 48, 3))
    model = keras.Model(image, ENDS[end](L.GlobalAveragePooling2D()(L.Rescaling(1.0, name="map")(image))))
    model.get_layer("dense").set_weights([1000 * np.eye(3), np.zeros(3)])
    found = evaluation.gradcam(model, IMAGES, class_index=1)
    expected = IMAGES[..., 1] / IMAGES[..., 1].max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found.heat, expected, atol=1e-5)


def test_sequential_models_and_mixed_precision_work_too():
    for policy in ("float32", "mixed_float16"):
        parts = [L.Conv2D(4, 3, dtype=policy), L.GlobalAveragePooling2D(dtype=policy),
                 L.Dense(2, "softmax", dtype=policy)]  # fmt: skip
        model = keras.Sequential([keras.Input((32, 48, 3)), *parts])
        assert evaluation.gradcam(model, IMAGES / 255).grid == (30, 46)


def test_a_nested_backbone_and_a_pooling_of_two_models_are_looked_at_in_this_model():
    inner, image, other = (keras.Input((32, 48, 3)) for _ in range(3))
    backbone = keras.Model(inner, L.Conv2D(4, 3, strides=2, activation="relu")(inner), name="backbone")
    pool = L.GlobalAveragePooling2D()
    pool(other)
    model = keras.Model(image, L.Dense(2, "softmax")(pool(backbone(image))))
    found, named = evaluation.gradcam(model, IMAGES), evaluation.gradcam(model, IMAGES, layer="backbone")
    assert found.grid == named.grid == (15, 23) and np.array_equal(found.heat, named.heat)


def test_a_model_without_a_graph_or_with_several_outputs_is_refused(model):
    for other in (keras.Sequential([L.Conv2D(2, 3)]), keras.Model(model.inputs, [model.output, model.output])):
        with pytest.raises(ValueError, match="of one input and one output, got"):
            evaluation.gradcam(other, IMAGES)


@pytest.mark.parametrize(
    ("photos", "arguments", "message"),
    [
        (IMAGES, {"layer": "conv9"}, "no layer 'conv9'"),
        (IMAGES, {"layer": "classifier"}, "no map"),
        (IMAGES, {"class_index": 3}, "class_index must lie between 0 and 2, .* got 3"),
        (IMAGES, {"class_index": 1.7}, "class_index must lie between 0 and 2, .* got 1.7"),
        (IMAGES, {"class_index": True}, "class_index must lie between 0 and 2, .* got True"),
        (IMAGES, {"class_index": [0] * (len(IMAGES) + 1)}, "one for each of the"),
        (np.zeros((32, 48, 3)), {}, "expected at least one photo"),
        (pd.DataFrame({"path": []}), {}, "expected at least one photo"),
    ],
)
def test_bad_requests_are_named(model, photos, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.gradcam(model, photos, **arguments)


def test_a_frame_of_mistakes_brings_its_captions(tmp_path):
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(tmp_path / "a.png")
    frame = pd.DataFrame({"path": [str(tmp_path / "a.png")], "label": ["hat"], "true": ["hat"], "predicted": ["shirt"]})
    image = keras.Input((32, 32, 3))
    model = keras.Model(image, L.Dense(2, "softmax")(L.GlobalAveragePooling2D()(L.Conv2D(2, 3)(image))))
    found = evaluation.gradcam(model, frame)
    assert found.captions[0].startswith("hat, called shirt (")
    assert plots.gradcam_overlay(found).get_size_inches()[0] > 2
