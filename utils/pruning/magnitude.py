"""Magnitude pruning of Keras 3 models: masks over the smallest weights, kept while the model is fine-tuned.

Zeros make a file compress better; they do not make a dense kernel run faster. What removes arithmetic is
:mod:`utils.pruning.channels`. Sparsity is always the share of zeros among the *prunable* weights: the kernels of
convolutions and dense layers, but not of the first convolution and of depthwise convolutions, which Zhu and Gupta leave
alone as well. Source: Zhu and Gupta 2017, "To prune, or not to prune", arXiv:1710.01878.
"""

import contextlib
import dataclasses
import gzip

import keras
import numpy as np
import pandas as pd

from utils._checks import whole
from utils.layer_calls.keras_graph import parts
from utils.layer_calls.shapes import first_line
from utils.models import reestimate_batch_norm, set_weights

SCHEDULES = ("gradual", "one_shot")
RAMP = 0.6  # share of the steps over which sparsity rises; the rest lets the network recover (Zhu and Gupta's habit)
UPDATES = 20  # mask updates during the rise
REFRESHES = 4  # times in a pass that batch-norm statistics are estimated anew, where photos for it are given


def cubic_sparsity(step, end, final):
    """Sparsity at a training step: fast at first, where weights are redundant, and slower towards the end.

    s(t) = s_f * (1 - (1 - t / t_1)^3) for 0 <= t <= t_1, s_f after.

    Args:
        step: t, optimizer steps done.
        end: t_1, steps; 0 prunes at once.
        final: s_f, share of zeros in [0, 1).

    Example:
        >>> [round(cubic_sparsity(step, 100, 0.8), 3) for step in (0, 50, 100, 200)]
        [0.0, 0.7, 0.8, 0.8]

    Source: Zhu and Gupta 2017, arXiv:1710.01878, equation 1, from zero sparsity at step 0.
    """
    left = 0.0 if step >= end else 1 - step / end
    return float(final - final * left**3)


def prunable(model):
    """The layers whose kernels pruning may thin out: convolutions and Dense, without the first and the depthwise ones.

    Raises:
        TypeError, ValueError: not a Keras model; one that is not built, or has no such layer or a quantized one.
    """
    check_model(model)
    found = _prunable(model)
    if not found:
        raise ValueError(f"model {model.name!r} has no Dense layer and no convolution after the first to prune")
    check_kernels(found)
    return found


def check_kernels(layers):
    """Raise ValueError unless the `kernel` of each layer is one variable of floats, and nothing is added to it."""
    if odd := [layer.name for layer in layers if not _plain(layer)]:
        raise ValueError(
            f"expected plain float kernels to prune, got LoRA or quantized ones in {', '.join(odd)}; "
            "prune before you quantize or enable LoRA"
        )


def _plain(layer):
    return isinstance(layer.kernel, keras.Variable) and keras.backend.is_float_dtype(layer.kernel.dtype)


def check_model(model, expected="a Keras model"):
    """Raise TypeError or ValueError unless `model` is a Keras model that has its weights."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"expected {expected}, got {type(model).__name__}; load or make one first")
    if not model.built:
        raise ValueError(f"model {model.name!r} is not built yet; call it on a batch first")


def _prunable(model):
    convolutions = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    owners = [layer for layer, weight in _kernels(model) if weight.name == "kernel"]
    found = [layer for layer in owners if isinstance(layer, (*convolutions, keras.layers.Dense))]
    found = [layer for layer in found if not isinstance(layer, depthwise)]
    first = next((layer for layer in found if isinstance(layer, convolutions)), None)
    return [layer for layer in found if layer is not first]


def _kernels(model):
    """(layer, weight) of each kernel once, in the order of the model's weights; the layer is the innermost one."""
    outer_first = sorted(parts(model), key=lambda layer: len(parts(layer)), reverse=True)
    owner = {id(weight): layer for layer in outer_first for weight in layer.weights}
    return [(owner[id(weight)], weight) for weight in model.weights if weight.name.endswith("kernel")]


def _keep_largest(magnitudes, sparsity):
    """Mask (True keeps) without the smallest: exactly round(sparsity * size) go."""
    gone, keep = round(sparsity * magnitudes.size), np.ones(magnitudes.size, bool)
    if gone:
        keep[np.argpartition(magnitudes.ravel(), gone - 1)[:gone]] = False
    return keep.reshape(magnitudes.shape)


