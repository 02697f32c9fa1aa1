"""Run a .tflite classifier: any batch, float or quantized input and output, one lock, and no TensorFlow."""

import contextlib
import hashlib
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from utils import files
from utils.environment import default_threads, quiet

PIXELS = (0.0, 255.0)
# What photo classifiers are fed with -> how far a file's own range may be off, as calibration leaves it. (Tight where
# another scaling lies near: pixels minus ImageNet's mean are -124..151.)
_SCALINGS = {PIXELS: 0.1, (0.0, 1.0): 0.1, (-1.0, 1.0): 0.1, (-0.5, 0.5): 0.1, (-128.0, 127.0): 0.02}
_MAGIC = b"TFL3"  # the flatbuffer's file identifier, at byte 4
_RESOLVERS = {
    "xnnpack": OpResolverType.BUILTIN,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}


class TFLiteModel:
    """A .tflite image classifier as a function of photos.

    Photos run through the interpreter one by one, which is as fast as in batches and needs one photo's memory. A lock
    lets one call at a time use the interpreter; for parallel throughput make one TFLiteModel per thread.

    Args:
        model: path of a .tflite file, or its bytes.
        num_threads: threads of one inference, at least 1. None: the cores this process may use, at most 4.
        kernels: "xnnpack", "builtin" (LiteRT's own optimized ones) or "reference" (slow and plain).
        labels: class names in the order of the output. None: those of the JSON beside the file, if there is one, else
            of the file's metadata.
        input_range: (low, high) that pixels 0..255 are scaled to before they go in. None: what the JSON beside the file
            says, else the metadata of a float input, else the scale of a quantized input (or of a first QUANTIZE), else
            (0, 255).

    Attributes:
        input_size: (height, width) in pixels; channels: 1 for grey, 3 for RGB; n_classes: size of the output.
        input_dtype, output_dtype: of the tensors in the file; callers need not care.
        labels: tuple of class names, or None; description: the JSON beside the file as a dict ({} without one).
        input_range, num_threads, kernels: as resolved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a .tflite model, a damaged one, one of operators that this runtime lacks, or of other inputs and
            outputs than one photo and one row of numbers; an input whose scale fits no usual scaling of pixels.
        TypeError: neither path nor bytes.

    Example:
        >>> model = TFLiteModel("models/clothing-10-int8.tflite", num_threads=2)  # doctest: +SKIP
        >>> model(photos).shape  # photos: uint8 (n, 224, 224, 3)  # doctest: +SKIP
        (n, 10)
    """

    def __init__(self, model, num_threads=None, kernels="xnnpack", labels=None, input_range=None):
        self.kernels = kernels
        self.num_threads = default_threads() if num_threads is None else checked_threads(num_threads, "num_threads")
        self.name, content = read_model(model)
        self.content = bytes(content)
        # Before native code sees the bytes: a damaged file can end the process there.
        in_memory = isinstance(model, bytes | bytearray | memoryview)
        self.description = {} if in_memory else read_description(model)
        digest = self.description.get("sha256")
        if digest is not None and hashlib.sha256(self.content).hexdigest() != digest:
            raise ValueError(f"{self.name} is not the file that the JSON beside it describes; copy or save both again")
        if digest is None and not in_memory:
            try_apart([(self.content, None)], [self.name], self.kernels)
        self._interpreter = open_interpreter(self.content, self.num_threads, self.kernels, self.name)
        self._lock = threading.Lock()
        (source,), (target,) = _single(self._interpreter, self.name)
        *sides, self.channels = (int(side) for side in source["shape"][1:])
        self.input_size = tuple(sides)
        self.n_classes = int(target["shape"][-1])
        self.input_dtype, self.output_dtype = np.dtype(source["dtype"]), np.dtype(target["dtype"])
        self._input, self._output = source["index"], target["index"]
        self._scale_in, self._scale_out = source["quantization"], target["quantization"]
        self._wants_pixels = self.input_dtype.kind != "f"  # sure to be wrong with anything but 0..255
        labels, input_range = self._said(labels, input_range)
        self.input_range = self._range(input_range)
        self._wants_pixels |= self.input_range != PIXELS
        if isinstance(labels, set | frozenset):
            raise ValueError(f"labels must be a list in the order of the output, got a {type(labels).__name__}")
        self.labels = tuple(labels) if labels is not None else None
        if self.labels is not None and len(self.labels) != self.n_classes:
            raise ValueError(
                f"{self.name} needs {self.n_classes} labels, one for each output, got {len(self.labels)}; "
                "pass the labels that it was trained with"
            )

    def __call__(self, images):
        """Probabilities of photos.

        Args:
            images: (n, height, width, channels), RGB or grey in 0..255, uint8 or float; n of any size, also 0.

        Returns:
            float32 (n, classes): the file's output, dequantized where it is quantized.

        Raises:
            ValueError: another shape, a type that is no number, NaN, or pixels that were scaled already.
        """
        images = self.checked(images)
        probabilities = np.empty((len(images), self.n_classes), np.float32)
        interpreter, source, target = self._interpreter, self._input, self._output
        with self._lock:
            for row, image in enumerate(images):
                interpreter.set_tensor(source, self.to_input(image[None]))
                try:
                    interpreter.invoke()
                    answer = interpreter.get_tensor(target)
                except (RuntimeError, ValueError) as error:
                    reason = " ".join(str(error).split())[:200]
                    raise ValueError(f"{self.name} is damaged ({reason}); copy or convert it again") from error
                probabilities[row] = self.to_float(answer.reshape(-1))
        return probabilities

    @property
    def size_bytes(self):
        """Bytes of the file."""
        return len(self.content)

    def __repr__(self):
        takes = "x".join(map(str, (*self.input_size, self.channels)))
        return (
            f"TFLiteModel({self.name}: {takes} {self.input_dtype} -> {self.n_classes} {self.output_dtype}, "
            f"{self.size_bytes:,} bytes, {self.kernels}, {self.num_threads} thread{'s'[: self.num_threads != 1]})"
        )

    def _said(self, *given):
        """(labels, input range) as given, or as the JSON says, or as the metadata inside the file say; else None."""
        keys, description = ("labels", "input_range"), self.description
        said = {key: description.get(key) if one is None else one for key, one in zip(keys, given, strict=True)}
        if b"TFLITE_METADATA" in self.content and any(one is None for one in said.values()):
            from . import metadata

            for key, one in metadata.read(self.content, self.name).items():
                if said[key] is None and (key == "labels" or self.input_dtype.kind == "f"):  # else its scale is surer
                    said[key] = one
        return tuple(said.values())

    def _range(self, said):
        dtype, (scale, zero) = self._first_quantized()
        if self.input_dtype.kind not in "fiu" or (self.input_dtype == np.int8 and not scale):
            raise ValueError(
                f"{self.name} takes {self.input_dtype} without a scale, which holds no pixels 0..255; convert it again"
            )
        low, high = ((end - zero) * scale for end in (np.iinfo(dtype).min, np.iinfo(dtype).max)) if scale else PIXELS
        if said is not None:
            said = checked_range(said)
            if scale and not 0.2 < (said[1] - said[0]) / (high - low) < 5:
                raise ValueError(
                    f"{self.name} takes values in {low:.3g}..{high:.3g}, got input_range={said}; leave it out, of the "
                    "JSON too, or convert the model again"
                )
            return said
        if not scale:  # a float network, or bytes that the network casts
            return PIXELS
        if 60 < high < 300 and (abs(low) < 25 or dtype == np.int16):  # also from calibration on dark photos
            self._wants_pixels |= bool(abs(low) < 25)
            return PIXELS
        for known, tolerance in _SCALINGS.items() if dtype != np.int16 else ():  # which is symmetric whatever the range
            if max(abs(low - known[0]), abs(high - known[1])) < tolerance * (known[1] - known[0]):
                return known
        if dtype != self.input_dtype and (high - low > 32 or dtype == np.int16):
            return PIXELS  # a float input may be of any range
        raise ValueError(
            f"{self.name} takes values in {low:.3g}..{high:.3g}, which fits no usual scaling of pixels; "
            'pass input_range=(low, high), or write "input_range" into the JSON beside the file'
        )

    def _first_quantized(self):
        """(dtype, (scale, zero point)) of the input, or of what a float input is turned into first of all."""
        if self.input_dtype.kind != "f":
            return self.input_dtype, self._scale_in
        ops = [op for op in self._interpreter._get_ops_details() if self._input in op["inputs"]]
        kinds = {op["op_name"] for op in ops} - {"DELEGATE"}
        if kinds != {"QUANTIZE"}:
            return self.input_dtype, (0.0, 0)
        made = {int(op["outputs"][0]) for op in ops if op["op_name"] == "QUANTIZE"}
        (first, *_) = (one for one in self._interpreter.get_tensor_details() if one["index"] in made)
        return np.dtype(first["dtype"]), first["quantization"]

    def checked(self, images):
        """`images` as an array of the shape and range that the model takes."""
        images, one = np.asarray(images), (*self.input_size, self.channels)
        if images.ndim == 3 and images.shape[1:] == self.input_size and self.channels == 1:
            images = images[..., None]
        if images.ndim != 4 or images.shape[1:] != one:
            height, width, channels = one
            hint = "pass one photo as photo[None]" if images.shape == one else f"read them at {height} x {width} pixels"
            raise ValueError(
                f"{self.name} takes photos of shape (n, {height}, {width}, {channels}), got {images.shape}; {hint}"
            )
        if images.dtype.kind not in "iuf":
            raise ValueError(f"photos must be numbers in 0..255, got {images.dtype}; pass uint8 or float32")
        if images.dtype.kind == "f" and not np.isfinite(images.sum(dtype=np.float64)):
            raise ValueError("photos must be pixels in 0..255, got NaN or infinity; check how they were read")
        if self._wants_pixels and images.size and images.dtype != np.uint8:
            low, high = float(images.min()), float(images.max())
            if low < 0 or high > 255.5 or (images.dtype.kind == "f" and 0 < high <= 1):
                raise ValueError(
                    f"photos must be pixels in 0..255, got {low:.3g}..{high:.3g}; {self.name} scales them itself"
                )
        return images

    def to_input(self, image):
        """Photos in 0..255 in the type and range of the file's input."""
        low, high = self.input_range
        if self.input_dtype.kind == "f":
            if self.input_range != PIXELS:
                image = image * np.float32((high - low) / 255) + np.float32(low)
            return image.astype(self.input_dtype, copy=False)
        (scale, zero), limits = self._scale_in, np.iinfo(self.input_dtype)
        if self.input_dtype == np.uint8 and image.dtype == np.uint8 and scale == 1 and zero == 0:
            return image
        if self.input_dtype == np.int8 and image.dtype == np.uint8 and scale == 1 and zero == -128:
            return (image ^ np.uint8(128)).view(np.int8)
        image = image.astype(np.float32)
        if not scale:
            steps = np.rint(image)
        elif self.input_range == PIXELS:
            steps = np.rint(image / np.float32(scale)) + zero
        elif self.input_dtype.itemsize == 1 and abs(255 * scale / (high - low) - 1) < 0.02:
            steps = np.rint(image) + limits.min  # 256 levels cover the range: a photo's bytes go in as they are
        else:
            steps = np.rint((image * ((high - low) / 255) + low) / scale) + zero
        return np.clip(steps, limits.min, limits.max).astype(self.input_dtype)

    def to_float(self, output):
        """The file's output as float32, dequantized."""
        scale, zero = self._scale_out
        values = output.astype(np.float32, copy=False)
        return values if output.dtype.kind == "f" or not scale else (values - zero) * scale


