"""A finished run: choices, history, best weights; loading, predicting, and the compact form that ships.

A run's folder holds ``run.json``, which describes it and names its file with a SHA-256: ``weights.npz``, or for a run
that ships as a record ``predictions.npz``. While it trains there is ``checkpoint.npz`` alone, replaced in one step.
"""

import contextlib
import dataclasses
import functools
import hashlib
import html
import json
import os
import pathlib
import warnings
import zipfile

import keras
import numpy as np
import pandas as pd

from utils import files, models
from utils.datasets import pipeline

from .config import BASELINE, RunConfig

SHIPPED = files.PROJECT / "models"  # finished runs that are part of the repository
SCHEMA = 1
STATE, CHECKPOINT = "run.json", "checkpoint.npz"
HEAD_ARRAYS = 2  # kernel and bias of the dense layer that a frozen run trains


class DamagedRun(ValueError):
    """A run folder does not hold what its state says."""


class RunBusy(RuntimeError):
    """Another process trains the same run."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a training run left behind; prints itself.

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
        content: digest of the labels and photos that it was trained on; None where it is not known.
        files: kind ("weights" or "predictions") -> name, sha256, size_bytes.
        folder: where it lies.
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
    content: str | None
    files: dict
    folder: pathlib.Path

    @property
    def recorded(self):
        """Whether it ships what it predicted, and not its weights."""
        return "predictions" in self.files

    def architecture(self):
        """The full network with random weights: what costs are counted on. keras.Model, uncompiled."""
        return build(self.config, self.classes, weights=None)

    def model(self):
        """The full network, images (n, s, s, 3) in 0..255 to probabilities (n, C), with the best weights.

        Returns:
            keras.Model, uncompiled, built anew at each call: changing it does not change the run.

        Raises:
            FileNotFoundError: the run ships as a record, without its weights; says how to have them.
            WeightsUnavailable: the run ships as a head, and its backbone's weights cannot be had.
        """
        if self.recorded:
            raise FileNotFoundError(
                f"run {self.run_id} ships what it predicted, not its weights; "
                "training.train(run.config, dataset, resume=False) trains it again"
            )
        arrays = read_arrays(self.folder / self.files["weights"]["name"])
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

    def predict(self, photos, tta=False, batch_size=32):
        """Probabilities of photos.

        Args:
            photos: a path, a list of paths, a DataFrame with `path`, or decoded images (n, s, s, 3) in 0..255.
            tta: test-time augmentation: True or "flip" averages each photo and its mirror image.
            batch_size: photos a forward pass.

        Returns:
            float32 (n, C), rows in the photos' order. A run that ships as a record answers from it (needs a DataFrame
            with `id`).

        Raises:
            ValueError: unknown `tta`, a file that cannot be decoded, images of another size or scaling, or a photo or
                `tta` that a record does not hold.

        Example:
            >>> run.predict("photo.jpg").round(2)  # doctest: +SKIP
            array([[0.97, 0.02, 0.01]], dtype=float32)
        """
        if tta not in (False, None, True, "flip"):
            raise ValueError(f"tta must be False or 'flip', got {tta!r}")
        if self.recorded:
            if tta:
                raise ValueError(f"run {self.run_id} ships what it predicted for plain photos; train it again for tta")
            return _look_up(self, photos)
        if isinstance(photos, np.ndarray):
            side = self.config.input_size
            if photos.ndim != 4 or photos.shape[1:] != (side, side, 3):
                raise ValueError(f"images must have the shape (n, {side}, {side}, 3), got {photos.shape}")
            if photos.dtype.kind == "f" and 0 < photos.max(initial=0) <= 1:
                raise ValueError("images must be pixels in 0..255, got 0..1; the network scales them itself")
            return self._predict(photos, tta, batch_size)
        if not isinstance(photos, pd.DataFrame):
            paths = [photos] if isinstance(photos, str | os.PathLike) else list(photos)
            photos = pd.DataFrame({"path": list(map(os.fspath, paths))})
        if "path" not in photos:
            raise ValueError(f"a frame of photos needs the column path, got {', '.join(map(str, photos.columns))}")
        parts = [np.zeros((0, len(self.classes)), np.float32)]
        for start in range(0, len(photos), 8 * batch_size):
            images = pipeline.load_images(photos.iloc[start : start + 8 * batch_size], self.config.input_size)
            parts.append(self._predict(images, tta, batch_size))
        return np.concatenate(parts)

    def _predict(self, images, tta, batch_size):
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

    def __repr__(self):
        judged = ""
        if "val_accuracy" in self.history:
            best = self.history.loc[self.history["epoch"] == self.best_epoch, "val_accuracy"].iloc[0]
            judged = f", best epoch {self.best_epoch} (validation accuracy {best:.3f})"
        return (
            f"Run {self.run_id}: finished, {len(self.history)} of {self.config.epochs} epochs{judged}, "
            f"{self.n_train} training photos, {self.duration_s / 60:.1f} minutes"
        )

    def _repr_html_(self):
        return f"<p>{html.escape(repr(self))}</p>{self.history.round(4).to_html(index=False)}"


def build(config, classes, weights="auto"):
    """The network of a run: baseline or transfer model, images to probabilities."""
    if config.model == BASELINE:
        return models.baseline_cnn(list(classes), config.input_size)
    return models.transfer(config.model, list(classes), config.input_size, dropout=config.dropout, weights=weights)


# --- finding ----------------------------------------------------------------------------------------------------------


def load(run_id, folder=None):
    """A finished run by its id, from `folder` (default: the runs folder) or from the repository's ``models/``.

    Raises:
        FileNotFoundError: there is no finished run of this id.
    """
    run = find_finished(run_id, files.runs_dir(folder))
    if run is None:
        raise FileNotFoundError(f"there is no finished run {run_id}; train it first")
    return run


def find_finished(run_id, folder, shipped=True):
    """The finished run of this id in `folder` or (with `shipped`) among those in ``models/``, or None.

    A damaged one is named in a warning and counts as not there.
    """
    for home in (pathlib.Path(folder), SHIPPED)[: 1 + bool(shipped)]:
        try:
            run = _read(home / run_id)
        except DamagedRun as error:
            again = "fetch the repository again" if home == SHIPPED else "it is trained again when it is asked for"
            warnings.warn(f"{home / run_id} is not used: {error}; {again}", stacklevel=2)
            continue
        if run:
            return run
    return None


def _read(folder):
    """The finished run in a folder, or None where there is none."""
    # state.json: how runs were kept before run.json did for both
    path = next((folder / name for name in (STATE, "state.json") if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        state = files.read_json(path)
        if state["schema"] != SCHEMA:
            raise DamagedRun(f"{path.name} is not one of this version")
        if state["status"] != "finished":
            return None
        if not state["files"]:
            raise DamagedRun(f"{path.name} names neither weights nor predictions")
        for entry in state["files"].values():
            data = (folder / entry["name"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise DamagedRun(
                    f"{entry['name']} is not what was written ({len(data):,} of {entry['size_bytes']:,} bytes)"
                )
        run = Run(
            **{name: state[name] for name in _PLAIN},
            config=RunConfig.from_dict(state["config"]),
            classes=tuple(state["classes"]),
            history=pd.DataFrame(state["history"]),
            content=state.get("content"),
            folder=folder,
        )
    except DamagedRun:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DamagedRun(f"{path.name} does not describe a run ({error})") from error
    return run if not state.get("head_only") or _same_backbone(run) else None


_PLAIN = (
    "run_id", "fingerprint", "best_epoch", "initial", "environment", "duration_s", "n_train", "n_validation",
    "weights_source", "files",
)  # fmt: skip


def _same_backbone(run):
    """Whether a shipped head goes with the pretrained weights of this machine; looks at no network."""
    try:
        return models.weights_source(run.config.model, download=False) == run.weights_source
    except models.WeightsUnavailable:
        return run.weights_source == "ImageNet"  # which are fetched when the network is asked for


# --- writing ----------------------------------------------------------------------------------------------------------


def write(folder, state, arrays, kind="weights"):
    """Write a finished run: its arrays, and then the state with their hash; arrays without it count as not there."""
    entry = files.write_arrays(folder / f"{kind}.npz", arrays)
    files.write_json(folder / STATE, {**state, "schema": SCHEMA, "files": {kind: entry}})


def export(run, folder=None):
    """Write a finished run in compact form: ``run.json`` and ``weights.npz``.

    Kernels are kept in float16 (half the bytes; about three digits), biases and batch-norm parameters in float32. Of a
    frozen run the head alone is written: the backbone's weights are somebody else's, and it has not changed them. Such
    a run is found only where the same pretrained weights are.

    Args:
        run: a Run with its weights.
        folder: the folder to write to; default ``models/<run_id>`` of the repository, where :func:`load` looks.

    Returns:
        pathlib.Path of the folder.

    Raises:
        ValueError: the run's frozen backbone was calibrated on photos.
    """
    folder = pathlib.Path(folder) if folder else SHIPPED / run.run_id
    head_only = run.config.mode == "frozen"
    if head_only and run.weights_source == models.WARM_START:
        raise ValueError(
            f"run {run.run_id} stands on a backbone that was calibrated on photos; its head alone cannot predict"
        )
    arrays = read_arrays(run.folder / run.files["weights"]["name"])
    arrays = dict(sorted(arrays.items())[-HEAD_ARRAYS if head_only else 0 :])
    arrays = {name: value.astype(np.float16 if value.ndim >= 2 else np.float32) for name, value in arrays.items()}
    write(folder, {**_to_state(run), "head_only": head_only}, arrays)
    return folder


def export_record(run, dataset):
    """Write a finished run as a record: ``run.json`` and what it predicts for the validation and the test set.

    For runs whose numbers a table shows and whose network nobody will use: a hundred kilobytes or two, not megabytes.

    Args:
        run: a Run with its weights.
        dataset: the Dataset that it was trained on.

    Returns:
        pathlib.Path of the folder: ``models/<run_id>`` of the repository, where :func:`load` looks.

    Raises:
        ValueError: the run is a record already, or was trained on other photos.
    """
    if run.recorded:
        raise ValueError(f"run {run.run_id} is a record already")
    if run.fingerprint != str(dataset.fingerprint):
        raise ValueError(f"run {run.run_id} was trained on photos {run.fingerprint}, got {dataset.fingerprint}")
    folder, frame = SHIPPED / run.run_id, dataset.frame[dataset.frame["split"] != "train"]
    arrays = {"id": np.array([str(one) for one in frame["id"]]), "probabilities": run.predict(frame)}
    write(folder, _to_state(run), arrays, "predictions")
    return folder


def _look_up(run, frame):
    """The recorded probabilities of a frame's photos; any selection of them, in any order."""
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"run {run.run_id} ships what it predicted, not its weights: pass a DataFrame with `id`")
    arrays = read_arrays(run.folder / run.files["predictions"]["name"])
    place = {one: row for row, one in enumerate(arrays["id"].tolist())}
    wanted = [str(one) for one in frame["id"]]
    if missing := [one for one in wanted if one not in place]:
        raise ValueError(
            f"run {run.run_id} ships what it predicted for {len(place):,} photos; {len(missing):,} of the "
            f"{len(wanted):,} asked for (such as {missing[0]}) are not among them: train it again to judge others"
        )
    return arrays["probabilities"][[place[one] for one in wanted]]


