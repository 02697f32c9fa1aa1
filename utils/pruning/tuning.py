"""Pruning a trained Keras 3 model: gradually or at once, with a report of what is left.

Zeros make a file compress better; they do not make a dense kernel run faster (notebook 3 measures both). What removes
arithmetic is :mod:`utils.pruning.channels`; study A's loop over both is :mod:`study.pruning_loop`.
"""

import dataclasses
import gzip
import pathlib

import keras
import numpy as np
import pandas as pd

from utils.models.parts import reestimate_batch_norm
from utils.pruning.magnitude import MagnitudePruning, check_sparsity, cubic_sparsity, magnitude_masks, prunable

__all__ = [
    "MagnitudePruning", "Pruned", "RefreshNormalization", "copy_model", "cubic_sparsity", "fine_tune", "gzip_bytes",
    "magnitude_masks", "prunable", "prune", "sparsity_report",
]  # fmt: skip

SCHEDULES = ("gradual", "one_shot")
RAMP = 0.6  # share of the steps over which sparsity rises; the rest lets the network recover (Zhu and Gupta's habit)
UPDATES = 20  # mask updates during the rise
REFRESHES = 4  # times in a pass that batch-norm statistics are estimated anew, where photos for it are given


@dataclasses.dataclass(frozen=True, repr=False)
class Pruned:
    """A magnitude-pruned model and what happened to it.

    Attributes:
        model: a new Keras model; the one given is untouched.
        target: the sparsity asked for; sparsity: the sparsity reached, both among prunable weights.
        schedule: "gradual" or "one_shot".
        report: DataFrame of :func:`sparsity_report`.
        history: DataFrame, one row an epoch: epoch, step, sparsity and the metrics of `fit`.
    """

    model: keras.Model
    target: float
    sparsity: float
    schedule: str
    report: pd.DataFrame
    history: pd.DataFrame

    def to_frame(self):
        """The per-layer report."""
        return self.report

    def __repr__(self):
        nonzero, weights = int(self.report["nonzero"].sum()), int(self.report["weights"].sum())
        return (
            f"Pruned {self.model.name!r}: {self.sparsity:.1%} of the prunable weights are zero ({self.schedule}); "
            f"{nonzero:,} of {weights:,} kernel weights left"
        )

    def _repr_html_(self):
        return f"<p>{self!r}</p>{self.report.round(3).to_html(index=False)}"


def sparsity_report(model):
    """Zeros in every kernel of a model, prunable or not, in the model's order.

    Args:
        model: a built Keras 3 model.

    Returns:
        DataFrame: layer, type, shape, weights, nonzero, sparsity (share of zeros), prunable (by default).

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="fc")])
        >>> sparsity_report(model)[["layer", "weights", "nonzero"]].values.tolist()
        [['fc', 32, 32]]
    """
    try:
        chosen = {id(layer) for layer in prunable(model)}
    except ValueError:
        chosen = set()
    rows = []
    for layer in model._flatten_layers(include_self=False):
        kernel = getattr(layer, "kernel", None)
        if kernel is None or isinstance(layer, keras.Model):
            continue
        array = keras.ops.convert_to_numpy(kernel)
        rows.append(
            {
                "layer": layer.name, "type": type(layer).__name__, "shape": "x".join(map(str, array.shape)),
                "weights": array.size, "nonzero": int(np.count_nonzero(array)),
                "sparsity": 1 - np.count_nonzero(array) / array.size, "prunable": id(layer) in chosen,
            }
        )  # fmt: skip
    columns = ["layer", "type", "shape", "weights", "nonzero", "sparsity", "prunable"]
    return pd.DataFrame(rows, columns=columns)


def gzip_bytes(model_or_bytes):
    """Size after gzip (level 9): what a download or an app bundle costs, and where zeros pay.

    Args:
        model_or_bytes: the bytes of a file (a converted ``.tflite``), a path to it, or a Keras model, of which the
            float32 weights are compressed in order.

    Returns:
        int, bytes.

    Example:
        >>> gzip_bytes(bytes(1_000_000)) < 2_000
        True
    """
    if isinstance(model_or_bytes, keras.Model):
        data = b"".join(np.asarray(array, np.float32).tobytes() for array in model_or_bytes.get_weights())
    elif isinstance(model_or_bytes, (bytes, bytearray, memoryview)):
        data = bytes(model_or_bytes)
    else:
        path = pathlib.Path(model_or_bytes)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path} to compress; give its bytes, its path or a Keras model")
        data = path.read_bytes()
    return len(gzip.compress(data, compresslevel=9, mtime=0))


