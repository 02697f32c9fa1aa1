"""One photo: bytes to pixels, the same way for training, for evaluation and for `python -m utils.classify`.

The only place that decides which files are photos, and what is done with one that is not a plain RGB JPEG. It needs
Pillow and NumPy, not TensorFlow: Pillow is as fast, and obeys the orientation that a phone writes into the file.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import operator
import os
import pathlib
import re
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError, features

ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif",
    ".hif",
))  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # no format whose reader starts a program (EPS)
MAX_PIXELS = 50_000_000  # 50 megapixels: the largest phone photos; 150 MB decoded
MAX_BYTES = 64 * 2**20
MAX_SCANS = 100  # a progressive JPEG has about ten; thousands are an attack on the decoder's time
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = [_TURNS[tag] for tag in (5, 6, 7, 8)]
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    AttributeError, RuntimeError, struct.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)  # of a JPEG; the others stand inside a scan


def read_photo(source, input_size):
    """Decode a photo and squash it to a square, antialiased, as both studies did.

    What is done with unusual photos: the orientation in the EXIF block is obeyed; greyscale, palette and CMYK become
    RGB; transparency is laid over white; 16-bit grey keeps its upper 8 bits; of an animation the first frame counts;
    the format is told by the content, not by the file name. Size is judged by the header, before anything is decoded.
    A JPEG with both sides at least four times `input_size` is decoded at a half, a quarter or an eighth of its size
    (libjpeg does that in the DCT), which saves time and memory.

    Args:
        source: path, or the file's bytes.
        input_size: side of the result in pixels, or (height, width).

    Returns:
        uint8 array (height, width, 3), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a photo, damaged, truncated, or larger than 50 megapixels or 64 MiB; the message names the file.
            An `input_size` that is no size.

    Example:
        >>> buffer = io.BytesIO(); Image.new("RGB", (40, 20), (250, 0, 0)).save(buffer, "PNG")
        >>> read_photo(buffer.getvalue(), 8).shape
        (8, 8, 3)
    """
    name, data = _name_and_bytes(source)
    height, width = _sides(input_size)
    try:
        image = _open(data)
        turn = _TURNS.get(_orientation(image))
        if turn in _ON_ITS_SIDE:
            height, width = width, height
        if image.format in ("JPEG", "MPO"):
            image.draft(None, (2 * width, 2 * height))
        # the bilinear filter of Image.resize widens with the scale: that is tf.image.resize(antialias=True)
        image = to_rgb(image).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image if turn is None else image.transpose(turn))
    except _DECODER_ERRORS as error:
        raise ValueError(_sentence(name, error)) from error


def check_photo(source):
    """Decode a photo wholly and say what it is, or what is wrong with it.

    Args:
        source: path, or the file's bytes.

    Returns:
        dict: sha256 (hexadecimal; "" for a file that is too large to read), width, height (pixels, as stored), mode
        (Pillow's: "RGB", "L", "CMYK", …), format, orientation (EXIF, 1 = upright), problem ("" for a photo that
        `read_photo` takes, else one phrase).

    Raises:
        FileNotFoundError: there is no such file.
    """
    facts = {"sha256": "", "width": 0, "height": 0, "mode": "", "format": "", "orientation": 1, "problem": ""}
    try:
        _, data = _name_and_bytes(source)
        facts["sha256"] = hashlib.sha256(data).hexdigest()
        image = _open(data, facts)
        facts["orientation"] = _orientation(image)
        image.load()
    except FileNotFoundError:
        raise
    except _DECODER_ERRORS as error:
        facts["problem"] = _phrase(error)
    return facts


def to_rgb(image):
    """A Pillow image of any mode as RGB; see :func:`read_photo` for what becomes of unusual ones."""
    clear = image.info.get("transparency")
    if image.mode == "RGB" and clear is None:
        return image
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        grey = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        if clear is not None:  # the one 16-bit value that stands for "transparent"
            grey[np.asarray(image) == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or clear is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _sides(input_size):
    try:
        height, width = map(operator.index, (input_size,) * 2 if np.isscalar(input_size) else input_size)
        if height > 0 and width > 0 and height * width <= MAX_PIXELS:
            return height, width
    except (TypeError, ValueError):
        pass
    raise ValueError(f"input_size must be a positive integer or (height, width) in pixels, got {input_size!r}")


def _name_and_bytes(source):
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) > MAX_BYTES:
            raise ValueError(f"the photo has {len(source):,} bytes, more than {MAX_BYTES:,}; pass a smaller one")
        return "the photo", bytes(source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a photo as a path or the bytes of its file, got {type(source).__name__}")
    path = pathlib.Path(source)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no photo {path}; check the path") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); check the file and its rights") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes; pass a smaller photo")
    return str(path), data


def _open(data, facts=None):
    if not data:
        raise ValueError("it is empty")
    image = Image.open(io.BytesIO(data), formats=_phone_formats() if data[4:8] == b"ftyp" else FORMATS)
    width, height = image.size
    if facts is not None:
        facts.update(width=width, height=height, mode=image.mode, format=image.format)
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS // 10**6} megapixels")
    if image.format in ("JPEG", "MPO") and _scans(data) > MAX_SCANS:
        raise ValueError(f"a JPEG with more than {MAX_SCANS} scans")
    return image


def _scans(data):
    """Scans of a JPEG up to its end, behind which a motion photo has its film."""
    at, scans = 2, 0
    while (found := _MARKER.search(data, at)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


@functools.cache
def endings():
    """Those of `ENDINGS` that can be read here: HEIC needs pillow-heif, AVIF a Pillow that was built with it."""
    unread = {".heic", ".heif", ".hif"} if importlib.util.find_spec("pillow_heif") is None else set()
    return ENDINGS - unread - ({".avif"} if not features.check("avif") else set())


@functools.cache
def _phone_formats():
    """AVIF and HEIC, as far as Pillow and pillow-heif read them here."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(kind for kind in ("AVIF", "HEIF") if kind in Image.OPEN)


def _orientation(image):
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DECODER_ERRORS:  # a damaged EXIF block says nothing about the pixels
        return 1


def _phrase(error):
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"it has more than {MAX_PIXELS // 10**6} megapixels"
    if isinstance(error, UnidentifiedImageError):
        return "expected JPEG, PNG, WebP, GIF, BMP, AVIF or (with pillow-heif) HEIC; this is none that can be read here"
    return " ".join(str(error).split()) or type(error).__name__


def _sentence(name, error):
    return f"{name} cannot be decoded as a photo ({_phrase(error)}); replace it, or leave it out"
