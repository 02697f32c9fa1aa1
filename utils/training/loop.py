"""Training: from a RunConfig and a dataset to a Run, resumable at every epoch.

``train`` finds finished runs, goes on with interrupted ones and trains new ones. The best epoch is chosen on the
validation part; nothing here looks at the test part.
"""

import time

import keras
import numpy as np

from utils import environment, files, models
from utils.datasets import splits
from utils.training import callbacks
from utils.training import modes as training_modes
from utils.training import run as runs
from utils.training.batches import class_weight_table, class_weights
from utils.training.config import BASELINE, RunConfig
from utils.training.run import Run, export, export_record, load
from utils.training.run_store import DamagedRun, RunStore, assign, variables_to_arrays

__all__ = ["Run", "RunConfig", "class_weight_table", "class_weights", "export", "export_record", "load", "train"]


def train(run, dataset, resume=True, strategy=None, folder=None, verbose=1, teacher=None, shipped=True):
    """Train a run, go on with it, or load it where it is finished.

    Sets the process' random seeds (Python, NumPy, TensorFlow) from ``run.seed``.

    Args:
        run: RunConfig.
        dataset: datasets.Dataset (anything with `frame`, `classes`, `fingerprint`).
        resume: False trains from the start; an older folder of this run is set aside.
        strategy: any ``tf.distribute`` strategy on one machine; `batch_size` is shared among its devices.
        folder: folder that holds the runs; default ``CLOTHING_RUNS_DIR``, else ``runs/``.
        verbose: 0 silent, 1 progress bar, 2 one line an epoch.
        teacher: callable frame -> probabilities (n, C), for a run whose config names a teacher.
        shipped: False trains what is not finished under `folder`, though it ships in ``models/``.

    Returns:
        Run, finished.

    Raises:
        SplitLeak: a sender or a file stands on two sides and ``run.allow_leaks`` does not allow it.
        ValueError: unknown model, an empty part, a class without a training photo, a strategy over several machines.
        RunBusy: another process trains this run.
        Diverged: the loss is NaN or infinite; epochs before that one are kept.
        OSError: the folder cannot be written to; the last whole epoch is kept.

    Example:
        >>> from utils import datasets  # doctest: +SKIP
        >>> photos = datasets.load("clothing-10")  # doctest: +SKIP
        >>> train(RunConfig("B", "mobilenet_v2", "frozen", 60, allow_leaks=("sender",)), photos)  # doctest: +SKIP
        Run b-...: finished, 60 of 60 epochs, ...
    """
    _check(run, dataset, teacher)
    folder = files.runs_dir(folder)
    run_id = run.run_id_for(dataset.fingerprint)
    if resume and (found := runs.find_finished(run_id, folder, shipped)):
        return found
    store = RunStore(folder / run_id)
    with store.lock():
        state = _state_to_resume(store, run, resume)
        if state is None or state["status"] != "finished":
            try:
                state = _Trainer(run, dataset, store, strategy, verbose, teacher).go_on(state)
            except DamagedRun as error:  # whole, but of another network: written by other code
                store.set_aside(str(error))
                state = _Trainer(run, dataset, store, strategy, verbose, teacher).go_on(None)
        return runs.from_state(state, store.folder)


def _check(run, dataset, teacher):
    if run.model != BASELINE and run.model not in models.BACKBONES:
        known = ", ".join([BASELINE, *models.BACKBONES])
        raise ValueError(f"there is no model {run.model!r}; choose one of {known}")
    if len(dataset.classes) < 2:
        raise ValueError(f"dataset {getattr(dataset, 'name', '')} has {len(dataset.classes)} class; training needs two")
    if teacher is not None and not run.teacher:
        raise ValueError("a teacher was given, but RunConfig.teacher is empty; name it there, so that the id tells")
    splits.check(dataset.frame, allow=set(run.allow_leaks))
    parts = dataset.frame["split"].value_counts()
    if not parts.get("train"):
        raise ValueError("the dataset has no training photo; check its split")
    if not parts.get("validation") and run.monitor != "none":
        raise ValueError(
            f"the dataset has no validation photo to choose by {run.monitor}; use another split, or monitor='none'"
        )
    # Raises where a class has no training photo.
    class_weights(dataset.frame[dataset.frame["split"] == "train"], dataset.classes)


def _state_to_resume(store, run, resume):
    try:
        state = store.read()
        if state is None:
            return None
        if not resume:
            store.set_aside("it is trained again from the start", mark="replaced")
            return None
        known = runs.from_state(state, store.folder)
        if known.config != run:
            raise DamagedRun("it belongs to another RunConfig")
        if state["epochs_done"] != len(known.history):
            raise DamagedRun("its history does not go with its epochs")
        return state
    except DamagedRun as error:
        store.set_aside(str(error))
        return None