def open_interpreter(content, num_threads=1, kernels="xnnpack", name="the model", keep_tensors=False):
    """A LiteRT interpreter with its tensors allocated.

    Args:
        content: bytes of a .tflite file, or its path.
        num_threads: at least 1.
        kernels: "xnnpack", "builtin" (optimized, without the delegate) or "reference".
        name: what an error message calls the model.
        keep_tensors: keep every intermediate tensor readable after a run.

    Raises:
        ValueError: damaged or foreign bytes, operators that the runtime lacks, or unknown kernels.
    """
    resolver, content = _resolver(kernels), read_model(content)[1]
    if bytes(content[4:8]) != _MAGIC:
        raise ValueError(f"{name} is not a .tflite model; pass a file that quantization.convert or a converter wrote")
    try:
        with _first_time_quiet():
            interpreter = Interpreter(
                model_content=bytes(content),
                num_threads=num_threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=keep_tensors,
            )
            interpreter.allocate_tensors()
            interpreter.get_input_details(), interpreter.get_output_details()  # whose names may be no text
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        if "Flatbuffer" in reason:
            raise ValueError(f"{name} is damaged or cut short; copy or convert it again") from error
        raise ValueError(f"{name} cannot run on this LiteRT runtime ({reason}); convert it again") from error
    return interpreter


