"""The same network on every runtime at hand, as callables for `latency.measure`: the table nobody shows.

"A model's latency" depends less on the model than on how it is called: Keras' `predict`, an eager call, a traced
function, LiteRT with its fast kernels, without them, with the slow reference kernels, an interpreter made anew for
every photo, onnxruntime. :func:`candidates` builds all of them for one network; :func:`price_list` times them in a
process of its own, because TensorFlow fixes its number of threads once, before the first operation.
"""

import concurrent.futures
import dataclasses
import importlib.util
import multiprocessing
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from utils import latency
from utils.classify.interpreter import TFLiteModel, open_interpreter
from utils.environment import quiet

BASELINE = "LiteRT float32"
KERAS = ("Keras predict", "Keras model(x)", "Keras tf.function")
ONNX = "onnxruntime float32"
ONNX_PACKAGES = ("onnxruntime", "tf2onnx", "onnx")
INSTALL_ONNX = "not installed; pip install onnxruntime tf2onnx onnx"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to run the network on the given photos: call it without arguments.

    Attributes:
        name: for the table.
        run: function without arguments that returns the outputs.
        threads: how many it computes with.
    """

    name: str
    run: Callable
    threads: int | str

    def __call__(self):
        return self.run()


def keras_candidates(model, images, threads="TensorFlow's default"):
    """Keras' three ways: `predict`, the eager call, and the call traced by `tf.function`.

    Args:
        model: a Keras 3 model on the TensorFlow backend.
        images: (n, height, width, 3) in 0..255; one call handles all of them.
        threads: for the record; TensorFlow's threads are fixed before its first operation, see :func:`price_list`.

    Returns:
        dict, name -> Candidate.
    """
    import tensorflow as tf

    images = np.asarray(images, np.float32)
    tensor = tf.constant(images)
    traced = tf.function(
        lambda x: model(x, training=False), input_signature=[tf.TensorSpec(tensor.shape, tensor.dtype)]
    )
    runs = (
        lambda: model.predict(images, batch_size=len(images), verbose=0),
        lambda: model(tensor, training=False).numpy(),
        lambda: traced(tensor).numpy(),
    )
    return {name: Candidate(name, run, threads) for name, run in zip(KERAS, runs, strict=True)}


def litert_candidates(files, images, threads=1, more_threads=(2,), detailed=("float32", "int8")):
    """LiteRT in every scheme, and for the detailed ones also without its fast kernels and called as one should not.

    Rows: "LiteRT SCHEME" is the interpreter called bare, with XNNPACK. For the detailed schemes also "…, N threads",
    "…, no XNNPACK" (LiteRT's own optimized kernels), "…, reference kernels" (plain loops), "…, new interpreter each
    photo", "…, TFLiteModel" (this project's wrapper), and for several photos "…, one batch".

    Args:
        files: {scheme: bytes of a .tflite file with batch 1}.
        images: (n, height, width, 3) in 0..255; one call runs all of them, one after another.
        threads: of every row but the "N threads" ones.
        more_threads: other thread counts to try.
        detailed: schemes that get all the rows.

    Returns:
        dict, name -> Candidate, or a sentence where a row cannot be had.

    Raises:
        ValueError: a damaged file, photos of another shape, zero threads.
    """
    _check_threads(threads, *more_threads)
    images = np.asarray(images)
    rows = {}
    for scheme, content in files.items():
        title = f"LiteRT {scheme}"
        rows[title] = _bare(title, content, images, threads, "xnnpack")
        if scheme not in detailed:
            continue
        for count in more_threads:
            name = f"{title}, {count} threads"
            rows[name] = _bare(name, content, images, count, "xnnpack")
        rows[f"{title}, TFLiteModel"] = _wrapped(f"{title}, TFLiteModel", content, images, threads)
        rows[f"{title}, no XNNPACK"] = _bare(f"{title}, no XNNPACK", content, images, threads, "builtin")
        rows[f"{title}, reference kernels"] = _bare(
            f"{title}, reference kernels", content, images, threads, "reference"
        )
        name = f"{title}, new interpreter each photo"
        rows[name] = _fresh(name, content, images, threads)
        if len(images) > 1:
            rows[f"{title}, one batch"] = _batched(f"{title}, one batch", content, images, threads)
    return rows


def onnx_candidate(model, images, threads=1):
    """onnxruntime on the same network, converted by tf2onnx; a sentence where either is not installed.

    Args:
        model: a Keras 3 model.
        images: (n, height, width, 3) in 0..255.
        threads: intra-op threads.

    Returns:
        Candidate, or the reason why there is none.
    """
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return INSTALL_ONNX
    try:
        content = onnx_bytes(model)
    except Exception as error:  # a converter of someone else's: any failure is a row of the table, not the end of it
        return f"tf2onnx could not convert the model: {' '.join(str(error).split())[:120]}"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1:
        return f"tf2onnx made a model of {len(session.get_inputs())} inputs"
    feed = {session.get_inputs()[0].name: np.asarray(images, np.float32)}
    return Candidate(ONNX, lambda: session.run(None, feed)[0], threads)


def onnx_bytes(model):
    """A Keras 3 model as the bytes of an ONNX file, any batch size (needs tf2onnx).

    Keras' own ``export(format="onnx")`` goes through tf2onnx as well, but refuses a model that was never called.
    """
    import tensorflow as tf
    import tf2onnx

    model = _without_normalization(model)
    shape = (None, *model.inputs[0].shape[1:])
    with quiet():
        function = tf.function(lambda images: model(images, training=False))
        signature = [tf.TensorSpec(shape, tf.float32, name="images")]
        converted, _ = tf2onnx.convert.from_function(function, input_signature=signature)
    return converted.SerializeToString()


def _without_normalization(model):
    """The model with `Normalization` layers as `Rescaling`: tf2onnx takes their captured statistics for inputs."""
    import keras

    kind = keras.layers.Normalization
    if not any(isinstance(layer, kind) for layer in model.layers):
        return model

    def clone(layer):
        if not isinstance(layer, kind):
            return layer.__class__.from_config(layer.get_config())
        mean, deviation = np.ravel(layer.mean), np.sqrt(np.ravel(layer.variance))
        return keras.layers.Rescaling((1 / deviation).tolist(), offset=(-mean / deviation).tolist(), name=layer.name)

    copy = keras.models.clone_model(model, clone_function=clone)
    for old, new in zip(model.layers, copy.layers, strict=True):
        if not isinstance(old, kind):
            new.set_weights(old.get_weights())
    return copy


def candidates(model, files, images, threads=1, more_threads=(2,), detailed=("float32", "int8"), keras_threads=None):
    """Every way to run one network on the same photos.

    Args:
        model: the Keras 3 model, or None for LiteRT alone.
        files: {scheme: .tflite bytes} made from it.
        images: (n, height, width, 3) in 0..255.
        threads, more_threads, detailed: see :func:`litert_candidates`.
        keras_threads: what TensorFlow computes with, for the record.

    Returns:
        dict, name -> Candidate or the reason why there is none, for `latency.measure`.

    Raises:
        ValueError: there is nothing to run, photos of a wrong shape, zero threads.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(f"photos have shape {images.shape}; give (n, height, width, 3), one photo as photo[None]")
    if model is None and not files:
        raise ValueError("there is nothing to run: give a Keras model, or {scheme: bytes of a .tflite file}")
    rows = litert_candidates(files, images, threads, more_threads, detailed)
    if model is not None:
        rows |= keras_candidates(model, images, keras_threads or "TensorFlow's default")
        rows[ONNX] = onnx_candidate(model, images, threads)
    return rows


def agreement(rows, tolerance=None):
    """Largest difference of each candidate's probabilities to the baseline's: do all rows run the same network?

    Args:
        rows: from :func:`candidates`.
        tolerance: raise where a float32 row differs by more.

    Returns:
        dict, name -> float (candidates that are not there are left out).

    Raises:
        RuntimeError: a float32 row differs by more than `tolerance`.
    """
    running = {name: np.asarray(row()) for name, row in rows.items() if not isinstance(row, str)}
    reference = running.get(BASELINE, next(iter(running.values())))
    gaps = {name: float(np.abs(output - reference).max()) for name, output in running.items()}
    for name, gap in gaps.items():
        if tolerance is not None and gap > tolerance and ("float32" in name or name in KERAS):
            raise RuntimeError(f"{name!r} gives other probabilities than {BASELINE!r} (difference {gap:.3g})")
    return gaps


def price_list(
    model, files, images, threads=1, more_threads=(2,), detailed=("float32", "int8"), alone=True, **settings
):
    """Time every way to run one network, at an equal and stated number of threads.

    TensorFlow's thread count can be set only before its first operation, so the timing happens in a fresh process that
    sets it; the model goes there as a file.

    Args:
        model: the Keras 3 model, a path of a .keras file, or None for LiteRT alone.
        files: {scheme: .tflite bytes}.
        images: (n, height, width, 3) in 0..255; every call handles all of them.
        threads: of Keras, onnxruntime and LiteRT alike.
        more_threads, detailed: see :func:`litert_candidates`.
        alone: False times in this process (TensorFlow's threads are then whatever they are).
        settings: for `latency.measure`: rounds, warmup, budget_s, calls, baseline, machine ...

    Returns:
        latency.Timings; ratios refer to "LiteRT float32" where that is among the files.

    Raises:
        as :func:`candidates`; RuntimeError when a candidate fails.
    """
    _check_threads(threads, *more_threads)
    if not alone:
        return _price_list(model, files, np.asarray(images), threads, more_threads, detailed, settings)
    with tempfile.TemporaryDirectory() as folder:
        path = model
        if model is not None and not isinstance(model, str | pathlib.Path):
            path = pathlib.Path(folder) / "model.keras"
            model.save(path)
        machine = settings.pop("machine", latency.machine)
        settings["machine"] = machine() if callable(machine) else machine  # a function may not travel to the process
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            job = pool.submit(_alone, path, files, np.asarray(images), threads, more_threads, detailed, settings)
            return job.result()


def _alone(path, files, images, threads, more_threads, detailed, settings):
    if path is not None:
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        path = keras.saving.load_model(path, compile=False)
    return _price_list(path, files, images, threads, more_threads, detailed, settings, keras_threads=threads)


def _price_list(model, files, images, threads, more_threads, detailed, settings, keras_threads=None):
    rows = candidates(model, files, images, threads, more_threads, detailed, keras_threads)
    agreement(rows, tolerance=1e-2)
    settings.setdefault("baseline", BASELINE if BASELINE in rows else None)
    return latency.measure(rows, items=len(images), **settings)


def _check_threads(*counts):
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{count!r} threads cannot compute; give a whole number from 1 up")


class _Loop:
    """The bare interpreter, photo after photo; what goes in is quantized beforehand."""

    def __init__(self, content, images, threads, kernels):
        self.interpreter = open_interpreter(content, threads, kernels)
        source, target = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        self.source, self.target, self.scale = source["index"], target["index"], target["quantization"]
        self.photos = as_input(images, source)

    def __call__(self):
        outputs = []
        for photo in self.photos:
            self.interpreter.set_tensor(self.source, photo)
            self.interpreter.invoke()
            outputs.append(self.interpreter.get_tensor(self.target)[0])
        return _dequantized(np.stack(outputs), self.scale)


def as_input(images, detail):
    """Photos in 0..255 as a list of batches of one in the type of a LiteRT input.

    Args:
        images: (n, height, width, 3).
        detail: an element of `interpreter.get_input_details()`.

    Returns:
        list of n contiguous arrays (1, height, width, 3).

    Raises:
        ValueError: the shape does not fit.
    """
    wanted = tuple(int(side) for side in detail["shape"][1:])
    if tuple(images.shape[1:]) != wanted:
        raise ValueError(f"photos have shape {images.shape[1:]}, but the file takes {wanted}; read them at that size")
    dtype = np.dtype(detail["dtype"])
    values = np.asarray(images, np.float32)
    if dtype != np.float32:
        scale, zero = detail["quantization"]
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values / scale) + zero, limits.min, limits.max)
    return [np.ascontiguousarray(photo[None], dtype) for photo in values]


def _dequantized(output, quantization):
    scale, zero = quantization
    return output if output.dtype == np.float32 else (output.astype(np.float32) - zero) * scale


def _bare(name, content, images, threads, kernels):
    return Candidate(name, _Loop(content, images, threads, kernels), threads)


def _wrapped(name, content, images, threads):
    model = TFLiteModel(content, num_threads=threads)
    return Candidate(name, lambda: model(images), threads)


def _fresh(name, content, images, threads):
    def run():
        return np.concatenate([_Loop(content, photo[None], threads, "xnnpack")() for photo in images])

    return Candidate(name, run, threads)


def _batched(name, content, images, threads):
    interpreter = open_interpreter(content, threads)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    batch = np.concatenate(as_input(images, source))
    try:
        interpreter.resize_tensor_input(source["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        if len(interpreter.get_tensor(target["index"])) != len(images):
            return "the file is fixed to one photo a call"
    except (ValueError, RuntimeError) as error:
        return f"the file cannot be resized to a batch: {' '.join(str(error).split())[:120]}"

    def run():
        interpreter.set_tensor(source["index"], batch)
        interpreter.invoke()
        return _dequantized(interpreter.get_tensor(target["index"]), target["quantization"])

    return Candidate(name, run, threads)