def check_share(share, name):
    """Raise ValueError unless `share` is a number in [0, 1); `name` is what the message calls it."""
    if isinstance(share, bool) or not isinstance(share, (int, float, np.number)) or not 0 <= share < 1:
        raise ValueError(f"{name} must be a share from 0 up to but excluding 1, got {share!r}")


class MagnitudePruning(keras.callbacks.Callback):
    """Keras callback that keeps masks over the kernels of `prunable(model)` while the model trains.

    Masks grow along :func:`cubic_sparsity` every `frequency` steps; a pruned weight never comes back.

    Args:
        sparsity: final share of zeros in [0, 1).
        end: steps over which sparsity rises; 0 prunes everything at the start.
        frequency: steps between two updates of the masks.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> _ = model.fit(np.ones((4, 8)), np.ones((4, 4)), callbacks=[MagnitudePruning(0.5, end=1)], verbose=0)
        >>> int((model.layers[0].get_weights()[0] == 0).sum())
        16
    """

    def __init__(self, sparsity, end=0, frequency=10):
        super().__init__()
        check_share(sparsity, "sparsity")
        self.sparsity, self.end, self.frequency = float(sparsity), whole("end", end, 0), whole("frequency", frequency)
        self.step, self.masks, self.records, self.kernels = 0, None, [], []

    def set_model(self, model):
        super().set_model(model)
        before, self.kernels = self.kernels, [layer.kernel for layer in prunable(model)]
        if list(map(id, before)) != list(map(id, self.kernels)):  # another model gets masks of its own
            self.step, self.masks, self.records = 0, None, []

    def on_train_begin(self, logs=None):
        self.update_masks()
        self.apply_masks()

    def on_train_batch_begin(self, batch, logs=None):
        self.first = batch

    def on_train_batch_end(self, batch, logs=None):
        before, self.step = self.step, self.step + batch - self.first + 1  # several, with steps_per_execution
        if before < self.end <= self.step or before // self.frequency < min(self.step, self.end) // self.frequency:
            self.update_masks()
        self.apply_masks()

    def on_train_end(self, logs=None):  # Keras has put averages in the weights' place (use_ema), or earlier weights
        self.apply_masks()

    def on_epoch_end(self, epoch, logs=None):
        measured = {name: float(value) for name, value in (logs or {}).items()}
        self.records.append({"epoch": epoch + 1, "step": self.step, "sparsity": self.reached(), **measured})

    def update_masks(self):
        """Choose the masks again by the present magnitudes; pruned weights stay pruned."""
        magnitudes = [np.abs(keras.ops.convert_to_numpy(kernel)) for kernel in self.kernels]
        if self.masks is not None:  # -1: weights already pruned sort before weights that merely happen to be zero
            pairs = zip(self._numpy_masks(), magnitudes, strict=True)
            magnitudes = [np.where(mask, values, -1.0) for mask, values in pairs]
        due = cubic_sparsity(self.step, self.end, self.sparsity)
        self.masks = [
            keras.ops.convert_to_tensor(_keep_largest(values, due), dtype=kernel.dtype)
            for values, kernel in zip(magnitudes, self.kernels, strict=True)
        ]

    def apply_masks(self):
        """Zero the pruned weights."""
        for kernel, mask in zip(self.kernels, self.masks, strict=True):
            kernel.assign(keras.ops.multiply(kernel, mask))

    def reached(self):
        """The share of prunable weights that the masks hold at zero."""
        masks = self._numpy_masks()
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    def _numpy_masks(self):
        return [keras.ops.convert_to_numpy(mask) > 0 for mask in self.masks]


@dataclasses.dataclass(frozen=True, repr=False)
class Pruned:
    """A magnitude-pruned model and what happened to it.

    Attributes:
        model: a new Keras model; the one given is untouched.
        sparsity: the share reached among prunable weights.
        schedule: "gradual" or "one_shot".
        report: DataFrame of :func:`sparsity_report`.
        history: DataFrame, one row per epoch: epoch, step, sparsity and the metrics of `fit`.
    """

    model: keras.Model
    sparsity: float
    schedule: str
    report: pd.DataFrame
    history: pd.DataFrame

    def __repr__(self):
        nonzero, weights = int(self.report["nonzero"].sum()), int(self.report["weights"].sum())
        return (
            f"Pruned {self.model.name!r}: {self.sparsity:.1%} of the prunable weights are zero ({self.schedule}); "
            f"{nonzero:,} of {weights:,} kernel weights left"
        )

    def _repr_html_(self):
        return f"<p>{self!r}</p>{self.report.round(3).to_html(index=False)}"


