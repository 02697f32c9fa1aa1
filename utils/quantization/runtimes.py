"""The same network on every runtime, as callables for `latency.measure`.

"A model's latency" depends less on the model than on how it is called. :func:`price_list` times Keras' three ways,
LiteRT's kernels and onnxruntime in a process of its own.
"""

import concurrent.futures
import functools
import importlib.util
import multiprocessing
import pathlib
import tempfile

import numpy as np

from utils import latency
from utils.classify import TFLiteModel, checked_threads, open_interpreter
from utils.environment import quiet

BASELINE = "LiteRT float32"
KERAS = ("Keras predict", "Keras model(x)", "Keras tf.function")
ONNX = "onnxruntime float32"
ONNX_PACKAGES = ("onnxruntime", "tf2onnx", "onnx")
INSTALL_ONNX = "not installed; pip install onnxruntime tf2onnx onnx"


def price_list(model, files, images, threads=1, more_threads=(2,), detailed=("float32", "int8"), **settings):
    """Time every way to run one network, at an equal and stated number of threads.

    TensorFlow's thread count can be set only before its first operation, so the timing happens in a fresh process.

    Args:
        model: the Keras 3 model, a path of a .keras file, or None for LiteRT alone.
        files: {scheme: .tflite bytes}.
        images: (n, height, width, 3) in 0..255; every call handles all of them.
        threads: of Keras, onnxruntime and LiteRT alike.
        more_threads, detailed: see :func:`litert_candidates`.
        settings: for `latency.measure`: rounds, warmup, budget_s, calls, baseline, machine ...

    Returns:
        latency.Timings; ratios refer to "LiteRT float32" where that is among the files.

    Raises:
        ValueError: nothing to run, photos of a wrong shape, a thread count that is not a positive integer.
        RuntimeError: a row fails, or a float32 row gives other probabilities than the rest.
    """
    for count in (threads, *more_threads):
        checked_threads(count)
    if model is None and not files:
        raise ValueError("expected a Keras model, or {scheme: bytes of a .tflite file}, got neither")
    images = np.asarray(images)
    with tempfile.TemporaryDirectory() as folder:
        path = model
        if model is not None and not isinstance(model, str | pathlib.Path):
            path = pathlib.Path(folder) / "model.keras"
            model.save(path)
        machine = settings.pop("machine", latency.machine)
        settings["machine"] = machine() if callable(machine) else machine  # a function may not travel to the process
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_alone, path, files, images, threads, more_threads, detailed, settings).result()


def _alone(path, files, images, threads, more_threads, detailed, settings):
    model = None
    if path is not None:
        import keras
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        model = keras.saving.load_model(path, compile=False)
    rows = litert_candidates(files, images, threads, more_threads, detailed)
    if model is not None:
        rows |= keras_candidates(model, images, threads)
        rows[ONNX] = onnx_candidate(model, images, threads)
    agreement(rows, tolerance=1e-2)
    settings.setdefault("baseline", BASELINE if BASELINE in rows else None)
    return latency.measure(rows, items=len(images), **settings)


def keras_candidates(model, images, threads):
    """Keras' three ways: `predict`, the eager call, and the call traced by `tf.function`: dict, name -> callable."""
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
    return {name: _with_threads(run, threads) for name, run in zip(KERAS, runs, strict=True)}


def litert_candidates(files, images, threads=1, more_threads=(2,), detailed=("float32", "int8")):
    """LiteRT in every scheme, and for the detailed ones also without its fast kernels and called as one should not.

    "LiteRT SCHEME" is the interpreter called bare, with XNNPACK. Detailed schemes have also "…, N threads",
    "…, no XNNPACK" (LiteRT's own optimized kernels), "…, reference kernels" (plain loops), "…, new interpreter each
    photo", "…, TFLiteModel" (this project's wrapper), and for several photos "…, one batch".

    Args:
        files: {scheme: bytes of a .tflite file with batch 1}.
        images: (n, height, width, 3) in 0..255; one call runs all of them, one after another.
        threads: of every row but the "N threads" ones.
        more_threads: other thread counts to try.
        detailed: schemes that get all the rows.

    Returns:
        dict, name -> callable (with an attribute `threads`), or a sentence that says why the row is missing.

    Raises:
        ValueError: a damaged file, photos of another shape.
    """
    images, rows = np.asarray(images), {}
    for scheme, content in files.items():
        title, model = f"LiteRT {scheme}", TFLiteModel(content, threads)
        photos = [np.ascontiguousarray(model.to_input(photo[None])) for photo in model.checked(images)]
        loop = functools.partial(_Loop, content, photos, model.to_float)
        rows[title] = loop(threads)
        if scheme not in detailed:
            continue
        for count in more_threads:
            rows[f"{title}, {count} threads"] = loop(count)
        rows[f"{title}, TFLiteModel"] = _with_threads(functools.partial(model, images), threads)
        rows[f"{title}, no XNNPACK"] = loop(threads, "builtin")
        rows[f"{title}, reference kernels"] = loop(threads, "reference")
        rows[f"{title}, new interpreter each photo"] = _with_threads(
            functools.partial(_fresh, content, photos, model.to_float, threads), threads
        )
        if len(images) > 1:
            rows[f"{title}, one batch"] = _batched(content, np.concatenate(photos), model.to_float, threads)
    return rows


def onnx_candidate(model, images, threads=1):
    """onnxruntime on the same network, converted by tf2onnx, as a callable; or a sentence that says why not."""
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
    return _with_threads(lambda: session.run(None, feed)[0], threads)


def onnx_bytes(model):
    """A Keras 3 model as the bytes of an ONNX file, any batch size (needs tf2onnx)."""
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


def agreement(rows, tolerance):
    """Largest difference of each row's answers to the baseline's; RuntimeError where a float32 row's is too large."""
    running = {name: np.asarray(row()) for name, row in rows.items() if not isinstance(row, str)}
    reference = running.get(BASELINE, next(iter(running.values())))
    gaps = {name: float(np.abs(output - reference).max()) for name, output in running.items()}
    for name, gap in gaps.items():
        if gap > tolerance and ("float32" in name or name in KERAS):
            raise RuntimeError(f"{name!r} gives other probabilities than {BASELINE!r} (difference {gap:.3g})")
    return gaps


def _with_threads(run, threads):
    run.threads = threads  # latency.measure reads it
    return run


class _Loop:
    """The bare interpreter, photo after photo; what goes in is quantized beforehand."""

    def __init__(self, content, photos, to_float, threads, kernels="xnnpack"):
        self.photos, self.to_float, self.threads = photos, to_float, threads
        self.interpreter = open_interpreter(content, threads, kernels)
        self.source = self.interpreter.get_input_details()[0]["index"]
        self.target = self.interpreter.get_output_details()[0]["index"]

    def __call__(self):
        outputs = []
        for photo in self.photos:
            self.interpreter.set_tensor(self.source, photo)
            self.interpreter.invoke()
            outputs.append(self.interpreter.get_tensor(self.target))
        return self.to_float(np.concatenate(outputs))


def _fresh(content, photos, to_float, threads):
    return np.concatenate([_Loop(content, [photo], to_float, threads)() for photo in photos])


def _batched(content, batch, to_float, threads):
    run = _Loop(content, [batch], to_float, threads)
    try:
        run.interpreter.resize_tensor_input(run.source, batch.shape)
        run.interpreter.allocate_tensors()
        if len(run()) != len(batch):
            return "the file is fixed to one photo a call"
    except (ValueError, RuntimeError) as error:
        return f"the file cannot be resized to a batch: {' '.join(str(error).split())[:120]}"
    return run