def fine_tune(
    model,
    train_batches,
    epochs=1,
    learning_rate=1e-4,
    callbacks=(),
    validation=None,
    steps_per_epoch=None,
    initial_epoch=0,
    loss="categorical_crossentropy",
    verbose=0,
    norm_photos=None,
):
    """Train `model` in place for a short while: Adam on a cosine to zero, batch normalization in inference mode.

    A batch of sixteen is too small to normalize by. But where weights or channels were removed, the statistics that
    pretraining left no longer fit what reaches the layers: with `norm_photos` they are estimated anew, see
    :class:`RefreshNormalization`.

    Args:
        model: a Keras classifier with probabilities out.
        train_batches: (images, labels) batches that `fit` takes, as `pipeline.batches` gives; or a list.
        epochs: passes over the batches; 0 trains nothing.
        learning_rate: peak, at the start.
        callbacks, validation, initial_epoch, verbose: as for `keras.Model.fit`.
        steps_per_epoch: batches in a pass; needed where `len(train_batches)` is unknown.
        loss: any Keras loss that fits the labels.
        norm_photos: (n, height, width, 3) training photos for the batch-norm statistics, n >= 2; None keeps them.

    Returns:
        DataFrame, one row an epoch.

    Raises:
        ValueError: negative epochs, or a stream of unknown length without steps_per_epoch.
    """
    steps = steps_of(train_batches, steps_per_epoch)
    with _frozen_normalization(model):
        _compile(model, steps * max(epochs, 1), learning_rate, loss)
        callbacks = [*callbacks, *_refresh(model, norm_photos, steps, epochs)]
        return _fit(model, train_batches, epochs, callbacks, validation, steps_per_epoch, initial_epoch, verbose)


