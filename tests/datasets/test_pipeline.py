"""From files to batches: the same pixels, the same batches from the same seed, odd files handled or named."""

import dataclasses
import gc
import logging
import pathlib
import weakref

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image

from utils.classify import photo
from utils.datasets import audit, pipeline, splits

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path / "cache"))


def picture(path, number):
    pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def frame(tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(22)]
    for number, path in enumerate(paths):
        picture(path, number)
    return pd.DataFrame({"path": paths, "label": list("ab" * 11), "id": map(str, range(22))})


def damage(path):
    with pathlib.Path(path).open("r+b") as file:
        file.truncate(200)


def batches(frame, **options):
    return pipeline.batches(frame, **{"classes": ["a", "b"], "input_size": 16} | options)


def collected(data):
    """The images and the labels of all batches, each as one array."""
    return [np.concatenate([part.numpy() for part in parts]) for parts in zip(*data, strict=True)]


# many photos


def test_load_images_keeps_the_order_and_names_the_bad_one(frame):
    images = pipeline.load_images(frame, 16)
    assert images.shape == (22, 16, 16, 3) and images.dtype == np.uint8
    for row in (0, 7, 21):
        assert (images[row] == pipeline.decode(frame["path"][row], 16)).all()
    damage(frame["path"][13])
    with pytest.raises(ValueError, match=r"13\.jpg cannot be decoded"):
        pipeline.load_images(frame, 16)
    for paths in (list(frame["path"]), frame["path"]):
        with pytest.raises(ValueError, match="photos must be a DataFrame with the column path"):
            pipeline.load_images(paths, 16)
    for size in ((16, 16), 16.0, 0):
        with pytest.raises(ValueError, match="input_size must be a positive integer, got"):
            pipeline.load_images(frame, size)


def test_copies_are_fixed_transforms(frame):
    path = frame["path"][0]
    plain, one, two = (pipeline.decode(path, 32, copy) for copy in (0, 1, 2))
    assert (pipeline.decode(path, 32, 1) == one).all()
    assert not (one == plain).all() and not (one == two).all()
    balanced = splits.balance(frame.assign(split="train"), at_most=25)
    images = pipeline.load_images(balanced, 32)
    for row in balanced.index[(balanced["path"] == path) & (balanced["copy"] == 1)]:
        assert (images[row] == one).all()
    assert len(np.unique(images.reshape(50, -1), axis=0)) == 50


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_batches_hold_every_photo_once_with_its_label(frame, cache):
    data = batches(frame, batch_size=8, cache=cache, augment="strong")  # in training only
    assert len(data) == 3 and [len(images) for images, _ in data] == [8, 8, 6]
    images, labels = collected(data)
    assert images.dtype == np.float32
    assert (images == pipeline.load_images(frame, 16)).all()
    assert (labels == np.eye(2)[np.arange(22) % 2]).all()


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_training_batches_are_fixed_by_seed_and_epoch(frame, cache):
    def make(**options):
        return batches(frame, **{"batch_size": 5, "training": True, "augment": "light", "cache": cache} | options)

    def images(data):
        return collected(data)[0]

    data, again = make(seed=3), make(seed=3)
    first, second = images(data), images(data)
    assert (images(again) == first).all() and (images(again) == second).all()
    assert not (first == second).all()
    assert (images(make(seed=3, first_epoch=1)) == second).all()
    assert not (images(make(seed=4)) == first).all()
    # the batch size cuts the same stream elsewhere
    assert np.allclose(images(make(seed=3, batch_size=22)), first, atol=1e-3)
    # a callable may name the epoch
    epoch = [0]
    named = make(seed=3, first_epoch=lambda: epoch[0])
    assert (images(named) == first).all() and (images(named) == first).all()
    epoch[0] = 1
    assert (images(named) == second).all()


