"""From files to batches: the same pixels, the same batches from the same seed, odd files handled or named."""

import gc
import io
import logging
import pathlib
import struct
import time
import weakref
import zlib

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.classify import photo
from utils.datasets import audit, augment, pipeline, splits

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path / "cache"))


def smooth(height, width, seed=0):
    """A picture without sharp edges, so that filters of different makers agree."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def frame(tmp_path):
    rows = []
    for number in range(22):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(encoded(smooth(40, 30, number), quality=95))
        rows.append((str(path), "ab"[number % 2], str(number)))
    return pd.DataFrame(rows, columns=["path", "label", "id"])


# one photo


@pytest.mark.parametrize("size", [(400, 533), (711, 400), (60, 50), (224, 224)])
def test_decode_and_resize_agree_with_tensorflow(size):
    data = encoded(smooth(*size), quality=95)
    ours = photo.read_photo(data, 224).astype(int)
    decoded = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    theirs = np.rint(tf.image.resize(decoded, (224, 224), antialias=True).numpy()).astype(int)
    assert np.abs(ours - theirs).max() <= 3
    assert np.abs(ours - theirs).mean() < 0.6


def test_the_resize_is_antialiased_and_squashes():
    stripes = np.zeros((400, 200, 3), np.uint8)
    stripes[::2] = 255
    assert np.abs(photo.read_photo(encoded(stripes, "PNG"), 50).astype(int) - 128).max() <= 5
    half = np.zeros((400, 200, 3), np.uint8)
    half[:, 100:] = 255
    out = photo.read_photo(encoded(half, "PNG"), 20)
    assert (out[:, :9] == 0).all() and (out[:, 11:] == 255).all()


def test_large_jpegs_are_decoded_small_and_look_the_same():
    data = encoded(smooth(2000, 3000), quality=90)
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(photo.read_photo(data, 64) - whole).max() <= 4


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_is_obeyed(turn):
    upright = Image.fromarray(smooth(60, 40))
    upright.paste((255, 0, 0), (0, 0, 12, 12))  # a mark at the top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Pillow transpose that undoes each orientation
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(stored, quality=100, exif=exif, subsampling=0)
    mark = photo.read_photo(data, 40)[:5, :5].reshape(-1, 3).mean(0)
    assert mark[0] > 200 and mark[1] < 60 and mark[2] < 60
    assert photo.check_photo(data)["orientation"] == turn


def test_unusual_kinds_become_rgb():
    base = Image.fromarray(smooth(40, 40))
    cases = {
        "grey": encoded(base.convert("L"), "PNG"),
        "palette": encoded(base.quantize(64), "PNG"),
        "cmyk": encoded(base.convert("CMYK"), quality=95),
        "one bit": encoded(base.convert("1"), "PNG"),
        "webp": encoded(base, "WEBP"),
        "gif": encoded(base, "GIF"),
        "bmp": encoded(base, "BMP"),
        "grey with alpha": encoded(base.convert("LA"), "PNG"),
    }
    for name, data in cases.items():
        out = photo.read_photo(data, 16)
        assert out.shape == (16, 16, 3) and out.dtype == np.uint8, name
        assert photo.check_photo(data)["problem"] == "", name
    near = photo.read_photo(cases["cmyk"], 16).astype(int) - photo.read_photo(encoded(base, "PNG"), 16)
    assert np.abs(near).mean() < 6


def test_sixteen_bits_keep_their_upper_eight():
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    out = photo.read_photo(encoded(Image.fromarray(grey), "PNG"), 64)
    assert np.abs(out[..., 0].astype(int) - (grey >> 8)).max() <= 1


def test_transparency_is_laid_over_white():
    clear = np.zeros((10, 10, 4), np.uint8)
    assert (photo.read_photo(encoded(clear, "PNG"), 8) == 255).all()
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (photo.read_photo(encoded(palette, "PNG", transparency=1), 8) == 255).all()
    assert (photo.read_photo(encoded(palette, "PNG", transparency=0), 8) == [10, 20, 30]).all()


def test_the_first_frame_of_an_animation_counts():
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("GIF", "WEBP", "PNG"):
        out = photo.read_photo(encoded(red, kind, save_all=True, append_images=[blue], lossless=True), 8)
        assert out[..., 0].min() > 200 and out[..., 2].max() < 60, kind


def test_one_pixel_fills_the_square_and_the_name_does_not_matter(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"))
    assert (photo.read_photo(path, 5) == [9, 8, 7]).all()


def test_absurdly_large_images_are_refused_by_their_header():
    for side in (8_000, 30_000, 2_000_000):
        head = struct.pack(">II5B", side, side, 8, 2, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        begin = time.process_time()
        with pytest.raises(ValueError, match="more than 50 megapixels"):
            photo.read_photo(bomb, 224)
        assert "megapixels" in photo.check_photo(bomb)["problem"]
        assert time.process_time() - begin < 1


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_endless_scans_and_endless_files_are_refused(tmp_path, monkeypatch):
    data = encoded(smooth(16, 16), progressive=True)
    scan = data.index(b"\xff\xda")
    with pytest.raises(ValueError, match="more than 100 scans"):
        photo.read_photo(data[:-2] + data[scan:-2] * 60, 16)
    monkeypatch.setattr(photo, "MAX_BYTES", 100)
    (tmp_path / "a.jpg").write_bytes(data)
    for source in (data, tmp_path / "a.jpg"):
        with pytest.raises(ValueError, match="more than 100"):
            photo.read_photo(source, 16)


@pytest.mark.parametrize(
    "data", [b"", b"no photo at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_what_is_no_photo_is_named(tmp_path, data):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.jpg cannot be decoded as a photo \(.+\); replace it, or leave it out"):
        photo.read_photo(path, 16)
    assert photo.check_photo(path)["problem"]


def test_missing_photos_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no photo .*gone"):
        pipeline.decode(tmp_path / "gone.jpg", 16)
    with pytest.raises(ValueError, match="cannot be read"):
        pipeline.decode(tmp_path, 16)


SEEDS = {
    kind: encoded(smooth(24, 20), kind, **options)
    for kind, options in (("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}))
}


@settings(max_examples=150)
@given(st.sampled_from(sorted(SEEDS)), st.integers(0, 2**32), st.integers(1, 8), st.floats(0.01, 1))
def test_mutated_photos_decode_or_are_named(kind, seed, flips, keep):
    data, rng = bytearray(SEEDS[kind]), np.random.default_rng(seed)
    for _ in range(flips):
        data[rng.integers(len(data))] = rng.integers(256)
    data = bytes(data[: max(1, int(keep * len(data)))])
    try:
        out = photo.read_photo(data, 16)
    except ValueError as error:
        assert str(error).startswith("the photo cannot be decoded")
    else:
        assert out.shape == (16, 16, 3)
    photo.check_photo(data)


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
    row = balanced.index[(balanced["path"] == path) & (balanced["copy"] == 1)]
    if len(row):
        assert (images[row[0]] == one).all()
    assert len(np.unique(images.reshape(50, -1), axis=0)) == 50


def collected(data):
    batches = [(images.numpy(), labels.numpy()) for images, labels in data]
    return [images for images, _ in batches], [labels for _, labels in batches]


@pytest.mark.parametrize("cache", ["memory", "disk", None])
def test_batches_hold_every_photo_once_with_its_label(frame, cache):
    data = pipeline.batches(frame, ["a", "b"], 16, batch_size=8, cache=cache)
    assert len(data) == 3
    images, labels = collected(data)
    assert [len(batch) for batch in images] == [8, 8, 6]
    assert images[0].dtype == np.float32
    assert (np.concatenate(images) == pipeline.load_images(frame, 16)).all()
    assert (np.concatenate(labels) == np.eye(2)[np.arange(22) % 2]).all()


@pytest.mark.parametrize("cache", ["memory", "disk", None])
def test_training_batches_are_fixed_by_seed_and_epoch(frame, cache):
    def make(**options):
        return pipeline.batches(
            frame, ["a", "b"], 16, **{"batch_size": 5, "training": True, "augment": "light", "cache": cache, **options}
        )

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


def test_training_shuffles_and_evaluation_does_not(frame):
    order = np.concatenate(collected(pipeline.batches(frame, ["a", "b"], 16, training=True))[1]).argmax(1)
    assert not (order == np.arange(22) % 2).all()
    ignored = pipeline.batches(frame, ["a", "b"], 16, augment="strong")
    assert (np.concatenate(collected(ignored)[0]) == pipeline.load_images(frame, 16)).all()


def test_drop_remainder_gives_static_shapes(frame):
    data = pipeline.batches(frame, ["a", "b"], 16, batch_size=8, drop_remainder=True, training=True, augment="light")
    assert len(data) == 2 == len(collected(data)[0])
    assert data.element_spec[0].shape == (8, 16, 16, 3)
    assert data.element_spec[1].shape == (8, 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": ["a"]}, "the label 'b' is not among the classes a"),
        ({"cache": "tape"}, "there is no cache 'tape'"),
        ({"augment": "wild", "training": True}, "there is no augmentation 'wild'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 64, "drop_remainder": True}, "22 photos make no full batch of 64"),
    ],
)
def test_bad_options_are_named(frame, options, reason):
    with pytest.raises(ValueError, match=reason):
        pipeline.batches(frame, **{"classes": ["a", "b"], "input_size": 16, **options})


def test_empty_frames_and_missing_columns_are_named(frame):
    with pytest.raises(ValueError, match="a frame to make batches of has no rows"):
        pipeline.batches(frame[:0], ["a", "b"], 16)
    with pytest.raises(ValueError, match="lacks the column path"):
        pipeline.batches(frame.drop(columns="path"), ["a", "b"], 16)


@pytest.mark.parametrize("cache", ["memory", "disk", None])
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


@pytest.mark.parametrize(("cache", "passes"), [("memory", 1), ("disk", 1), (None, 3)])
def test_cached_photos_are_decoded_once(frame, monkeypatch, cache, passes):
    seen = decodes(monkeypatch)
    data = pipeline.batches(frame, ["a", "b"], 16, cache=cache)
    for _ in range(3):
        collected(data)
    assert len(seen) == passes * 22


def test_the_disk_cache_outlives_the_process_and_knows_the_content(frame, monkeypatch, tmp_path):
    first = collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]
    seen = decodes(monkeypatch)
    assert (
        np.concatenate(collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]) == np.concatenate(first)
    ).all()
    assert seen == []
    with pathlib.Path(frame["path"][5]).open("wb") as file:
        file.write(encoded(smooth(10, 10, 77)))
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


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"x" * 1000, npy(np.zeros((2, 3), np.uint8))])
def test_a_damaged_disk_cache_is_made_again(frame, tmp_path, damage):
    want = np.concatenate(collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0])
    (path,) = (tmp_path / "cache").glob("photos-*.npy")
    path.write_bytes(damage)
    assert (np.concatenate(collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]) == want).all()
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: whole // 2])
    assert (np.concatenate(collected(pipeline.batches(frame, ["a", "b"], 16, cache="disk"))[0]) == want).all()


def test_a_disk_cache_that_fails_leaves_nothing(frame, tmp_path):
    with pathlib.Path(frame["path"][3]).open("r+b") as file:
        file.truncate(150)
    with pytest.raises(ValueError, match="cannot be decoded"):
        pipeline.batches(frame, ["a", "b"], 16, cache="disk")
    assert list((tmp_path / "cache").iterdir()) == []


def test_auto_says_which_cache_it_chose(frame, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "utils.datasets.pipeline")
    pipeline.batches(frame, ["a", "b"], 16)
    assert "22 photos at 16 px are cached in memory: " in caplog.text
    monkeypatch.setattr(pipeline, "_free_memory", lambda: 22 * 16 * 16 * 3 * 3)
    pipeline.batches(frame, ["a", "b"], 17)
    assert "are cached on disk: " in caplog.text
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


def test_no_range_is_no_transform():
    images = RNG.integers(0, 255, (3, 20, 20, 3), np.uint8)
    assert np.abs(pipeline.augment_batch(images, pipeline.Augment(), 0).numpy() - images).max() < 1e-3
    assert (pipeline.augment_batch(images, None, 0).numpy() == images).all()


def test_flip_mirrors_about_half_of_the_photos_exactly():
    images = RNG.integers(0, 255, (64, 9, 9, 3), np.uint8)
    out = pipeline.augment_batch(images, pipeline.Augment(flip=True), 1).numpy()
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
    values = measure(pipeline.augment_batch(images, pipeline.Augment(**setting), 2).numpy())
    assert values.min() >= low - 0.01 and values.max() <= high + 0.01
    assert values.max() - values.min() > 0.85 * (high - low)


def test_rotation_and_zoom_are_what_they_say():
    matrices, _ = augment.random_transforms(pipeline.Augment(rotation=20, zoom=0.3), [(i,) for i in range(500)], 64)
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
    out = augment.apply_transforms(image, matrix, np.ones((1, 2), np.float32)).numpy()
    assert np.allclose(out[0], np.rot90(image[0]), atol=0.1) or np.allclose(out[0], np.rot90(image[0], -1), atol=0.1)


def test_the_edge_is_repeated_outside_the_photo():
    plain = np.full((30, 16, 16, 3), 90, np.uint8)
    moved = pipeline.augment_batch(plain, pipeline.Augment(rotation=90, zoom=0.5, shift=0.5), 0).numpy()
    assert np.abs(moved - 90).max() < 1e-3


def test_contrast_keeps_the_mean():
    images = RNG.integers(100, 150, (20, 16, 16, 3)).astype(np.float32)
    out = pipeline.augment_batch(images, pipeline.Augment(contrast=0.3), 0).numpy()
    assert np.allclose(out.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.1)
    spread = out.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.69 < spread.min() < 0.8 and 1.2 < spread.max() < 1.31


def test_a_photos_transform_does_not_depend_on_its_company():
    images = RNG.integers(0, 255, (6, 16, 16, 3), np.uint8)
    keys = [(5, 1, row) for row in range(6)]
    whole = augment.apply_transforms(images, *augment.random_transforms(pipeline.Augment.strong(), keys, 16)).numpy()
    alone = augment.apply_transforms(
        images[4:5], *augment.random_transforms(pipeline.Augment.strong(), keys[4:5], 16)
    ).numpy()
    assert (whole[4] == alone[0]).all()


@given(st.integers(0, 2**31), st.sampled_from([np.uint8, np.float32]))
@settings(max_examples=20)
def test_pixels_stay_pixels(seed, dtype):
    images = np.random.default_rng(seed).integers(0, 256, (4, 12, 12, 3)).astype(dtype)
    out = pipeline.augment_batch(images, "strong", seed).numpy()
    assert out.dtype == np.float32 and out.min() >= 0 and out.max() <= 255
    assert (out == pipeline.augment_batch(images, "strong", seed).numpy()).all()


@pytest.mark.parametrize("setting", [{"rotation": -1}, {"zoom": 0.95}, {"shift": 2}, {"brightness": 1.5}])
def test_ranges_that_make_no_sense_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} is {setting[name]}"):
        pipeline.Augment(**setting)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"images have the shape \(2, 8, 9, 3\)"):
        pipeline.augment_batch(np.zeros((2, 8, 9, 3)), "light", 0)
