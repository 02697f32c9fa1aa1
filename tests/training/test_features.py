"""Features once for each photo, the cache that keeps them, the linear probe on top."""

import shutil

import numpy as np
import pandas as pd
import pytest
import tiny_training
from PIL import Image
from sklearn.linear_model import LogisticRegression

from utils import models
from utils.datasets import pipeline
from utils.models import networks
from utils.training import features

SIZE = tiny_training.SIZE
LIGHT = pipeline.Augment.light()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny_training.squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    tiny_training.prepare(monkeypatch, tmp_path)
    monkeypatch.setattr(features, "_extractors", {})


def extract(frame, size=SIZE, **options):
    return features.extract("tiny", frame, size, **options)


@pytest.fixture
def passed(monkeypatch):
    """How many photos went through the backbone."""
    count, compute = [0], features._compute

    def counting(extractor, frame, *rest):
        count[0] += len(frame)
        return compute(extractor, frame, *rest)

    monkeypatch.setattr(features, "_compute", counting)
    return count


def test_features_are_those_of_the_extractor_and_each_photo_passes_once(photos, passed):
    frame = photos.part("train")
    found = extract(frame)
    wanted = models.feature_extractor("tiny", SIZE)(pipeline.load_images(frame, SIZE).astype("float32"), training=False)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert found.dtype == np.float32
    assert passed == [len(frame)]
    # Again, in another order, with two new photos: only those pass.
    more = pd.concat([frame.iloc[::-1], photos.part("test").iloc[:2]], ignore_index=True)
    again = extract(more)
    assert passed == [len(frame) + 2]
    np.testing.assert_array_equal(again[: len(frame)], found[::-1])


def test_features_are_keyed_by_content_size_and_weights_not_by_path(photos, passed, monkeypatch, tmp_path):
    frame = photos.part("test")
    found = extract(frame)
    moved = frame.assign(path=[shutil.copy(path, tmp_path / f"moved-{i}.png") for i, path in enumerate(frame["path"])])
    np.testing.assert_array_equal(extract(moved), found)
    assert passed == [len(frame)]
    # Other pixels under an old name are another photo.
    shutil.copy(photos.part("train")["path"][0], moved["path"][0])
    assert not np.allclose(extract(moved[:1]), found[:1])
    passed[0] = 0
    extract(frame, 40)
    monkeypatch.setattr(features, "_extractors", {})
    known = networks._weights
    monkeypatch.setattr(networks, "_weights", lambda *arguments: (known(*arguments)[0], None))  # random weights
    extract(frame)
    assert passed == [2 * len(frame)]


def test_views_depend_on_the_photo_and_the_seed_alone(photos):
    frame = photos.part("test")
    views = extract(frame, views=2, augment=LIGHT, seed=1)
    assert views.shape == (3, len(frame), 12)
    np.testing.assert_array_equal(views[0], extract(frame))
    assert not np.allclose(views[1], views[0])
    assert not np.allclose(views[1], views[2])
    alone = extract(frame.iloc[3:4], cache_dir=False, views=2, augment=LIGHT, seed=1)
    np.testing.assert_allclose(alone[:, 0], views[:, 3], rtol=1e-5, atol=1e-5)
    other = extract(frame, views=1, augment=LIGHT, seed=2)
    assert not np.allclose(other[1], views[1])


