"""A finished run: choices, history, best weights; loading, predicting, and the compact form that is shipped."""

import dataclasses
import functools
import html
import pathlib
import warnings

import keras
import numpy as np
import pandas as pd

from utils import files, models
from utils.datasets import pipeline
from utils.training import run_records
from utils.training.config import BASELINE, RunConfig
from utils.training.run_store import SCHEMA, DamagedRun, RunStore, assign, read_arrays, variables_to_arrays

SHIPPED = files.PROJECT / "models"  # finished runs that are part of the repository
SHIPPED_STATE, SHIPPED_WEIGHTS = "run.json", "weights.npz"
HEAD_ARRAYS = 2  # kernel and bias of the dense layer that a frozen run trains


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a training run left behind.

    Attributes:
        config: its RunConfig.
        run_id: name of its folder.
        fingerprint: of the dataset that it was trained on.
        classes: class names in the order of the probabilities.
        history: DataFrame, one row an epoch: epoch, loss, accuracy, val_loss, val_accuracy, learning_rate, seconds.
        best_epoch: whose weights were kept, 1-based.
        initial: validation before the first epoch (fine_tune with a probe head), else {}.
        environment: machine and versions that it was trained with.
        duration_s: seconds of work, interruptions left out.
        n_train, n_validation: photos (copies of balancing counted).
        weights_source: what the weights started from.
        folder: where it lies.
        finished: False for a run that is still to be trained to its end.
        recorded: True where it ships what it predicted, and not its weights.
    """

    config: RunConfig
    run_id: str
    fingerprint: str
    classes: tuple
    history: pd.DataFrame
    best_epoch: int
    initial: dict
    environment: dict
    duration_s: float
    n_train: int
    n_validation: int
    weights_source: str
    folder: pathlib.Path
    finished: bool
    recorded: bool = False

    def architecture(self):
        """The full network with random weights: what costs are counted on. keras.Model, uncompiled."""
        return build(self.config, self.classes, weights=None)

    def model(self):
        """The full network, images (n, s, s, 3) in 0..255 to probabilities (n, C), with the best weights.

        Returns:
            keras.Model, uncompiled, built anew at each call: changing it does not change the run.

        Raises:
            FileNotFoundError: the run ships as a record, without its weights; says how to have them.
        """
        if self.recorded:
            raise FileNotFoundError(
                f"run {self.run_id} ships what it predicted, not its weights; "
                "training.train(run.config, dataset, resume=False) trains it again"
            )
        arrays = _weights(self.folder)
        alone = len(arrays) == HEAD_ARRAYS  # a shipped head: the backbone's own weights are below it
        model = build(self.config, self.classes, weights="auto" if alone else None)
        if alone:
            arrays = dict(sorted(variables_to_arrays(model.weights).items())[:-HEAD_ARRAYS]) | arrays
        assign(model.weights, arrays, f"weights of run {self.run_id}")
        for layer in model.layers:
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # it computes with copies of its weights
        return model

    @functools.cached_property
    def _forward(self):
        import tensorflow as tf

        model = self.model()
        forward = tf.function(lambda images: model(images, training=False), autograph=False)
        return forward, model  # the model must live as long as the function that uses its variables

    def predict(self, frame, tta=False, batch_size=32):
        """Probabilities of photos.

        Args:
            frame: DataFrame with `path`.
            tta: test-time augmentation: True or "flip" averages each photo and its mirror image.
            batch_size: photos a forward pass.

        Returns:
            float32 (n, C), rows in the frame's order. A run that ships as a record answers from it (`id` in the frame).

        Raises:
            ValueError: unknown `tta`, a file that cannot be decoded, or a photo or `tta` that a record does not hold.
        """
        if tta not in (False, None, True, "flip"):
            raise ValueError(f"tta is {tta!r}; choose False or 'flip'")
        if self.recorded:
            if tta:
                raise ValueError(f"run {self.run_id} ships what it predicted for plain photos; train it again for tta")
            return run_records.look_up(self.folder, frame)
        parts = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(frame), 8 * batch_size):
            images = pipeline.load_images(frame.iloc[start : start + 8 * batch_size], self.config.input_size)
            parts.append(self.predict_images(images, tta, batch_size))
        return np.concatenate(parts)

    def predict_images(self, images, tta=False, batch_size=32):
        """Like :meth:`predict`, for decoded images (n, s, s, 3) in 0..255."""
        parts = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(images), batch_size):
            batch = np.asarray(images[start : start + batch_size], np.float32)
            n = len(batch)
            # One batch size, one trace.
            batch = np.concatenate([batch, np.zeros((batch_size - n, *batch.shape[1:]), np.float32)])
            some = self._forward[0](batch).numpy()
            if tta:
                some = (some + self._forward[0](batch[:, :, ::-1]).numpy()) / 2
            parts.append(some[:n])
        return np.concatenate(parts)

    def to_frame(self):
        """The history as a DataFrame."""
        return self.history.copy()

    def __repr__(self):
        state = "finished" if self.finished else "unfinished"
        judged = ""
        if self.best_epoch and "val_accuracy" in self.history:
            best = self.history.loc[self.history["epoch"] == self.best_epoch, "val_accuracy"].iloc[0]
            judged = f", best epoch {self.best_epoch} (validation accuracy {best:.3f})"
        return (
            f"Run {self.run_id}: {state}, {len(self.history)} of {self.config.epochs} epochs{judged}, "
            f"{self.n_train} training photos, {self.duration_s / 60:.1f} minutes"
        )

    def _repr_html_(self):
        return f"<p>{html.escape(repr(self))}</p>{self.history.round(4).to_html(index=False)}"


def build(config, classes, weights="auto"):
    """The network of a run: baseline or transfer model, images to probabilities."""
    if config.model == BASELINE:
        return models.baseline_cnn(list(classes), config.input_size)
    return models.transfer(config.model, list(classes), config.input_size, dropout=config.dropout, weights=weights)


def from_state(state, folder):
    """The Run that a state describes.

    Raises:
        DamagedRun: a field is missing or makes no sense.
    """
    try:
        return Run(
            config=RunConfig.from_dict(state["config"]),
            run_id=str(state["run_id"]),
            fingerprint=str(state["fingerprint"]),
            classes=tuple(map(str, state["classes"])),
            history=pd.DataFrame(state["history"], columns=None if state["history"] else ["epoch", "loss", "accuracy"]),
            best_epoch=int(state["best_epoch"]),
            initial=dict(state["initial"]),
            environment=dict(state["environment"]),
            duration_s=float(state["duration_s"]),
            n_train=int(state["n_train"]),
            n_validation=int(state["n_validation"]),
            weights_source=str(state["weights_source"]),
            folder=pathlib.Path(folder),
            finished=state["status"] == "finished",
            recorded="predictions" in state.get("files", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedRun(f"its state does not describe a run ({error})") from error


def find_finished(run_id, folder, shipped=True):
    """The finished run of this id in `folder` or (with `shipped`) among those in ``models/``, or None.

    A damaged folder counts as not there; a shipped one is named in a warning.
    """
    store = RunStore(pathlib.Path(folder) / run_id)
    try:
        state = store.read()
        if state and state.get("status") == "finished":
            return from_state(state, store.folder)
    except DamagedRun:
        pass  # the caller, who owns the run's lock, sets it aside
    if not shipped:
        return None
    shipped = SHIPPED / run_id
    if not (shipped / SHIPPED_STATE).exists():
        return None
    try:
        state = files.read_json(shipped / SHIPPED_STATE)
        if not isinstance(state, dict) or state.get("schema") != SCHEMA:
            raise DamagedRun(f"{SHIPPED_STATE} is not one of this version")
        if not state["files"]:
            raise DamagedRun(f"{SHIPPED_STATE} names neither weights nor predictions")
        for entry in state["files"].values():
            RunStore(shipped)._check(entry)
        run = from_state(state, shipped)
        return run if not state.get("head_only") or _same_backbone(run) else None
    except (DamagedRun, ValueError, OSError, KeyError, TypeError) as error:
        warnings.warn(f"{shipped} is not used: {error}; fetch the repository again", stacklevel=2)
        return None


def _same_backbone(run):
    """Whether this machine has the pretrained weights that a shipped head was trained on."""
    try:
        return models.weights_source(run.config.model) == run.weights_source
    except models.WeightsUnavailable:
        return False


def load(run_id, folder=None):
    """A finished run by its id, from `folder` (default: the runs folder) or from the repository's ``models/``.

    Raises:
        FileNotFoundError: there is no finished run of this id.
    """
    run = find_finished(run_id, files.runs_dir(folder))
    if run is None:
        raise FileNotFoundError(f"there is no finished run {run_id}; train it first")
    return run


def export(run, folder=None, dtype="float16"):
    """Write a finished run in compact form: ``run.json`` and ``weights.npz``.

    Of a frozen run the head alone is written: the backbone's weights are somebody else's, and it has not changed them.
    Such a run is found only where the same pretrained weights can be had.

    Args:
        run: a finished Run.
        folder: the folder to write to; default ``models/<run_id>`` of the repository, where :func:`load` looks.
        dtype: of the kernels, "float16" (half the bytes; about three digits) or "float32". Biases and batch-norm
            parameters stay float32.

    Returns:
        pathlib.Path of the folder.

    Raises:
        ValueError: the run is not finished, its frozen backbone was calibrated on photos, or unknown `dtype`.
    """
    if not run.finished:
        raise ValueError(f"run {run.run_id} is not finished; train it to its end first")
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; choose 'float16' or 'float32'")
    folder = pathlib.Path(folder) if folder else SHIPPED / run.run_id
    head_only = run.config.mode in ("frozen", "frozen_online")
    if head_only and run.weights_source == models.WARM_START:
        raise ValueError(
            f"run {run.run_id} stands on a backbone that was calibrated on photos; its head alone is no model"
        )
    arrays = sorted(_weights(run.folder).items())[-HEAD_ARRAYS if head_only else 0 :]
    arrays = {name: value.astype(dtype) if value.ndim >= 2 else value.astype(np.float32) for name, value in arrays}
    entry = files.write_arrays(folder / SHIPPED_WEIGHTS, arrays)
    files.write_json(
        folder / SHIPPED_STATE, {**to_state(run), "schema": SCHEMA, "head_only": head_only, "files": {"weights": entry}}
    )
    return folder


def export_record(run, dataset, folder=None):
    """Write a finished run as a record: ``run.json`` and what it predicts for the validation and the test part.

    For runs whose numbers a table shows and whose network nobody will use: a hundred kilobytes or two, not megabytes.

    Args:
        run: a finished Run with its weights.
        dataset: the Dataset that it was trained on.
        folder: the folder to write to; default ``models/<run_id>`` of the repository, where :func:`load` looks.

    Returns:
        pathlib.Path of the folder.

    Raises:
        ValueError: the run is not finished, is a record already, or was trained on other photos.
    """
    if not run.finished or run.recorded:
        raise ValueError(f"run {run.run_id} is {'a record already' if run.recorded else 'not finished'}")
    if run.fingerprint != str(dataset.fingerprint):
        raise ValueError(f"run {run.run_id} was trained on photos {run.fingerprint}, not {dataset.fingerprint}")
    folder = pathlib.Path(folder) if folder else SHIPPED / run.run_id
    frame = dataset.frame[dataset.frame["split"] != "train"]
    entry = run_records.write(folder, frame, run.predict(frame))
    # The state comes last and names the hash: predictions without it count as not there.
    files.write_json(folder / SHIPPED_STATE, {**to_state(run), "schema": SCHEMA, "files": {"predictions": entry}})
    return folder


def to_state(run):
    """The part of a run's state file that describes it (its files left out)."""
    return {
        "run_id": run.run_id,
        "status": "finished" if run.finished else "training",
        "config": run.config.to_dict(),
        "fingerprint": run.fingerprint,
        "classes": list(run.classes),
        "epochs_done": len(run.history),
        "best_epoch": run.best_epoch,
        "history": run.history.to_dict("records"),
        "initial": run.initial,
        "environment": run.environment,
        "duration_s": run.duration_s,
        "n_train": run.n_train,
        "n_validation": run.n_validation,
        "weights_source": run.weights_source,
    }


def weights_to_arrays(model):
    """The weights of a model as arrays, in the form that :meth:`Run.model` reads."""
    return variables_to_arrays(model.weights)


def _weights(folder):
    if (folder / SHIPPED_STATE).exists():
        return read_arrays(folder / SHIPPED_WEIGHTS)
    store = RunStore(folder)
    return store.arrays(store.read(), "weights")