_TRY = """
import pickle, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
kernels, files = pickle.load(sys.stdin.buffer)
for number, (content, values) in enumerate(files):
    print(number, flush=True)
    try:
        interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType(kernels))
        interpreter.allocate_tensors()
        details = interpreter.get_input_details()
        for detail, value in zip(details, values or [np.zeros(d["shape"], d["dtype"]) for d in details]):
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
    except Exception:
        pass
"""


def try_apart(files, names, kernels="xnnpack"):
    """Open and run files that nothing vouches for in a process of its own, which native code may end.

    `files` are pairs (bytes of a .tflite, values of its inputs or None for zeros). Raises ValueError by its name where
    one of them ends the process; what merely fails is left to the caller who opens it.
    """
    work = pickle.dumps((_resolver(kernels).value, files))
    done = subprocess.run([sys.executable, "-c", _TRY], input=work, capture_output=True, check=False)
    if done.returncode < 0:
        name, how = names[int(done.stdout.split()[-1])], signal.Signals(-done.returncode).name
        raise ValueError(f"{name} ends the process that runs it ({how}); convert it again")


def _resolver(kernels):
    if kernels not in _RESOLVERS:
        raise ValueError(f"kernels must be one of {', '.join(_RESOLVERS)}, got {kernels!r}")
    return _RESOLVERS[kernels]