def sparsity_report(model):
    """Zeros in every kernel of a model, in the order of its weights, also of layers inside layers.

    A kernel is a weight whose name ends in "kernel". `prunable` is False for those that :func:`prune` leaves alone: of
    the first convolution, of depthwise, separable, transposed, recurrent and attention layers, and kernels that are
    quantized or have LoRA.

    Args:
        model: a built Keras 3 model.

    Returns:
        DataFrame: layer, type, shape, weights, nonzero, sparsity (share of zeros), prunable.

    Raises:
        TypeError, ValueError: not a Keras model; one that is not built.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="fc")])
        >>> sparsity_report(model)[["layer", "weights", "nonzero"]].values.tolist()
        [['fc', 32, 32]]
    """
    check_model(model)
    chosen = {id(layer) for layer in _prunable(model)}
    rows = []
    for layer, weight in _kernels(model):
        # Keras' `kernel` is a property of these classes: it unpacks int4 and adds what LoRA learned
        array = keras.ops.convert_to_numpy(layer.kernel if hasattr(type(layer), "kernel") else weight)
        nonzero, shape = int(np.count_nonzero(array)), "x".join(map(str, array.shape))
        sparsity = 1 - nonzero / array.size
        thinned = id(layer) in chosen and weight.name == "kernel" and _plain(layer)
        rows.append((layer.name, type(layer).__name__, shape, array.size, nonzero, sparsity, thinned))
    return pd.DataFrame(rows, columns=["layer", "type", "shape", "weights", "nonzero", "sparsity", "prunable"])