def test_an_interruption_loses_only_the_block_that_was_not_computed(photos, passed, monkeypatch):
    frame = photos.part("train")
    monkeypatch.setattr(features, "BLOCK", 8)
    load, calls = pipeline.load_images, []

    def failing(some, size):
        calls.append(len(some))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return load(some, size)

    monkeypatch.setattr(pipeline, "load_images", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(frame)
    passed[0] = 0
    extract(frame)
    assert passed == [len(frame) - 16]


def test_a_damaged_cache_is_made_again(photos, passed, tmp_path):
    frame = photos.part("test")
    found = extract(frame)
    (path,) = (tmp_path / "cache").glob("features-*.npz")
    for harm in (b"", path.read_bytes()[:-9], path.read_bytes().replace(b"PK", b"PJ")):
        passed[0] = 0
        path.write_bytes(harm)
        np.testing.assert_array_equal(extract(frame), found)
        assert passed == [len(frame)]


def test_bad_input_is_named(photos, tmp_path):
    frame, broken = photos.part("test"), tmp_path / "broken.png"
    broken.write_bytes(b"not a photo")
    for error, says, some, options in (
        (ValueError, "empty", frame[:0], {}),
        (ValueError, "views=2 needs an augmentation", frame, {"views": 2}),
        (FileNotFoundError, r"nowhere\.png", frame.assign(path="nowhere.png"), {}),
        (ValueError, r"broken\.png", frame[:1].assign(path=str(broken)), {}),
    ):
        with pytest.raises(error, match=says):
            extract(some, **options)
    with pytest.raises(ValueError, match="vgg"):
        features.extract("vgg", frame, SIZE)


def test_a_warm_start_is_calibrated_once_on_the_content_of_training_photos(photos, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "needs_batch_norm", lambda name, weights="auto": True)
    estimated, real, frame = [], models.reestimate_batch_norm, photos.part("train")
    monkeypatch.setattr(
        models, "reestimate_batch_norm", lambda *a, **options: estimated.append(len(a[1])) or real(*a, **options)
    )
    with pytest.raises(ValueError, match="calibration="):
        extract(frame)
    here = frame.assign(path=[shutil.copy(path, tmp_path / f"{i}.png") for i, path in enumerate(frame["path"])])
    found = extract(frame, calibration=here)
    # A new process finds the statistics on disk, and those of other photos under the same names are others.
    features._extractors.clear()
    np.testing.assert_array_equal(extract(frame, calibration=here), found)
    assert estimated == [len(frame)]
    for path in here["path"]:
        Image.new("RGB", (SIZE, SIZE), "red").save(path)
    assert not np.allclose(extract(frame, calibration=here), found)
    monkeypatch.setattr(models, "needs_batch_norm", lambda name, weights="auto": False)
    assert not np.allclose(extract(frame), found)


def test_other_kernels_have_other_statistics(photos, tmp_path):
    frame, statistics = photos.part("train"), []
    for scale in (1, 2):
        model = models.feature_extractor("tiny", SIZE)
        conv = model.get_layer("conv")
        conv.set_weights([scale * weight for weight in conv.get_weights()])
        statistics.append(features.calibrate(model, frame, SIZE, tmp_path).get_layer("norm").get_weights()[3])
    np.testing.assert_allclose(statistics[1], 4 * statistics[0], rtol=1e-3)


# --- the probe --------------------------------------------------------------------------------------------------------


def _clouds(n, d=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(99).normal(0, 1, (classes, d))
    return (centres[labels] + rng.normal(0, 1.2, (n, d))) * np.arange(1, d + 1) + 5, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns_regression_on_standardised_features(classes):
    x, y = _clouds(120, classes=classes)
    probe = features.linear_probe(x, y, classes=range(classes), strengths=(0.05,))
    scaled = (x - x.mean(0)) / x.std(0)
    oracle = LogisticRegression(C=0.05, max_iter=1000).fit(scaled, y)
    assert probe.kernel.shape == (6, classes)
    np.testing.assert_allclose(probe.predict(x), oracle.predict_proba(scaled), atol=2e-3)
    assert probe.predict(x).dtype == np.float32


def test_the_strength_is_the_best_on_validation():
    x, y = _clouds(40, d=30)
    vx, vy = _clouds(300, d=30, seed=1)
    tried = (1e-5, 1e-2, 1e2)
    alone = [features.linear_probe(x, y, vx, vy, classes=range(3), strengths=(one,)) for one in tried]
    probe = features.linear_probe(x, y, vx, vy, classes=range(3), strengths=tried)
    best = max(alone, key=lambda one: one.validation_accuracy)
    assert (probe.strength, probe.validation_accuracy) == (best.strength, best.validation_accuracy)
    assert probe.validation_accuracy == (probe.predict(vx).argmax(1) == vy).mean()
    assert "validation accuracy" in repr(probe)
    assert features.linear_probe(x, y, classes=range(3)).strength == 3e-3  # the middle, where nothing can choose


def test_names_and_weights():
    x, y = _clouds(60)
    plain = features.linear_probe(x, y, classes=range(3), strengths=(0.1,))
    named = features.linear_probe(x, np.array(list("abc"))[y], classes="abc", strengths=(0.1,))
    np.testing.assert_array_equal(named.kernel, plain.kernel)
    weights = np.where(y == 0, 20.0, 1.0)
    weighted = features.linear_probe(x, y, classes=range(3), strengths=(0.1,), sample_weight=weights)
    assert (weighted.predict(x).argmax(1) == 0).sum() > (plain.predict(x).argmax(1) == 0).sum()


@pytest.mark.parametrize(
    ("labels", "classes", "says"),
    [("ababab", ("a", "b", "hat"), "none of hat"), ("axaxax", ("a", "b"), "labels among .* got 'x'")],
)
def test_a_probe_that_cannot_be_fitted_says_why(labels, classes, says):
    with pytest.raises(ValueError, match=says):
        features.linear_probe(np.random.default_rng(0).normal(size=(6, 2)), list(labels), classes=classes)