def _to_state(run):
    state = {name: getattr(run, name) for name in _PLAIN if name != "files"}
    content = {"content": run.content} if run.content else {}
    return state | content | {
        "status": "finished", "config": run.config.to_dict(), "classes": list(run.classes),
        "epochs_done": len(run.history), "history": run.history.to_dict("records"),
    }  # fmt: skip


# --- the folder while it trains ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(folder):
    """Own a run inside the block; the lock ends with the process, however it ends."""
    path = folder.parent / ".locks" / f"{folder.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a+")
    except OSError as error:
        raise type(error)(
            error.errno,
            f"cannot write to {folder.parent}: {error.strerror}; set CLOTHING_RUNS_DIR to a folder of yours",
        ) from error
    with handle:
        with contextlib.suppress(ImportError):  # Windows has no such locks: two processes must not train one run there
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise RunBusy(
                    f"run {folder.name} is being trained by process {owner}; wait for it, or pass another folder"
                ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        for path in folder.glob(".*.part.*"):  # we are alone here: every unfinished file is a dead process's
            path.unlink(missing_ok=True)
        yield


def set_aside(folder, reason):
    """Rename a run's folder, so that nothing of it is used and nothing is lost; says so in a warning."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(target)
    warnings.warn(f"run {folder.name}: {reason}; the folder was set aside as {target.name}", stacklevel=3)


def write_checkpoint(path, state, **groups):
    """Replace the checkpoint, one file, in one step: arrays by group and name, and the state (fit for JSON)."""
    arrays = {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
    with files.atomic_path(path) as part:
        np.savez(part, state=np.frombuffer(json.dumps(state).encode(), np.uint8), **arrays)


def read_checkpoint(path):
    """(state, dict group -> dict name -> array) that :func:`write_checkpoint` wrote."""
    arrays, groups = read_arrays(path), {}
    state = json.loads(arrays.pop("state").tobytes())
    for name, value in arrays.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    return state, groups


def read_arrays(path):
    """dict name -> array of an ``.npz`` file; nothing in it is executed, and a damaged one is a DamagedRun."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedRun(f"{path.name} cannot be read ({error})") from error


def variables_to_arrays(variables):
    """Copies of Keras variables as arrays, named by position and kind, e.g. ``"0003.kernel"``."""
    return {name: np.array(variable.value.numpy()) for name, variable in zip(_names(variables), variables, strict=True)}


def assign(variables, arrays, what):
    """Give Keras variables the values that :func:`variables_to_arrays` took; names, number and shapes must agree."""
    wanted = dict(zip(_names(variables), variables, strict=True))
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    if shapes != {name: tuple(variable.shape) for name, variable in wanted.items()}:
        raise DamagedRun(f"the {what} do not fit the network's {len(wanted)} variables")
    for name, variable in wanted.items():
        variable.assign(arrays[name].astype(variable.dtype))


def _names(variables):
    # The last word of a name: what comes before ("sequential_3_dense_1_kernel_velocity") counts layers of the process.
    return [f"{i:04d}.{variable.name.replace('/', '_').split('_')[-1]}" for i, variable in enumerate(variables)]