def gzip_bytes(model_or_bytes):
    """Size in bytes after gzip (level 9): what a download or an app bundle costs, and where zeros pay.

    Args:
        model_or_bytes: the bytes of a file (not its path), or a built Keras model, of which the float32 weights are
            compressed in order.

    Raises:
        TypeError, ValueError: neither of them; a model that is not built.

    Example:
        >>> gzip_bytes(bytes(1_000_000)) < 2_000
        True
    """
    data = model_or_bytes
    if not isinstance(data, (bytes, bytearray, memoryview)):
        check_model(data, "a Keras model or the bytes of a file")
        data = b"".join(np.asarray(array, np.float32).tobytes() for array in data.get_weights())
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def fine_tune(
    model, train_batches, epochs=1, learning_rate=1e-4, loss="categorical_crossentropy", verbose=0, norm_photos=None,
    callbacks=(),
):  # fmt: skip
    """Train `model` in place for a short while: Adam on a cosine to zero, batch normalization in inference mode.

    A batch of sixteen is too small to normalize by. But the statistics that pretraining left do not fit a network from
    which weights or channels were removed, which costs more accuracy than the removal itself (Li et al. 2020,
    arXiv:2007.02491): with `norm_photos` they are estimated again before, during and after training.

    Args:
        model: a Keras classifier with probabilities out.
        train_batches: (images, labels) batches of known number, as of `datasets.batches`, or a list. A stream counts
            its passes: each of several models needs a stream of its own, or they see other batches.
        epochs: passes over the batches; 0 trains nothing.
        learning_rate: peak, at the start.
        loss: any Keras loss that fits the labels.
        verbose, callbacks: as for `keras.Model.fit`.
        norm_photos: (n, height, width, 3) training photos for the batch-norm statistics, n >= 2; None keeps them.

    Returns:
        DataFrame, one row per epoch.

    Raises:
        ValueError: epochs that are no count, no batches, or arrays in their place.
    """
    whole("epochs", epochs, 0)
    if not epochs:
        if norm_photos is not None:
            reestimate_batch_norm(model, norm_photos)
        return pd.DataFrame()
    steps, callbacks = _steps(train_batches), list(callbacks)
    if norm_photos is not None:
        callbacks.append(_normalization_refresh(model, norm_photos, every=-(-steps // REFRESHES)))
    with _frozen_normalization(model):
        rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps * epochs)
        # jit_compile=False: XLA made training on CPUs five times slower here
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)
        history = model.fit(
            _ListBatches(train_batches) if isinstance(train_batches, (list, tuple)) else train_batches,
            epochs=epochs, callbacks=callbacks, verbose=verbose, shuffle=False,  # the stream shuffles itself
        )  # fmt: skip
    return pd.DataFrame({"epoch": [epoch + 1 for epoch in history.epoch], **history.history})


def prune(
    model, train_batches, sparsity, epochs=2, schedule="gradual", learning_rate=1e-4, loss="categorical_crossentropy",
    verbose=0, norm_photos=None,
):  # fmt: skip
    """Prune a trained model by magnitude while it is fine-tuned.

    "gradual" raises sparsity over the first 60% of the steps along Zhu and Gupta's cubic and trains on; "one_shot"
    removes everything before the first step and then trains for as long, which is the fair comparison.

    Args:
        model: a built Keras 3 classifier; it is copied, not changed.
        train_batches: (images, labels) batches, see :func:`fine_tune`.
        sparsity: share of the prunable weights to remove, in [0, 1).
        epochs: passes over the batches; with 0 the model is pruned at once and not trained.
        schedule: "gradual" or "one_shot".
        learning_rate, loss, verbose, norm_photos: see :func:`fine_tune`.

    Returns:
        Pruned.

    Raises:
        TypeError, ValueError: sparsity outside [0, 1), unknown schedule, epochs that are no count; nothing to prune, or
            a model that Keras cannot copy.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
        >>> batches = [(np.ones((4, 8), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]])]
        >>> prune(model, batches, 0.5, epochs=0).sparsity
        0.5
    """
    check_share(sparsity, "sparsity")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be {' or '.join(SCHEDULES)}, got {schedule!r}")
    schedule = schedule if epochs else "one_shot"
    whole("epochs", epochs, 0)
    total = _steps(train_batches) * epochs if epochs else 1
    end = max(round(RAMP * total), 1) if schedule == "gradual" else 0
    callback = MagnitudePruning(sparsity, end, frequency=max(end // UPDATES, 1))
    prunable(model)
    pruned = _copy(model)
    if not epochs:
        callback.set_model(pruned)
        callback.on_train_begin()
    fine_tune(pruned, train_batches, epochs, learning_rate, loss, verbose, norm_photos, [callback])
    return Pruned(pruned, callback.reached(), schedule, sparsity_report(pruned), pd.DataFrame(callback.records))


def _copy(model):
    try:
        return set_weights(keras.models.clone_model(model), model.get_weights())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"expected a model that Keras can make again from its config, layer by layer, got {model.name!r}, which is "
            "subclassed, shares a layer with a model inside it, or has a layer without get_config; train the model "
            f"itself with MagnitudePruning as a callback ({first_line(error)})"
        ) from error


def _steps(train_batches):
    """The number of batches. A list is looked through, a stream is not: it counts its passes."""
    try:
        steps = len(train_batches)
    except TypeError:
        raise ValueError("the number of training batches is unknown; pass a list, or a stream with a length") from None
    plain = isinstance(train_batches, (list, tuple, dict, str)) or hasattr(train_batches, "shape")
    if not steps or (plain and not all(isinstance(one, (list, tuple)) and len(one) > 1 for one in train_batches)):
        raise ValueError(
            f"expected at least one batch, each (images, labels), got a {type(train_batches).__name__} of length "
            f"{steps}; pass a list such as [(images, labels)]"
        )
    return steps


def _normalization_refresh(model, photos, every):

    def refresh(*_):
        reestimate_batch_norm(model, photos)

    return keras.callbacks.LambdaCallback(
        on_train_begin=refresh,
        on_train_batch_begin=lambda batch, logs: refresh() if batch and batch % every == 0 else None,
        on_epoch_end=refresh,
    )


@contextlib.contextmanager
def _frozen_normalization(model):
    """Batch-normalization layers in inference mode inside the block, as before after it."""
    kind = keras.layers.BatchNormalization
    layers = [layer for layer in parts(model) if isinstance(layer, kind) and layer.trainable]
    for layer in layers:
        layer.trainable = False
    try:
        yield
    finally:
        for layer in layers:
            layer.trainable = True


class _ListBatches(keras.utils.PyDataset):
    """A plain list of (images, labels) batches in the form that `fit` takes."""

    def __init__(self, batches):
        super().__init__()
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, place):
        return self.batches[place]
