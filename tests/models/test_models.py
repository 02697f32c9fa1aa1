"""The baseline and the transfer models: shape, preprocessing, where the weights come from, parts."""

import dataclasses
import functools
import hashlib
import os

import h5py
import keras
import numpy as np
import pytest
import requests
from keras.src.legacy.saving import legacy_h5_format
from local_server import serving

from utils import models
from utils.models import BACKBONES, WarmStartWarning, WeightsUnavailable, efficientnet_lite, pretrained

REQUESTS_GET = requests.get
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 64, 64, 3)).astype("float32")
IMAGES *= np.array([[1, 0.2, 0.6], [0.3, 1, 0.1], [0.1, 0.1, 1], [1, 1, 1]], "float32")[:, None, None]  # four colours


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """No test may reach beyond this machine, and none may profit from what another one has remembered."""

    def refuse(*_arguments, **_options):
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr("requests.get", refuse)
    monkeypatch.setattr(pretrained, "_failures", {})
    pretrained.warn_once.cache_clear()


@pytest.fixture
def empty_home(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras_home"))
    return tmp_path / "keras_home"


def _random_weights(model, seed=0):
    """Random kernels and statistics of a size that lets signals through 50 layers: none dies, none explodes."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            height, width, channels, _out = layer.kernel.shape
            inputs = height * width * (1 if isinstance(layer, keras.layers.DepthwiseConv2D) else channels)
            kernel = rng.normal(0, np.sqrt(2 / inputs), layer.kernel.shape)
            layer.set_weights([kernel, *layer.get_weights()[1:]])
        elif isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.set_weights(
                [rng.uniform(0.8, 1.2, size), *rng.normal(0, 0.2, (2, *size)), rng.uniform(0.8, 1.2, size)]
            )
        elif isinstance(layer, keras.layers.Normalization):
            layer.set_weights([rng.uniform(0.4, 0.5, 3), rng.uniform(0.2, 0.25, 3), np.zeros((), "int32")])
            layer.finalize_state()
    return model


def _assert_same_features(found, expected):
    """Equal, and worth comparing: finite, and different from photo to photo."""
    found, expected = np.asarray(found), np.asarray(expected)
    spread = expected.std(0).max()
    assert np.isfinite(expected).all() and spread > 1e-6
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.01 * spread)


def _write_h5(model, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as stored:
        legacy_h5_format.save_weights_to_hdf5_group(stored, model)


def pooled(model):
    return keras.Model(model.input, model.get_layer("pooled_features").output)


@functools.cache
def _keras_mobilenet():
    return _random_weights(keras.applications.MobileNetV2((64, 64, 3), include_top=False, weights=None))


@pytest.fixture
def mobilenet_home(empty_home):
    """A weight cache that holds a MobileNetV2 with random weights."""
    _write_h5(_keras_mobilenet(), empty_home / "models" / pretrained.MOBILENET_V2.path().name)
    return empty_home


# --- the baseline -----------------------------------------------------------------------------------------------------


def test_baseline_is_study_as():
    model = models.baseline_cnn(17)
    assert model.count_params() == 2_996_305
    shapes = {layer.name: layer.output.shape[1:] for layer in model.layers}
    wanted = {"conv2d": (222, 222, 128), "conv2d_1": (109, 109, 128), "conv2d_2": (52, 52, 64)}
    assert shapes.items() >= (wanted | {"flatten": (43_264,), "dense": (64,)}).items()
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds[2:11] == ["Conv2D", "BatchNormalization", "MaxPooling2D"] * 3
    assert model.layers[-1].activation is keras.activations.softmax


def test_baseline_takes_pixels_and_gives_probabilities():
    model = models.baseline_cnn(["a", "b", "c"], 32)
    np.testing.assert_allclose(model.get_layer("preprocess")(np.full((1, 1, 1, 3), 255.0)), 1, rtol=1e-6)
    probabilities = np.asarray(model(IMAGES[:, :32, :32]))
    assert probabilities.shape == (4, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


# --- transfer models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "last_conv", "last_activation", "parameters"),
    [
        ("mobilenet_v2", "Conv_1", "out_relu", 2_257_984),
        ("efficientnet_b0", "top_conv", "top_activation", 4_049_571),
        ("efficientnet_lite0", "top_conv", "top_activation", 3_413_024),
    ],
)
def test_a_transfer_model_is_one_flat_graph_with_known_names(name, last_conv, last_activation, parameters):
    model = models.transfer(name, 10, 128, dropout=0.3, weights=None)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.input_shape == (None, 128, 128, 3) and model.output_shape == (None, 10)
    assert model.get_layer("pooled_features").output.shape == (None, 1280)
    assert model.get_layer("dropout").rate == 0.3
    assert model.layers[-1].name == "classifier" and model.layers[-1].dtype_policy.compute_dtype == "float32"
    assert model.count_params() == parameters + 1281 * 10
    assert model.get_layer(last_conv).output.shape == (None, 4, 4, 1280)
    assert model.get_layer(last_activation).output is model.get_layer("pooled_features").input
    if name != "efficientnet_lite0":
        official = getattr(keras.applications, BACKBONES[name].title)(include_top=False, weights=None)
        theirs = [layer.name for layer in official.layers if layer.weights and layer.name[:13] != "normalization"]
        ours = [layer.name for layer in model.layers if layer.weights]
        assert [layer for layer in ours if layer not in ("normalization", "classifier")] == theirs


def test_mobilenet_features_are_keras_own_after_its_own_preprocessing(mobilenet_home):
    pixels = keras.applications.mobilenet_v2.preprocess_input(IMAGES.copy())
    expected = _keras_mobilenet()(pixels, training=False).numpy().mean((1, 2))
    extractor = models.feature_extractor("mobilenet_v2", 64)
    _assert_same_features(extractor(IMAGES), expected)
    assert not extractor.trainable_weights
    # and the classifier holds the very same weights, also at a size for which Keras has no file of its own
    features = pooled(models.transfer("mobilenet_v2", 3, 64))
    np.testing.assert_array_equal(features(IMAGES, training=False), extractor(IMAGES))
    larger = models.feature_extractor("mobilenet_v2", 100).get_layer("Conv_1")
    np.testing.assert_array_equal(larger.get_weights()[0], extractor.get_layer("Conv_1").get_weights()[0])


def test_official_efficientnet_b0_weights_give_what_keras_gives(empty_home, monkeypatch):
    """Keras adds a rescaling together with weights="imagenet"; ours is one graph for all weights, to the same end."""
    stand_in = _random_weights(keras.applications.EfficientNetB0(False, None, input_shape=(64, 64, 3)))
    path = empty_home / "models" / pretrained.EFFICIENTNET_B0.path().name
    _write_h5(stand_in, path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    official = keras.applications.EfficientNetB0(include_top=False, weights="imagenet", input_shape=(64, 64, 3))
    assert sum(isinstance(layer, keras.layers.Rescaling) for layer in official.layers) == 2
    expected = official(IMAGES, training=False).numpy().mean((1, 2))
    _assert_same_features(models.feature_extractor("efficientnet_b0", 64)(IMAGES), expected)
    assert models.weights_source("efficientnet_b0") == "ImageNet (file not verified)"
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "EFFICIENTNET_B0", dataclasses.replace(pretrained.EFFICIENTNET_B0, md5=md5))
    assert models.weights_source("efficientnet_b0") == "ImageNet"


def test_lite0_carries_its_weights_and_preprocessing():
    model = models.transfer("efficientnet_lite0", 3, 64)
    image = keras.Input((64, 64, 3))
    body = efficientnet_lite.load_imagenet(efficientnet_lite.efficientnet_lite0(efficientnet_lite.preprocess(image)))
    expected = np.asarray(body(IMAGES)).mean((1, 2))
    _assert_same_features(pooled(model)(IMAGES, training=False), expected)
    assert models.weights_source("efficientnet_lite0") == "ImageNet"


# --- the warm start ---------------------------------------------------------------------------------------------------


def test_without_its_weights_efficientnet_b0_starts_warm_and_says_so(empty_home):
    with pytest.warns(WarmStartWarning, match="starts from EfficientNet-Lite0's weights, because .* cannot be"):
        model = models.transfer("efficientnet_b0", 3, 64)
    assert models.weights_source("efficientnet_b0") == "warm start from EfficientNet-Lite0"
    assert models.needs_batch_norm("efficientnet_b0") and not models.needs_batch_norm("efficientnet_lite0")
    with pytest.raises(WeightsUnavailable, match="EfficientNetB0's ImageNet weights"):
        models.transfer("efficientnet_b0", 3, 64, weights="imagenet")
    weights = efficientnet_lite.imagenet_weights()
    for name in ("stem_conv", "block3b_dwconv", "top_conv", "top_bn"):
        for ours, theirs in zip(model.get_layer(name).get_weights(), weights[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    expand = model.get_layer("block4a_se_expand")
    gates = expand(np.random.default_rng(0).normal(size=(2, 1, 1, expand.input.shape[-1])))
    np.testing.assert_allclose(gates, 1 / (1 + np.exp(-4)), rtol=1e-6)
    pixels = keras.Model(model.input, model.get_layer("normalization").output)(IMAGES)
    np.testing.assert_allclose(pixels, (IMAGES - 127) / 128, atol=1e-5)


def test_batch_norm_statistics_are_those_of_the_photos():
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Dropout(0.9)(keras.layers.Conv2D(4, 3, name="conv")(image))
    x = keras.layers.BatchNormalization(name="first", trainable=False)(x)
    x = keras.layers.BatchNormalization(name="second", momentum=0.5)(keras.layers.Conv2D(5, 3)(x))
    model = keras.Model(image, x)
    photos = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype="uint8")
    before = [weight.numpy() for weight in model.trainable_weights]
    assert models.reestimate_batch_norm(model, photos, batch_size=10) is model
    seen = np.asarray(model.get_layer("conv")(photos.astype("float32"))).reshape(-1, 4)
    mean, variance = model.get_layer("first").get_weights()[2:]
    np.testing.assert_allclose(mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(variance, seen.var(0), rtol=0.05)  # the mean over batches, not over all at once
    # In inference, the photos now leave the last layer with mean 0 and deviation 1.
    out = np.asarray(model(photos.astype("float32"))).reshape(-1, 5)
    np.testing.assert_allclose(out.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(out.std(0), 1, atol=0.05)
    # And nothing else has changed.
    for old, new in zip(before, model.trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)
    first, second = model.get_layer("first"), model.get_layer("second")
    assert (first.trainable, second.trainable, first.momentum, second.momentum) == (False, True, 0.99, 0.5)
    assert model.layers[2].rate == 0.9


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (8, 32, 32, 3), (64, 64, 3)])
def test_photos_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="needs at least two photos"):
        models.reestimate_batch_norm(models.baseline_cnn(2, 64), np.zeros(shape))


# --- where the weights come from --------------------------------------------------------------------------------------


def test_missing_weights_say_what_to_do_and_the_network_is_asked_once(empty_home, monkeypatch):
    asked, refuse = [], requests.get
    monkeypatch.setattr("requests.get", lambda *arguments, **options: asked.append(1) or refuse(*arguments, **options))
    for _ in range(3):
        with pytest.raises(
            WeightsUnavailable, match=r"MobileNetV2's .* are not at \$KERAS_HOME/models/mobilenet_v2.*put"
        ):
            models.transfer("mobilenet_v2", 10)
    assert len(asked) == 1
    with pytest.raises(WeightsUnavailable, match="downloading was not asked for"):
        models.weights_source("efficientnet_b0", download=False)
    assert len(asked) == 1
    assert models.transfer("mobilenet_v2", 10, 64, weights=None).output_shape == (None, 10)


@pytest.fixture
def public_home(monkeypatch, _no_network):
    """The public home of the weights, played by a server on this machine: a function that puts a file there."""
    monkeypatch.setattr("requests.get", REQUESTS_GET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:

        def put(content, **facts):
            server.answer = lambda handler: handler.send(200, content)
            url = f"{server.url}/weights.h5"
            return pretrained.KerasFile("Some network", url, **{"size_bytes": len(content), **facts})

        yield put


def test_weights_are_fetched_once_and_nothing_else_is_kept(empty_home, public_home, monkeypatch, capsys):
    for facts, word in (({"size_bytes": 9}, "its size differs"), ({"md5": "0" * 32}, "its MD5 differs")):
        monkeypatch.setattr(pretrained, "_failures", {})
        with pytest.raises(WeightsUnavailable, match=word):
            pretrained.find(public_home(b"<html>please log in</html>", **facts))
        assert not list((empty_home / "models").iterdir())
    monkeypatch.setattr(pretrained, "_failures", {})
    file = public_home(b"the weights")
    path = pretrained.find(file)
    assert path == empty_home / "models" / "weights.h5" and path.read_bytes() == b"the weights"
    public_home(b"other weights")
    assert pretrained.find(file).read_bytes() == b"the weights"
    assert str(empty_home) not in capsys.readouterr().err


def test_the_phrase_for_the_weights_is_read_from_the_numbers(mobilenet_home, monkeypatch):
    path = pretrained.MOBILENET_V2.path()
    assert models.weights_source("mobilenet_v2") == "ImageNet (file not verified)"
    official = dataclasses.replace(pretrained.MOBILENET_V2, size_bytes=path.stat().st_size)
    monkeypatch.setattr(pretrained, "MOBILENET_V2", official)
    assert models.weights_source("mobilenet_v2") == "ImageNet"
    with h5py.File(path, "r+") as stored:  # the same file, of the same size, with its kernels in 8 bits
        for name in [name for name in stored if not name.endswith(("BN", "bn"))]:
            for kernel in stored[name].get(name, {}).values() if name in stored[name] else []:
                kernel[...] = np.round(kernel[...] * 100) / 100
    os.utime(path, (1, 1))
    assert models.weights_source("mobilenet_v2") == "ImageNet (8-bit, dequantized)"


@pytest.mark.parametrize("damage", ["truncated", "text", "another network"])
def test_a_damaged_weight_file_is_named(mobilenet_home, damage):
    path = pretrained.MOBILENET_V2.path()
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5_000_000])
    elif damage == "text":
        path.write_text("<html>")
    else:
        _write_h5(models.baseline_cnn(3, 32), path)
    with pytest.raises(ValueError, match=r"1\.0_224_no_top\.h5 is .*delete it"):
        models.transfer("mobilenet_v2", 3, 64)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return models.transfer("mobilenet_v2", 3, 64, weights=None)


def test_frozen_batch_norm_runs_in_inference_mode_and_never_moves():
    model, images = models.baseline_cnn(3, 22), IMAGES[:, :22, :22]
    norm, targets = model.get_layer("batch_normalization"), np.eye(3)[[0, 1, 2, 0]]
    kernel, start = model.get_layer("conv2d").get_weights()[0], norm.get_weights()
    for learns in (False, True):
        models.set_trainable(model, batch_norm=learns)
        model.compile("sgd", "categorical_crossentropy", run_eagerly=True)
        model.train_on_batch(images, targets)
        moved = [not np.array_equal(old, new) for old, new in zip(start, norm.get_weights(), strict=True)]
        assert moved == [learns] * 4
        same = np.allclose(model(images, training=True), model(images, training=False), rtol=1e-4)
        assert same != learns
    assert not np.array_equal(kernel, model.get_layer("conv2d").get_weights()[0])  # the rest did learn


def test_a_probe_becomes_the_head(small):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(1280, 3)), rng.normal(size=3)
    assert models.attach_head(small, kernel, bias) is small
    logits = pooled(small)(IMAGES).numpy() @ kernel + bias
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(small(IMAGES), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected a kernel of shape \(1280, 3\)"):
        models.attach_head(small, kernel.T, bias)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build", [models.baseline_cnn, functools.partial(models.transfer, "mobilenet_v2", weights=None)]
)
@pytest.mark.parametrize(
    ("classes", "size", "word"),
    [
        (10, 21, "input_size must be an integer from .* got 21"), (10, 1025, "input_size"), (1, 64, "from 2 up, got 1"),
        (0, 64, "from 2 up, got 0"), (["a"], 64, "from 2 up, got 1"), (2.5, 64, "from 2 up, got 2.5"),
        ("ab", 64, "sequence of different names, got 'ab'"), (["a", "b", "a"], 64, "different names"),
        (True, 64, "from 2 up, got True"),
    ],
)  # fmt: skip
def test_bad_sizes_and_classes_are_named(build, classes, size, word):
    with pytest.raises(ValueError, match=word):
        build(classes, size)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"backbone": "resnet50"}, "backbone must be one of mobilenet_v2, .*, got 'resnet50'"),
        ({"backbone": None}, "backbone must be one of mobilenet_v2, .*, got None"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan"),
        ({"weights": "warm_start"}, "weights of mobilenet_v2 must be 'auto', 'imagenet' or None, got 'warm_start'"),
        ({"backbone": "efficientnet_b0", "weights": 3}, "weights of efficientnet_b0 must be 'auto', .*, got 3"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        models.transfer(**{"backbone": "mobilenet_v2", "classes": 3, "weights": None} | options)
