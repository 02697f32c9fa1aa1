"""From files to batches: the same pixels, the same batches from the same seed, odd files handled or named."""

import gc
import logging
import pathlib
import weakref

import numpy as np
import pandas as pd
import pytest
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
    rows = []
    for number in range(22):
        path = tmp_path / f"{number}.jpg"
        picture(path, number)
        rows.append((str(path), "ab"[number % 2], str(number)))
    return pd.DataFrame(rows, columns=["path", "label", "id"])


# many photos


def test_load_images_keeps_the_order_and_names_the_bad_one(frame):
    images = pipeline.load_images(frame, 16)
    assert images.shape == (22, 16, 16, 3) and images.dtype == np.uint8
    for row in (0, 7, 21):
        assert (images[row] == pipeline.decode(frame["path"][row], 16)).all()
    with pathlib.Path(frame["path"][13]).open("r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"13\.jpg cannot be decoded"):
        pipeline.load_images(frame, 16)


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


def collected(data):
    batches = [(images.numpy(), labels.numpy()) for images, labels in data]
    return [images for images, _ in batches], [labels for _, labels in batches]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_batches_hold_every_photo_once_with_its_label(frame, cache):
    data = pipeline.batches(frame, ["a", "b"], 16, batch_size=8, cache=cache, augment="strong")  # in training only
    assert len(data) == 3
    images, labels = collected(data)
    assert [len(batch) for batch in images] == [8, 8, 6]
    assert images[0].dtype == np.float32
    assert (np.concatenate(images) == pipeline.load_images(frame, 16)).all()
    assert (np.concatenate(labels) == np.eye(2)[np.arange(22) % 2]).all()


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_training_batches_are_fixed_by_seed_and_epoch(frame, cache):
    def make(**options):
        options = {"batch_size": 5, "training": True, "augment": "light", "cache": cache} | options
        return pipeline.batches(frame, ["a", "b"], 16, **options)

    data = make(seed=3)
    first, second = (np.concatenate(collected(data)[0]) for _ in range(2))
    again = make(seed=3)
    assert (np.concatenate(collected(again)[0]) == first).all()
    assert (np.concatenate(collected(again)[0]) == second).all()
    assert not (first == second).all()
    assert (np.concatenate(collected(make(seed=3, first_epoch=1))[0]) == second).all()
    assert not (np.concatenate(collected(make(seed=4))[0]) == first).all()
    # the batch size cuts the same stream elsewhere
    assert np.allclose(np.concatenate(collected(make(seed=3, batch_size=22))[0]), first, atol=1e-3)


def test_an_epoch_can_be_named_by_a_callable(frame):
    epoch = [7]
    data = pipeline.batches(frame, ["a", "b"], 16, training=True, first_epoch=lambda: epoch[0])
    first = np.concatenate(collected(data)[0])
    assert (np.concatenate(collected(data)[0]) == first).all()
    epoch[0] = 8
    assert not (np.concatenate(collected(data)[0]) == first).all()


def test_every_epoch_of_fit_is_one_pass(frame):
    """Keras takes a pass an epoch and none in between, so a resumed run sees what an undisturbed one would have."""
    passes = []
    data = pipeline.batches(
        frame, ["a", "b"], 16, batch_size=8, training=True, first_epoch=lambda: passes.append(0) or len(passes)
    )
    model = tf.keras.Sequential([tf.keras.layers.Flatten(), tf.keras.layers.Dense(2, "softmax")])  # not built yet
    model.compile("sgd", "categorical_crossentropy")
    model.fit(data, epochs=3, verbose=0, shuffle=False)
    built = len(passes)
    model.fit(data, epochs=3, verbose=0, shuffle=False)
    assert len(passes) - built == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": ["a"]}, "labels must be among the classes a, got 'b'"),
        ({"cache": "tape"}, "cache must be .*, got 'tape'"),
        ({"augment": "wild", "training": True}, "augment must be .*, got 'wild'"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ],
)
def test_bad_options_are_named(frame, options, reason):
    with pytest.raises(ValueError, match=reason):
        pipeline.batches(frame, **{"classes": ["a", "b"], "input_size": 16, **options})


def test_empty_frames_and_missing_columns_are_named(frame):
    with pytest.raises(ValueError, match="a frame to make batches of needs rows"):
        pipeline.batches(frame[:0], ["a", "b"], 16)
    with pytest.raises(ValueError, match="needs the column path"):
        pipeline.batches(frame.drop(columns="path"), ["a", "b"], 16)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_undecodable_photo_is_named_not_passed_over(frame, cache):
    with pathlib.Path(frame["path"][3]).open("r+b") as file:
        file.truncate(150)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=r"3\.jpg cannot be decoded"):
        list(pipeline.batches(frame, ["a", "b"], 16, cache=cache))