def test_every_epoch_of_fit_is_one_pass(frame):
    """Keras takes a pass an epoch and none in between, so a resumed run sees what an undisturbed one would have."""
    passes = []
    data = batches(frame, batch_size=8, training=True, first_epoch=lambda: passes.append(0) or len(passes))
    model = tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(2, "softmax")])  # not built yet
    model.compile("sgd", "categorical_crossentropy")
    model.fit(data, epochs=3, verbose=0, shuffle=False)
    built = len(passes)
    model.fit(data, epochs=3, verbose=0, shuffle=False)
    assert len(passes) - built == 3


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda frame: frame, {"classes": ["a"]}, "expected labels among .'a',., got 'b'"),
        (lambda frame: frame, {"classes": {"a", "b"}}, "classes must be a list in the order of the numbers, got a set"),
        (lambda frame: frame.assign(label=None), {}, "needs a label in every row"),
        (lambda frame: frame, {"cache": "tape"}, "cache must be .*, got 'tape'"),
        (lambda frame: frame, {"augment": "wild", "training": True}, "augment must be .*, got 'wild'"),
        (lambda frame: frame, {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        (lambda frame: frame[:0], {}, "a frame to make batches of needs rows"),
        (lambda frame: frame.drop(columns="path"), {}, "needs the column path"),
    ],
)
def test_bad_frames_and_options_are_named(frame, change, options, reason):
    with pytest.raises(ValueError, match=reason):
        batches(change(frame), **options)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_undecodable_photo_is_named_not_passed_over(frame, cache):
    damage(frame["path"][3])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"3\.jpg cannot be decoded"):
        list(batches(frame, cache=cache))


# caches


@pytest.fixture
def decoded(monkeypatch):
    """The photos that are decoded, in a list that grows."""
    seen, read = [], photo.read_photo
    monkeypatch.setattr(photo, "read_photo", lambda *a: seen.append(a[0]) or read(*a))
    return seen


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_photos_are_decoded_once(frame, decoded, cache):
    data = batches(frame, cache=cache)
    for _ in range(3):
        collected(data)
    assert len(decoded) == 22


def test_the_disk_cache_outlives_the_process_and_is_keyed_by_content(frame, decoded, tmp_path):
    first = collected(batches(frame, cache="disk"))[0]
    decoded.clear()
    assert (collected(batches(frame, cache="disk"))[0] == first).all() and decoded == []
    picture(frame["path"][5], 77)
    assert not (collected(batches(frame, cache="disk"))[0][5] == first[5]).all()
    assert len(list((tmp_path / "cache").glob("photos-*.npy"))) == 2
    here = frame.assign(sha256=audit.check_photos(frame["path"], tmp_path)["sha256"].to_numpy())
    batches(here, cache="disk")
    decoded.clear()
    batches(here.assign(path="/nowhere/" + here["id"]), cache="disk")  # known by their bytes, wherever they lie
    assert decoded == []


def test_auto_says_which_cache_it_chose(frame, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "utils.datasets.pipeline")
    batches(frame)
    assert "22 photos at 16 px go to the memory cache: " in caplog.text
    monkeypatch.setattr(pipeline, "_free_memory", lambda: 22 * 16 * 16 * 3 * 3)
    batches(frame, input_size=17)
    assert "go to the disk cache: " in caplog.text


def test_memory_is_given_back(frame):
    data = batches(frame, cache="memory", training=True, augment="light")
    collected(data)
    array = weakref.ref(pipeline._in_memory[pipeline._key(frame, 16)])
    assert array() is not None
    del data
    gc.collect()
    assert array() is None


# random transforms


def transformed(images, augment, seed):
    keys = [(seed, number) for number in range(len(images))]
    return pipeline.apply_transforms(images, *pipeline.random_transforms(augment, keys, images.shape[1]))


def test_no_range_is_no_transform_and_a_flip_mirrors_about_half_of_the_photos_exactly():
    images = RNG.integers(0, 255, (64, 9, 9, 3), np.uint8)
    assert np.abs(transformed(images, pipeline.Augment(), 0).numpy() - images).max() < 1e-3
    out = transformed(images, pipeline.Augment(flip=True), 1).numpy()
    same = np.isclose(out, images).all((1, 2, 3))
    mirrored = np.isclose(out, images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all() and 20 < mirrored.sum() < 44


@pytest.mark.parametrize(
    ("setting", "measure", "low", "high"),
    [
        ({"brightness": 0.2}, lambda x: x.mean((1, 2, 3)) / 100, 0.8, 1.2),
        ({"shift": 0.25}, lambda x: x[:, 30, :, 0].argmax(1) / 60 - 0.5, -0.26, 0.26),
    ],
)
def test_ranges_are_filled_and_kept(setting, measure, low, high):
    images = np.full((200, 61, 61, 3), 100.0 if "brightness" in setting else 0.0, np.float32)
    if "shift" in setting:
        images[:, :, 30] = 255  # a line, whose place tells the shift
    values = measure(transformed(images, pipeline.Augment(**setting), 2).numpy())
    assert values.min() >= low - 0.01 and values.max() <= high + 0.01
    assert values.max() - values.min() > 0.85 * (high - low)


def linear_parts(augment, keys):
    """(n, 2, 2) linear parts, output (x, y) to input (x, y), of transforms that leave the centre where it is."""
    matrices, _ = pipeline.random_transforms(augment, keys, 64)
    linear = matrices[:, [0, 1, 3, 4]].reshape(-1, 2, 2)
    assert np.abs(linear @ np.array([31.5, 31.5]) + matrices[:, [2, 5]] - 31.5).max() < 1e-3
    return linear


def test_rotation_and_zoom_are_what_they_say():
    linear = linear_parts(pipeline.Augment(rotation=20, zoom=0.3), [(i,) for i in range(500)])
    scale = 1 / np.sqrt(np.abs(np.linalg.det(linear)))
    angle = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 1, 1]))
    assert 0.7 <= scale.min() < 0.72 and 1.28 < scale.max() <= 1.3
    assert -20.01 <= angle.min() < -19 and 19 < angle.max() <= 20.01