class _Trainer:
    def __init__(self, config, dataset, store, strategy, verbose, teacher):
        self.config, self.dataset, self.store = config, dataset, store
        self.verbose, self.teacher = verbose, teacher
        self.task = training_modes.Task(config, dataset, strategy, verbose)

    def go_on(self, state):
        """Train from `state` (None: from the start) to the end; returns the finished state."""
        config, task, self.mark = self.config, self.task, time.perf_counter()
        state = state or self.store.save(self._first_state())
        setup = task.setup(training_modes.teacher_probabilities(task, self.store, self.teacher))
        with task.scope():
            optimizer = callbacks.make_optimizer(config, task.steps)
            self._compile(setup.network, optimizer, setup)
            optimizer.build(setup.network.trainable_variables)
        if state["epochs_done"]:
            self._restore(state, setup.network, optimizer)
        elif config.mode == "fine_tune" and config.head_init == "probe" and setup.validation is not None:
            state["initial"] = self._judge(setup)
        guard = callbacks.StopOnNonFinite(state["run_id"])
        networks = {config.input_size: setup.network}
        while state["epochs_done"] < config.epochs and not self._patience_is_over(state):
            epoch = state["epochs_done"]
            size = config.input_size_at(epoch)
            if size not in networks:
                with task.scope():
                    networks[size] = setup.at_size(size)
                    self._compile(networks[size], optimizer, setup)
            state = self._epoch(state, epoch, networks[size], setup, guard)
        return self._finish(state, setup)

    def _first_state(self):
        config = self.config
        source = "random initialization"
        if config.mode != "scratch":
            source = models.weights_source(config.model)
        return {
            "run_id": self.store.folder.name, "status": "training", "config": config.to_dict(),
            "fingerprint": str(self.dataset.fingerprint), "classes": list(self.task.classes), "epochs_done": 0,
            "best_epoch": 0, "history": [], "initial": {}, "environment": environment.describe(), "duration_s": 0.0,
            "n_train": len(self.task.frame), "n_validation": len(self.task.validation), "weights_source": source,
        }  # fmt: skip

    # --- one epoch ----------------------------------------------------------------------------------------------------

    def _epoch(self, state, epoch, network, setup, guard):
        config, started = self.config, time.perf_counter()
        callbacks.reseed(network, config.seed, epoch)
        logs = network.fit(
            setup.batches(epoch), initial_epoch=epoch, epochs=config.epochs, verbose=self.verbose, shuffle=False,
            callbacks=[guard, callbacks.OneEpoch()],
        ).history  # fmt: skip
        loss = logs.get("exact_loss", logs["loss"])[-1]
        row = {"epoch": epoch + 1, "loss": float(loss), "accuracy": float(logs["accuracy"][-1])}
        with callbacks.averaged_weights(setup.network):
            if setup.validation is not None:
                judged = self._judge(setup)
                guard.check(judged, "val_loss", f"validation after epoch {epoch + 1}")
                row |= judged
            row["learning_rate"] = callbacks.learning_rate(network.optimizer)
            row["seconds"] = round(time.perf_counter() - started, 3)
            history = [*state["history"], row]
            best_epoch = _best_epoch(history, config.monitor)
            best = variables_to_arrays(setup.network.weights) if best_epoch == epoch + 1 else None
        now = time.perf_counter()
        state = {
            **state, "epochs_done": epoch + 1, "history": history, "best_epoch": best_epoch,
            "duration_s": round(state["duration_s"] + now - self.mark, 3),
        }  # fmt: skip
        self.mark = now
        arrays = {
            **_prefixed("model", variables_to_arrays(setup.network.weights)),
            **_prefixed("optimizer", variables_to_arrays(network.optimizer.variables)),
        }
        return self.store.save(state, checkpoint=arrays, **({"best": best} if best else {}))

    def _judge(self, setup):
        found = setup.network.evaluate(setup.validation, verbose=0, return_dict=True)
        if self.verbose == 1:
            print(" ".join(f"val_{name}: {found[name]:.4f}" for name in ("accuracy", "loss")), flush=True)
        return {"val_loss": float(found.get("exact_loss", found["loss"])), "val_accuracy": float(found["accuracy"])}

    def _patience_is_over(self, state):
        patience = self.config.patience
        return bool(patience) and state["epochs_done"] - state["best_epoch"] >= patience

    def _restore(self, state, network, optimizer):
        arrays = self.store.arrays(state, "checkpoint")
        for kind, variables in (("model", network.weights), ("optimizer", optimizer.variables)):
            part = {name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(f"{kind}.")}
            assign(variables, part, f"{kind} checkpoint of run {state['run_id']}")

    def _finish(self, state, setup):
        assign(setup.network.weights, self.store.arrays(state, "best"), f"best weights of run {state['run_id']}")
        weights = runs.weights_to_arrays(setup.full())
        state = {**state, "status": "finished"}
        state["duration_s"] = round(state["duration_s"] + time.perf_counter() - self.mark, 3)
        return self.store.save(state, weights=weights, checkpoint=None, best=None)

    def _compile(self, network, optimizer, setup):
        # Over several devices Keras averages the losses only roughly. A metric counts every photo, and weights have a
        # mean of 1, so that this is the loss of one device.
        exact = [keras.metrics.CategoricalCrossentropy(name="exact_loss")] if self.task.devices else None
        # XLA ("auto" turns it on) is several times slower on CPUs, and compiles for minutes.
        network.compile(
            optimizer, loss=callbacks.GlobalMeanCrossentropy(), metrics=["accuracy"], weighted_metrics=exact,
            jit_compile=False, steps_per_execution=setup.steps_per_execution,
        )  # fmt: skip
        if self.task.devices:
            # Keras would take a batch of every dataset to build its metrics on, and fails where the shares of devices
            # differ in size; on a made-up batch it builds the same.
            batch = (
                np.zeros((1, *network.input_shape[1:]), np.float32),
                np.zeros((1, len(self.task.classes)), np.float32),
            )
            network._symbolic_build(data_batch=(*batch, np.ones(1, np.float32)))
            network._maybe_symbolic_build = lambda *_, **__: None


def _best_epoch(history, monitor):
    if monitor == "none":
        return history[-1]["epoch"]
    sign = -1 if monitor == "val_accuracy" else 1
    # The first of equal ones, so that patience counts epochs without progress.
    return min(history, key=lambda row: (sign * row[monitor], row["epoch"]))["epoch"]


def _prefixed(prefix, arrays):
    return {f"{prefix}.{name}": value for name, value in arrays.items()}