_to_announce = [quiet]  # LiteRT announces its delegate on stderr, once a process


def _first_time_quiet():
    return _to_announce.pop()() if _to_announce else contextlib.nullcontext()


def checked_range(said):
    """(low, high) as floats, or ValueError."""
    try:
        low, high = map(float, said)
        if -np.inf < low < high < np.inf:
            return low, high
    except (TypeError, ValueError):
        pass
    raise ValueError(f"input_range must be two numbers (low, high) with low < high, got {said!r}")


def checked_threads(count, name="threads"):
    """A number of threads as int, or ValueError."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= 1024:
        raise ValueError(f"{name} must be a positive integer, got {count!r}; 1 to 1024 work")
    return int(count)


def description_path(path):
    """Where the JSON that describes a .tflite file lies: beside it, under the same name."""
    return pathlib.Path(path).with_suffix(".json")


def read_description(path):
    """The JSON beside a .tflite file as a dict (labels, input size, scheme, source, …); {} where there is none.

    Raises:
        ValueError: the JSON is damaged, or its labels are not a list of names.
    """
    beside = description_path(path)
    if not beside.is_file():
        return {}
    description = files.read_json(beside)
    description = description if isinstance(description, dict) else {"labels": description}  # or the names alone
    labels = description.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise ValueError(f"labels in {beside} must be a list of names, got {labels!r}; save the model again")
    return description


def read_model(model):
    """(name, content) of a .tflite as path or bytes; content is bytes, or the bytearray that was given."""
    if isinstance(model, bytes | bytearray | memoryview):
        return "the model", bytes(model) if isinstance(model, memoryview) else model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"expected a .tflite model as a path or bytes, got {type(model).__name__}; convert it first")
    path = pathlib.Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"there is no model {path}; check the path, or write one with quantization.save")
    return path.name, path.read_bytes()


def _single(interpreter, name):
    sources, targets = interpreter.get_input_details(), interpreter.get_output_details()
    shapes = [tuple(int(n) for n in detail["shape"]) for detail in (*sources, *targets)]
    shape, output = (shapes[0], shapes[-1]) if len(sources) == len(targets) == 1 else ((), ())
    if not (len(shape) == 4 and shape[0] == 1 and len(output) >= 2 and np.prod(output) == output[-1]):
        raise ValueError(
            f"expected a photo classifier with one input (1, height, width, channels) and one output (1, classes), "
            f"got {shapes} in {name}; use another model"
        )
    if -1 in sources[0]["shape_signature"][1:]:  # which LiteRT fills with 1: a photo of one pixel
        raise ValueError(
            f"{name} leaves sides of its photos open, got {sources[0]['shape_signature'].tolist()}; "
            "convert the model for one input shape"
        )
    return sources, targets
