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
        TypeError, ValueError: not a Keras model; one that is not built, or has no such layer; quantized or LoRA layers.
    """
    found = _prunable(model)
    if not found:
        raise ValueError(f"model {model.name!r} has no Dense layer and no convolution after the first to prune")
    for layer in found:
        if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"layer {layer.name!r} is quantized or has LoRA weights; prune the plain model, before either"
            )
    return found


def _prunable(model):
    if not isinstance(model, keras.Model):
        raise TypeError(f"expected a Keras model to prune, got {type(model).__name__}")
    if not model.built:
        raise ValueError(f"model {model.name!r} is not built yet; call it on a batch first")
    convolutions = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    found = [layer for layer in _leaves(model) if isinstance(layer, (*convolutions, keras.layers.Dense))]
    found = [layer for layer in found if not isinstance(layer, depthwise)]
    first = next((layer for layer in found if isinstance(layer, convolutions)), None)
    return [layer for layer in found if layer is not first]


def _layers(layer, seen=None):
    """Every layer inside models, wrappers and layers of your own, each once and in order; what holds others last."""
    seen = set() if seen is None else seen
    if id(layer) not in seen:
        seen.add(id(layer))
        for part in _inner(layer):
            yield from _layers(part, seen)
        yield layer


def _inner(layer):
    if isinstance(layer, keras.Model) and layer.layers:
        return layer.layers
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _leaves(model):
    return [layer for layer in _layers(model) if not _inner(layer)]


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
        if frequency < 1 or end < 0:
            raise ValueError(f"expected end of 0 or more steps and frequency of 1 or more, got {end} and {frequency}")
        self.sparsity, self.end, self.frequency = float(sparsity), end, frequency
        self.step, self.masks, self.records = 0, None, []

    def set_model(self, model):
        super().set_model(model)
        self.kernels = [layer.kernel for layer in prunable(model)]

    def on_train_begin(self, logs=None):
        self.update_masks()
        self.apply_masks()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step <= self.end and (self.step % self.frequency == 0 or self.step == self.end):
            self.update_masks()
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
    """Zeros in every kernel of a model, prunable or not, in the model's order; those of layers of your own too.

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
    chosen = {id(layer) for layer in _prunable(model)}
    rows, seen = [], set()
    for layer in _layers(model):
        kernels = [weight for weight in layer.weights if weight.name.endswith("kernel") and id(weight) not in seen]
        seen.update(map(id, kernels))
        for kernel in kernels:
            array = keras.ops.convert_to_numpy(kernel)
            nonzero, shape = int(np.count_nonzero(array)), "x".join(map(str, array.shape))
            sparsity = 1 - nonzero / array.size
            rows.append((layer.name, type(layer).__name__, shape, array.size, nonzero, sparsity, id(layer) in chosen))
    return pd.DataFrame(rows, columns=["layer", "type", "shape", "weights", "nonzero", "sparsity", "prunable"])


def gzip_bytes(model_or_bytes):
    """Size in bytes after gzip (level 9): what a download or an app bundle costs, and where zeros pay.

    Args:
        model_or_bytes: the bytes of a file, or a Keras model, of which the float32 weights are compressed in order.

    Example:
        >>> gzip_bytes(bytes(1_000_000)) < 2_000
        True
    """
    data = model_or_bytes
    if not isinstance(data, (keras.Model, bytes, bytearray, memoryview)):
        raise TypeError(
            f"expected a Keras model or the bytes of a file, got {type(data).__name__}; read the file first"
        )
    if isinstance(data, keras.Model):
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
    """
    _check_epochs(epochs)
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
        ValueError: sparsity outside [0, 1), unknown schedule, nothing to prune, negative epochs.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
        >>> batches = [(np.ones((4, 8), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]])]
        >>> prune(model, batches, 0.5, epochs=0).sparsity
        0.5
    """
    check_share(sparsity, "sparsity")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be {' or '.join(SCHEDULES)}, got {schedule!r}")
    _check_epochs(epochs)
    schedule = schedule if epochs else "one_shot"
    total = _steps(train_batches) * epochs if epochs else 1
    end = max(round(RAMP * total), 1) if schedule == "gradual" else 0
    callback = MagnitudePruning(sparsity, end, frequency=max(end // UPDATES, 1))
    prunable(model)
    try:
        pruned = set_weights(keras.models.clone_model(model), model.get_weights())
    except (ValueError, TypeError, NotImplementedError) as error:  # a subclassed model, a layer in two models
        raise ValueError(
            f"model {model.name!r} cannot be copied, which pruning needs; expected a Functional or Sequential model in "
            "which no layer belongs to two models"
        ) from error
    if not epochs:
        callback.set_model(pruned)
        callback.on_train_begin()
    fine_tune(pruned, train_batches, epochs, learning_rate, loss, verbose, norm_photos, [callback])
    return Pruned(pruned, callback.reached(), schedule, sparsity_report(pruned), pd.DataFrame(callback.records))


def _check_epochs(epochs):
    if not isinstance(epochs, int) or epochs < 0:
        raise ValueError(f"epochs must be a whole number from 0 up, got {epochs!r}")


def _steps(train_batches):
    try:
        steps = len(train_batches)
    except TypeError:
        raise ValueError("the number of training batches is unknown; pass a list, or a stream with a length") from None
    pairs = not isinstance(train_batches, (list, tuple)) or all(
        isinstance(batch, (list, tuple)) and len(batch) == 2 for batch in train_batches
    )
    if not steps or not pairs:
        raise ValueError("train_batches must hold (images, labels) batches, such as [(images, labels)]")
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
    layers = [layer for layer in _leaves(model) if isinstance(layer, kind) and layer.trainable]
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