def prune(
    model,
    train_batches,
    sparsity,
    epochs=2,
    schedule="gradual",
    initial_sparsity=0.0,
    scope="layer",
    layers=None,
    learning_rate=1e-4,
    validation=None,
    steps_per_epoch=None,
    loss="categorical_crossentropy",
    folder=None,
    verbose=0,
    norm_photos=None,
):
    """Prune a trained model by magnitude while it is fine-tuned.

    "gradual" raises sparsity over the first 60 % of the steps along Zhu and Gupta's cubic and trains on; "one_shot"
    removes everything before the first step and then trains for as long, which is the fair comparison.

    Args:
        model: a built Keras 3 classifier; it is copied, not changed.
        train_batches: (images, labels) batches, see :func:`fine_tune`.
        sparsity: share of the prunable weights to remove, in [0, 1).
        epochs: passes over the batches; with 0 the model is pruned at once and not trained.
        schedule: "gradual" or "one_shot".
        initial_sparsity: where the gradual schedule starts.
        scope: "layer" (each kernel equally sparse) or "global" (one threshold over all kernels).
        layers: names of layers to prune instead of all of :func:`prunable`.
        learning_rate, validation, steps_per_epoch, loss, verbose, norm_photos: see :func:`fine_tune`.
        folder: where the state is kept after every epoch; calling again with the same arguments goes on from there.

    Returns:
        Pruned.

    Raises:
        ValueError: sparsity outside [0, 1), unknown schedule or scope, nothing to prune, negative epochs, a folder
            that holds another run.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, activation="softmax")])
        >>> batches = [(np.ones((4, 8), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]])]
        >>> prune(model, batches, 0.5, epochs=0).sparsity
        0.5
    """
    check_sparsity(sparsity)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    prunable(model, layers)
    if epochs == 0:
        schedule = "one_shot"
    steps = steps_of(train_batches, steps_per_epoch) if epochs else 1
    total = steps * max(epochs, 1)
    end = max(round(RAMP * total), 1) if schedule == "gradual" else 0
    state_path = None if folder is None else pathlib.Path(folder) / "pruning_state.npz"
    callback = MagnitudePruning(
        sparsity,
        end=end,
        initial=initial_sparsity if schedule == "gradual" else 0.0,
        frequency=max(end // UPDATES, 1),
        scope=scope,
        layers=layers,
        state_path=state_path,
    )
    pruned = copy_model(model)
    with _frozen_normalization(pruned):
        _compile(pruned, total, learning_rate, loss)
        callback.set_model(pruned)
        callback.on_train_begin()  # here too, not only in fit, so that a finished run loads without a step
        done = callback.epochs_done
        each = [callback, *_refresh(pruned, norm_photos, steps, epochs)]
        _fit(pruned, train_batches, epochs, each, validation, steps_per_epoch, done, verbose)
    return Pruned(
        model=pruned,
        target=float(sparsity),
        sparsity=callback.reached(),
        schedule=schedule,
        report=sparsity_report(pruned),
        history=pd.DataFrame(callback.records),
    )


class RefreshNormalization(keras.callbacks.Callback):
    """Estimate batch-norm statistics anew while a network is pruned and trained: before, during, and after.

    What is removed changes the mean and variance that reach every later layer; statistics that do not follow cost more
    accuracy than the removal itself (Li et al. 2020, arXiv:2007.02491).

    Args:
        photos: (n, height, width, 3) training photos, at least two.
        every: steps between two estimates in a pass.
    """

    def __init__(self, photos, every):
        super().__init__()
        self.photos, self.every = photos, max(int(every), 1)

    def on_train_begin(self, logs=None):
        """The first estimate: the removal may lie behind already."""
        reestimate_batch_norm(self.model, self.photos)

    def on_train_batch_begin(self, batch, logs=None):
        """Again every so many steps."""
        if batch and batch % self.every == 0:
            reestimate_batch_norm(self.model, self.photos)

    def on_epoch_end(self, epoch, logs=None):
        """Again after every pass, so that the last one leaves statistics that fit."""
        reestimate_batch_norm(self.model, self.photos)


def _refresh(model, photos, steps, epochs):
    """The callback, or none; without a pass to train, the statistics are estimated at once."""
    if photos is None:
        return []
    if not epochs:
        reestimate_batch_norm(model, photos)
        return []
    return [RefreshNormalization(photos, -(-steps // REFRESHES))]


def copy_model(model):
    """A Keras model with the same layers and weights that shares nothing with `model`."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def steps_of(train_batches, steps_per_epoch=None):
    """Batches in a pass; raises ValueError where neither the batches nor `steps_per_epoch` say it."""
    if steps_per_epoch is not None:
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch is {steps_per_epoch}; give 1 or more")
        return steps_per_epoch
    try:
        return len(train_batches)
    except TypeError:
        raise ValueError("the training batches have no known number; pass steps_per_epoch") from None


def _compile(model, steps, learning_rate, loss):
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, max(steps, 1))
    # jit_compile=False: XLA made training on CPUs five times slower here
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"], jit_compile=False)
    model.optimizer.build(model.trainable_variables)


class _frozen_normalization:
    """Batch-normalization layers in inference mode inside the block, as before after it."""

    def __init__(self, model):
        kinds = keras.layers.BatchNormalization
        self.layers = [layer for layer in model._flatten_layers() if isinstance(layer, kinds) and layer.trainable]

    def __enter__(self):
        for layer in self.layers:
            layer.trainable = False

    def __exit__(self, *error):
        for layer in self.layers:
            layer.trainable = True


def _fit(model, train_batches, epochs, callbacks, validation, steps_per_epoch, initial_epoch, verbose):
    if epochs < 0:
        raise ValueError(f"epochs is {epochs}; give 0 or more")
    if initial_epoch >= epochs:
        return pd.DataFrame()
    if isinstance(train_batches, (list, tuple)):
        train_batches = _ListBatches(train_batches)
    history = model.fit(
        train_batches,
        epochs=epochs,
        initial_epoch=initial_epoch,
        steps_per_epoch=steps_per_epoch,
        validation_data=_ListBatches(validation) if isinstance(validation, (list, tuple)) else validation,
        callbacks=list(callbacks),
        verbose=verbose,
        shuffle=False,  # the stream shuffles itself; a resumed run must see what an uninterrupted one sees
    )
    return pd.DataFrame({"epoch": [epoch + 1 for epoch in history.epoch], **history.history})


class _ListBatches(keras.utils.PyDataset):
    """A plain list of (images, labels) batches in the form that `fit` takes."""

    def __init__(self, batches):
        super().__init__()
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, place):
        return self.batches[place]