# caches


def decodes(monkeypatch):
    seen = []
    monkeypatch.setattr(photo, "read_photo", lambda *a: seen.append(a[0]) or original(*a))
    return seen


original = photo.read_photo


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cached_photos_are_decoded_once(frame, monkeypatch, cache):
    seen = decodes(monkeypatch)
    data = pipeline.batches(frame, ["a", "b"], 16, cache=cache)
    for _ in range(3):
        collected(data)
    assert len(seen) == 22


def test_the_disk_cache_outlives_the_process_and_knows_the_content(frame, monkeypatch, tmp_path):
    first = collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]
    seen = decodes(monkeypatch)
    again = collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]
    assert (np.concatenate(again) == np.concatenate(first)).all() and seen == []
    picture(frame["path"][5], 77)
    changed = collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]
    assert not (np.concatenate(changed)[5] == np.concatenate(first)[5]).all()
    assert len(list((tmp_path / "cache").glob("photos-*.npy"))) == 2


def test_the_disk_cache_is_keyed_by_bytes_wherever_they_lie(frame, tmp_path, monkeypatch):
    facts = audit.check_photos(frame["path"], tmp_path)
    here = frame.assign(sha256=facts["sha256"].to_numpy())
    moved = here.assign(path=[str(tmp_path / "b" / path.rsplit("/", 1)[1]) for path in here["path"]])
    pipeline.batches(here, ["a", "b"], 16, cache="disk")
    seen = decodes(monkeypatch)
    pipeline.batches(moved, ["a", "b"], 16, cache="disk")  # the files are not even there
    assert seen == []


def test_auto_says_which_cache_it_chose(frame, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "utils.datasets.pipeline")
    pipeline.batches(frame, ["a", "b"], 16)
    assert "22 photos at 16 px go to the memory cache: " in caplog.text
    monkeypatch.setattr(pipeline, "_free_memory", lambda: 22 * 16 * 16 * 3 * 3)
    pipeline.batches(frame, ["a", "b"], 17)
    assert "go to the disk cache: " in caplog.text
    assert pipeline._free_memory() > 0


def test_memory_is_given_back(frame):
    data = pipeline.batches(frame, ["a", "b"], 16, cache="memory", training=True, augment="light")
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


def test_no_range_is_no_transform():
    images = RNG.integers(0, 255, (3, 20, 20, 3), np.uint8)
    assert np.abs(transformed(images, pipeline.Augment(), 0).numpy() - images).max() < 1e-3


def test_flip_mirrors_about_half_of_the_photos_exactly():
    images = RNG.integers(0, 255, (64, 9, 9, 3), np.uint8)
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


def test_rotation_and_zoom_are_what_they_say():
    matrices, _ = pipeline.random_transforms(pipeline.Augment(rotation=20, zoom=0.3), [(i,) for i in range(500)], 64)
    linear = matrices[:, [0, 1, 3, 4]].reshape(-1, 2, 2)
    scale = 1 / np.sqrt(np.abs(np.linalg.det(linear)))
    angle = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 1, 1]))
    assert 0.7 <= scale.min() < 0.72 and 1.28 < scale.max() <= 1.3
    assert -20.01 <= angle.min() < -19 and 19 < angle.max() <= 20.01
    # the centre of the photo stays the centre
    centre = linear @ np.array([31.5, 31.5]) + matrices[:, [2, 5]]
    assert np.abs(centre - 31.5).max() < 1e-3


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


def test_a_photos_transform_does_not_depend_on_its_company():
    images = RNG.integers(0, 255, (6, 16, 16, 3), np.uint8)
    keys = [(5, 1, row) for row in range(6)]
    drawn, alone = (pipeline.random_transforms(pipeline.Augment.strong(), some, 16) for some in (keys, keys[4:5]))
    whole, one = pipeline.apply_transforms(images, *drawn), pipeline.apply_transforms(images[4:5], *alone)
    assert (whole.numpy()[4] == one.numpy()[0]).all()


@pytest.mark.parametrize("setting", [{"rotation": -1}, {"zoom": 0.95}, {"shift": 2}, {"brightness": 1.5}])
def test_ranges_that_make_no_sense_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 to .*, got {setting[name]}"):
        pipeline.Augment(**setting)
