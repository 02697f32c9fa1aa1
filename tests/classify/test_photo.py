"""One photo: the same pixels everywhere, odd files handled or named."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from utils.classify import photo


def smooth(height, width, seed=0):
    """A picture without sharp edges, so that filters of different makers agree."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


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


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_heic_that_says_its_turn_as_phones_do_is_turned_once(turn):
    """In the picture's own "irot" and "imir", which libheif obeys, and in EXIF, which then must not count again."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    upright = Image.new("RGB", (64, 40), "blue")
    upright.paste("red", (0, 0, 32, 20))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.info["exif"] = exif.tobytes()
    data = encoded(stored, "HEIF", quality=95)
    assert (turn == 1) != (b"irot" in data or b"imir" in data)
    red = photo.read_photo(data, 16)[..., 0] > 128
    assert red[:7, :7].all() and not red[9:].any() and not red[:, 9:].any()


def test_unusual_kinds_become_rgb():
    base = Image.fromarray(smooth(40, 40))
    cases = {mode: encoded(base.convert(mode), "PNG") for mode in ("L", "P", "1", "LA", "RGBA")}
    cases |= {kind: encoded(base, kind) for kind in ("WEBP", "GIF", "BMP", "AVIF")}
    cases["CMYK"] = encoded(base.convert("CMYK"), quality=95)
    for name, data in cases.items():
        out = photo.read_photo(data, 16)
        assert out.shape == (16, 16, 3) and out.dtype == np.uint8, name
        assert photo.check_photo(data)["problem"] == "", name
    near = photo.read_photo(cases["CMYK"], 16).astype(int) - photo.read_photo(encoded(base, "PNG"), 16)
    assert np.abs(near).mean() < 6


def test_an_animation_gives_its_first_picture_and_transparency_is_laid_over_white():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    palette = Image.new("P", (10, 10), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for data, colour in (
        (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), [255, 0, 0]),
        (encoded(np.zeros((10, 10, 4), np.uint8), "PNG"), 255), (encoded(palette, "PNG", transparency=1), 255),
        (encoded(palette, "PNG", transparency=0), [10, 20, 30]),
        (encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), [9, 8, 7]),  # one pixel fills the square
    ):  # fmt: skip
        assert (photo.read_photo(data, 8) == colour).all()


def test_sixteen_bits_keep_their_upper_eight():
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    out = photo.read_photo(encoded(Image.fromarray(grey), "PNG"), 64)
    assert np.abs(out[..., 0].astype(int) - (grey >> 8)).max() <= 1


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


def test_the_film_behind_a_motion_photo_is_no_scan():
    """Before, a JPEG with more than about 7 MB of film behind it was refused for "more than 100 scans"."""
    film = b"\xff\xda" * 200
    for inside in ({}, {"progressive": True}, {"exif": b"Exif\0\0" + film}, {"comment": b"\xff\xd9" * 9}):
        data = encoded(smooth(16, 16), **inside)
        assert np.array_equal(photo.read_photo(data + film, 16), photo.read_photo(data, 16))


@pytest.mark.parametrize(
    "data", [b"", b"no photo at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_what_is_no_photo_is_named(tmp_path, data):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.jpg cannot be decoded as a photo \(.+\); replace it, or leave it out"):
        photo.read_photo(path, 16)
    assert photo.check_photo(path)["problem"]


def test_one_transparent_colour_is_white_in_rgb_and_16_bits_too():
    """Before, only palettes and 8-bit grey were laid over white."""
    colour = encoded(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert (photo.read_photo(colour, 8) == 255).all()
    rows = b"".join(b"\0" + struct.pack(">9H", *[40_000] * 4, *[20_000] * 5) for _ in range(9))
    head = chunk(b"IHDR", struct.pack(">II5B", 9, 9, 16, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", 40_000))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert photo.read_photo(data, 9)[0, :, 0].tolist() == [255] * 4 + [20_000 >> 8] * 5


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])  # as libheif says it, and as libavif raises it
def test_a_decoders_error_of_several_lines_becomes_one(monkeypatch, kind):
    def fails(data, facts=None):
        raise kind("Unexpected end of file\n(position 374)\n")

    monkeypatch.setattr(photo, "_open", fails)
    with pytest.raises(ValueError, match=r"\(Unexpected end of file \(position 374\)\); replace it"):
        photo.read_photo(b"x", 8)
    assert photo.check_photo(b"x")["problem"] == "Unexpected end of file (position 374)"


@pytest.mark.parametrize("size", [0, -1, 16.0, "16", None, (16,), (8, 8, 3), 10**6])
def test_a_size_that_is_none_is_said_of_the_size_and_not_of_the_photo(size):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match=r"input_size must be a positive integer or .*, got"):
        photo.read_photo(buffer.getvalue(), size)


@pytest.mark.parametrize("source", [None, 5, np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8))])
def test_what_is_neither_path_nor_bytes_is_named(source):
    with pytest.raises(TypeError, match="expected a photo as a path or the bytes of its file, got"):
        photo.read_photo(source, 8)