def test_a_stretch_is_log_uniform_and_changes_nothing_else():
    keys = [(i,) for i in range(2000)]
    linear = linear_parts(pipeline.Augment(aspect=0.8), keys)
    assert (linear[:, 0, 1] == 0).all() and (linear[:, 1, 0] == 0).all()
    np.testing.assert_allclose(linear[:, 0, 0] * linear[:, 1, 1], 1, rtol=1e-6)  # the area stays
    ratio = np.log(linear[:, 1, 1] / linear[:, 0, 0]) / np.log(1.8)  # width against height, -1..1
    assert scipy.stats.kstest(ratio, scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01
    # In "stretched" photos are stretched before they turn, and what else is drawn is what "light" draws.
    light, stretched = pipeline.Augment.light(), pipeline.Augment.named("stretched")
    assert stretched == dataclasses.replace(light, aspect=0.8)
    before, after = (linear_parts(dataclasses.replace(one, shift=0), keys) for one in (light, stretched))
    np.testing.assert_allclose(after, before * np.diagonal(linear, axis1=1, axis2=2)[..., None], rtol=1e-5, atol=1e-6)


def test_transforms_are_drawn_as_ever():
    """Golden: another transform would be another training under the id of an old one."""
    (matrix,), light = pipeline.random_transforms(pipeline.Augment.strong(), [(7, 0, 4, 21)], 64)
    wanted = [1.12021255, 0.40709990, -13.0688162, -0.40709990, 1.12021255, 8.80899525, 0, 0]
    np.testing.assert_allclose(matrix, wanted, rtol=2e-7)
    np.testing.assert_allclose(light, [[0.95357990, 1.21759224]], rtol=2e-7)


def test_a_quarter_turn_is_numpys_quarter_turn():
    image = RNG.integers(0, 255, (1, 8, 8, 3)).astype(np.float32)
    angle = np.pi / 2
    a, b, c, d = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    matrix = np.array([[a, b, 3.5 - 3.5 * (a + b), c, d, 3.5 - 3.5 * (c + d), 0, 0]], np.float32)
    out = pipeline.apply_transforms(image, matrix, np.ones((1, 2), np.float32)).numpy()
    assert np.allclose(out[0], np.rot90(image[0]), atol=0.1) or np.allclose(out[0], np.rot90(image[0], -1), atol=0.1)


def test_the_edge_is_repeated_outside_the_photo():
    plain = np.full((30, 16, 16, 3), 90, np.uint8)
    moved = transformed(plain, pipeline.Augment(rotation=90, zoom=0.5, shift=0.5), 0).numpy()
    assert np.abs(moved - 90).max() < 1e-3


def test_contrast_keeps_the_mean():
    images = RNG.integers(100, 150, (20, 16, 16, 3)).astype(np.float32)
    out = transformed(images, pipeline.Augment(contrast=0.3), 0).numpy()
    assert np.allclose(out.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.1)
    spread = out.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.69 < spread.min() < 0.8 and 1.2 < spread.max() < 1.31


@pytest.mark.parametrize("setting", [{"rotation": -1}, {"zoom": 0.95}, {"shift": 2}, {"brightness": 1.5}])
def test_ranges_that_make_no_sense_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 to .*, got {setting[name]}"):
        pipeline.Augment(**setting)
