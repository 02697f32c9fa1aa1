"""Where the backbones' ImageNet weights come from, and what to call them.

Keras' weight files are looked for in `KERAS_HOME` (else `~/.keras`) under `models/`, as `keras.applications` does, and
fetched from their public home when they are not there. What a result rests on is read from the file itself, never
assumed from its name.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import time
import warnings

import h5py
import numpy as np

TIMEOUT_S = (3, 20)  # to connect, and without a byte
RETRY_S = 600  # a failed download is not tried again before this: every caller in between gets the answer at once


class WeightsUnavailable(RuntimeError):
    """Pretrained weights are neither on this machine nor at their public home."""


class WarmStartWarning(UserWarning):
    """A backbone starts from another network's weights, because its own cannot be had."""


@dataclasses.dataclass(frozen=True)
class KerasFile:
    """A weight file of `keras.applications`: its public address, and what the official one measures."""

    title: str
    url: str
    size_bytes: int
    md5: str | None = None  # where Keras publishes it

    def path(self):
        """Where Keras keeps the file, whether it is there or not."""
        home = os.environ.get("KERAS_HOME") or "~/.keras"
        return pathlib.Path(home).expanduser() / "models" / self.url.rsplit("/", 1)[1]

    def place(self):
        """The same in words that hold on every machine."""
        return f"{'$KERAS_HOME' if os.environ.get('KERAS_HOME') else '~/.keras'}/models/{self.path().name}"


# The 224-pixel weights serve every input size: one backbone, one set of weights, one name for them.
MOBILENET_V2 = KerasFile(
    "MobileNetV2",
    "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    size_bytes=9_406_464,  # what Keras' download shows; it publishes no checksum of this file
)
EFFICIENTNET_B0 = KerasFile(
    "EfficientNetB0",
    "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
    size_bytes=16_705_208,
    md5="50bc09e76180e00e4465e1a485ddc09d",  # keras/src/applications/efficientnet.py, WEIGHTS_HASHES["b0"][1]
)


def find(file, download=True):
    """The local path of a Keras weight file, fetched if need be; `download` False looks on this machine only."""
    path = file.path()
    if path.is_file():
        return path
    reason = "downloading was not asked for"
    if download:
        when, reason = _failures.get(path, (-RETRY_S, None))
        if time.monotonic() - when >= RETRY_S:
            reason = _download(file, path)
            if reason is None:
                return path
            _failures[path] = time.monotonic(), reason
    raise WeightsUnavailable(
        f"{file.title}'s ImageNet weights are not at {file.place()} and cannot be downloaded ({reason}); "
        f"put {file.url} there, or set KERAS_HOME to a folder whose models/ holds it"
    )


_failures = {}


def _download(file, path):
    """Download to `path`; None, or in a few words why it failed."""
    import pooch

    pooch.get_logger().setLevel("ERROR")  # it prints the local path, which does not belong into a notebook
    try:
        pooch.retrieve(
            file.url, f"md5:{file.md5}" if file.md5 else None, fname=path.name, path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=TIMEOUT_S, progressbar=True),
        )  # fmt: skip
    except OSError as error:  # requests' errors are OSErrors
        return " ".join((getattr(error, "strerror", None) or type(error).__name__).split())
    except ValueError:  # pooch's word for a wrong checksum; the file is gone again
        return "what comes is not the published file: its MD5 differs"
    if path.stat().st_size != file.size_bytes:  # e.g. a portal's log-in page
        path.unlink()
        return "what comes is not the published file: its size differs"
    return None


def load(model, file, path):
    """Load a Keras weight file into `model`, layer by layer in order; one that is damaged or does not fit is named."""
    try:
        model.load_weights(path)
    except Exception as error:  # h5py and Keras raise nearly every kind of error on a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"{path} is damaged or is not {file.title}'s weight file ({reason}); delete it so that it is fetched again"
        ) from error


def describe(file, path):
    """What the weights in a Keras weight file are, in one phrase.

    A file is official when it has the MD5 that Keras publishes or, where Keras publishes none, the official size. The
    numbers have the last word: kernels that take at most 255 values per output channel come from 8-bit weights.
    """
    facts = path.stat()
    return _describe(file, path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=8)
def _describe(file, path, _modified, size):
    if file.md5 and hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() == file.md5:
        return "ImageNet"
    if _eight_bit(path):
        return "ImageNet (8-bit, dequantized)"
    return "ImageNet" if file.md5 is None and size == file.size_bytes else "ImageNet (file not verified)"


def _eight_bit(path):
    """Whether every large kernel takes at most 255 values per output channel (int8, symmetric: -127..127)."""
    kernels = []

    def visit(name, item):
        # Only kernels with far more than 255 weights a channel can show the difference.
        if isinstance(item, h5py.Dataset) and item.ndim == 4 and "depthwise" not in name and item[..., 0].size >= 512:
            kernels.append(item[..., 0])

    try:
        with h5py.File(path) as stored:
            stored.visititems(visit)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable weight file ({error}); delete it to fetch it again") from error
    return bool(kernels) and all(len(np.unique(kernel)) <= 255 for kernel in kernels)


@functools.cache
def warn_once(message):
    """A WarmStartWarning that is shown once a process, however often its cause is met."""
    warnings.warn(message, WarmStartWarning, stacklevel=2)
