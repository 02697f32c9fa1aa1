"""Training: from a RunConfig and a dataset to a Run, resumable at every epoch.

``train`` finds finished runs, goes on with interrupted ones and trains new ones. The best epoch is chosen on the
validation part; nothing here looks at the test part.
"""

import contextlib
import dataclasses
import time

import keras
import numpy as np

from utils import callbacks, environment, features, files, models, pipeline, runs, splits, training_data
from utils.run_config import BASELINE, RunConfig
from utils.run_store import DamagedRun, RunStore, assign, runs_dir, value_of, variables_to_arrays
from utils.runs import Run, export, load
from utils.training_data import class_weight_table, class_weights

__all__ = ["Run", "RunConfig", "class_weight_table", "class_weights", "export", "load", "train"]

EVALUATION_BATCH = 32  # photos a forward pass in validation; part of no result


def train(run, dataset, resume=True, strategy=None, folder=None, verbose=1, teacher=None):
    """Train a run, go on with it, or load it where it is finished.

    Sets the process' random seeds (Python, NumPy, TensorFlow) from ``run.seed``.

    Args:
        run: RunConfig.
        dataset: datasets.Dataset (anything with `frame`, `classes`, `fingerprint`).
        resume: False trains from the start; an older folder of this run is set aside.
        strategy: any ``tf.distribute`` strategy; `batch_size` is shared among its devices.
        folder: folder that holds the runs; default ``CLOTHING_RUNS_DIR``, else ``runs/``.
        verbose: 0 silent, 1 progress bar, 2 one line an epoch.
        teacher: callable frame -> probabilities (n, C), for a run whose config names a teacher.

    Returns:
        Run, finished.

    Raises:
        SplitLeak: a sender or a file stands on two sides and ``run.allow_leaks`` does not allow it.
        ValueError: unknown model, an empty part, a class without a training photo.
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
    folder = runs_dir(folder)
    run_id = run.run_id_for(dataset.fingerprint)
    if resume and (found := runs.find_finished(run_id, folder)):
        return found
    store = RunStore(folder / run_id)
    with store.lock():
        state = _state_to_resume(store, run, resume)
        if state is None or state["status"] != "finished":
            state = _Trainer(run, dataset, store, strategy, verbose, teacher).go_on(state)
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


@dataclasses.dataclass
class _Setup:
    """What differs between the modes: the network that trains, its batches, and the way to the full network."""

    network: keras.Model  # owns the variables that are checkpointed
    batches: object  # epoch -> tf.data of that epoch
    validation: object  # tf.data, or None
    full: object  # () -> the full network with the network's present weights
    at_size: object = None  # input size -> a network of that size on the same variables
    steps_per_execution: int = 1


class _Trainer:
    def __init__(self, config, dataset, store, strategy, verbose, teacher):
        self.config, self.dataset, self.store = config, dataset, store
        self.scope = strategy.scope if strategy is not None else contextlib.nullcontext
        self.verbose, self.teacher = verbose, teacher
        self.classes = tuple(map(str, dataset.classes))
        self.frame = dataset.frame[dataset.frame["split"] == "train"].reset_index(drop=True)
        self.validation = dataset.frame[dataset.frame["split"] == "validation"].reset_index(drop=True)
        if config.balance_to:
            balanced = splits.balance(dataset.frame, at_most=config.balance_to, seed=config.seed)
            self.frame = balanced[balanced["split"] == "train"].reset_index(drop=True)

    def go_on(self, state):
        """Train from `state` (None: from the start) to the end; returns the finished state."""
        config, self.mark = self.config, time.perf_counter()
        keras.utils.set_random_seed(config.seed)
        state = state or self.store.save(self._first_state())
        setup = self._setup(state)
        steps = -(-len(self.frame) // config.batch_size)
        with self.scope():
            optimizer = callbacks.make_optimizer(config, steps)
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
                with self.scope():
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
            "fingerprint": str(self.dataset.fingerprint), "classes": list(self.classes), "epochs_done": 0,
            "best_epoch": 0, "history": [], "initial": {}, "environment": environment.describe(), "duration_s": 0.0,
            "n_train": len(self.frame), "n_validation": len(self.validation), "weights_source": source,
        }  # fmt: skip

    # --- one epoch ----------------------------------------------------------------------------------------------------

    def _epoch(self, state, epoch, network, setup, guard):
        config, started = self.config, time.perf_counter()
        callbacks.reseed(network, config.seed, epoch)
        logs = network.fit(
            setup.batches(epoch), initial_epoch=epoch, epochs=config.epochs, verbose=self.verbose, shuffle=False,
            callbacks=[guard, callbacks.OneEpoch()],
        ).history  # fmt: skip
        row = {"epoch": epoch + 1, "loss": float(logs["loss"][-1]), "accuracy": float(logs["accuracy"][-1])}
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
        return {"val_loss": float(found["loss"]), "val_accuracy": float(found["accuracy"])}

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
        # XLA ("auto" turns it on) is several times slower on CPUs, and compiles for minutes.
        network.compile(
            optimizer, loss=keras.losses.CategoricalCrossentropy(), metrics=["accuracy"], jit_compile=False,
            steps_per_execution=setup.steps_per_execution,
        )  # fmt: skip

    # --- what each mode trains ----------------------------------------------------------------------------------------

    def _setup(self, state):
        config = self.config
        labels = training_data.targets(
            self.frame, self.classes, config.label_smoothing, self._teacher_probabilities(state), config.teacher_weight
        )
        weights = np.ones(len(self.frame), np.float32)
        if config.class_weights:
            kind = "balanced" if config.class_weights is True else config.class_weights
            table = class_weights(self.frame, self.classes, kind, config.effective_beta)
            numbers = training_data.label_numbers(self.frame, self.classes)
            weights = np.array([table[number] for number in numbers], np.float32)
        # Validation is judged on the labels themselves: no smoothing, no teacher, no weights.
        if config.mode == "frozen":
            return self._setup_frozen(labels, weights)
        return self._setup_photos(labels, weights)

    def _setup_frozen(self, labels, weights):
        import tensorflow as tf

        config = self.config
        extract = self._extract
        augment = training_data.augmentation(config.augment)
        trained = extract(self.frame, views=config.views, augment=augment, seed=config.seed)
        validation = None
        if len(self.validation):
            found, judged = extract(self.validation), training_data.targets(self.validation, self.classes)
            validation = tf.data.Dataset.from_tensor_slices((found, judged)).batch(1024)
        with self.scope():
            network = keras.Sequential(
                [
                    keras.Input((trained.shape[-1],), name="features"),
                    keras.layers.Dropout(config.dropout, name="dropout"),
                    keras.layers.Dense(len(self.classes), activation="softmax", name="classifier"),
                ],
                name="head",
            )

        def full():
            model = self._pretrained()
            return models.attach_head(model, *map(value_of, network.get_layer("classifier").weights))

        return _Setup(
            network=network,
            batches=lambda epoch: training_data.feature_batches(trained, labels, weights, config, epoch),
            validation=validation,
            full=full,
            # Steps of microseconds: a whole epoch in one call of the compiled function.
            steps_per_execution=-(-len(labels) // config.batch_size),
        )

    def _setup_photos(self, labels, weights):
        config = self.config
        kernel_bias = self._probe(weights) if config.mode == "fine_tune" and config.head_init == "probe" else None
        with self.scope():
            scratch = config.mode == "scratch"
            model = runs.build(config, self.classes, weights=None) if scratch else self._pretrained()
            if kernel_bias:
                models.attach_head(model, *kernel_bias)
            network = model
            if config.mode == "frozen_online":
                # The backbone as a whole runs in inference mode: its batch norm and its own dropout rest.
                extractor, head = models.split_at_features(model)
                extractor.trainable = False
                image = keras.Input(model.input_shape[1:], name="image")
                network = keras.Model(image, head(extractor(image, training=False)), name=model.name)
            else:
                models.set_trainable(model, config.unfreeze_from, batch_norm=scratch)
        epoch_now, streams = [0], {}

        def batches(epoch):
            epoch_now[0], size = epoch, config.input_size_at(epoch)
            if size not in streams:
                streams.clear()  # the decoded photos of one size at a time in memory
                streams[size] = training_data.photo_batches(
                    self.frame, labels, weights, config, size, lambda: epoch_now[0]
                )
            return streams[size]

        validation = None
        if len(self.validation):
            validation = pipeline.batches(self.validation, self.classes, config.input_size, EVALUATION_BATCH)
        return _Setup(
            network=network,
            batches=batches,
            validation=validation,
            full=lambda: model,
            at_size=lambda size: _at_size(network, size),
        )

    def _pretrained(self):
        model = runs.build(self.config, self.classes)
        if models.needs_batch_norm(self.config.model):
            features.calibrate(model, self.frame, self.config.input_size)
        return model

    def _extract(self, frame, **options):
        calibration = self.frame if models.needs_batch_norm(self.config.model) else None
        verbose = min(self.verbose, 1)
        return features.extract(
            self.config.model, frame, self.config.input_size, calibration=calibration, verbose=verbose, **options
        )

    def _probe(self, weights):
        validation = self._extract(self.validation) if len(self.validation) else None
        probe = features.linear_probe(
            self._extract(self.frame), self.frame["label"].to_numpy(), validation,
            self.validation["label"].to_numpy(), classes=self.classes, sample_weight=weights,
        )  # fmt: skip
        if self.verbose:
            print(f"head from {probe!r}", flush=True)
        return probe.kernel, probe.bias

    def _teacher_probabilities(self, state):
        if not self.config.teacher:
            return None
        shape = (len(self.frame), len(self.classes))
        path = self.store.folder / "teacher.npy"
        if path.exists():
            with contextlib.suppress(ValueError, OSError, EOFError):
                known = np.load(path, allow_pickle=False)
                if known.shape == shape and np.isfinite(known).all():
                    return known
        if self.teacher is not None:
            found = np.asarray(self.teacher(self.frame), np.float32)
        else:
            teachers = [load(name, self.store.folder.parent) for name in self.config.teacher]
            for one in teachers:
                if one.classes != self.classes:
                    raise ValueError(f"teacher {one.run_id} knows the classes {one.classes}, not {self.classes}")
            found = np.mean([one.predict(self.frame) for one in teachers], axis=0, dtype=np.float32)
        if found.shape != shape or not np.isfinite(found).all():
            raise ValueError(f"the teacher gave {found.shape}, not finite probabilities of shape {shape}")
        with files.atomic_path(path) as part:
            np.save(part, found)
        return found


def _at_size(network, size):
    """The same layers on an input of another size: new graph, same variables."""
    image = keras.Input((size, size, 3), name="image")
    sized = keras.models.clone_model(
        network,
        input_tensors=image,
        clone_function=lambda layer: layer,
        call_function=lambda layer, *a, **k: layer(*a, **k),
    )
    if [id(v) for v in sized.trainable_variables] != [id(v) for v in network.trainable_variables]:
        raise RuntimeError(f"{network.name} at size {size} does not share its variables; use progressive=()")
    return sized


def _best_epoch(history, monitor):
    if monitor == "none":
        return history[-1]["epoch"]
    sign = -1 if monitor == "val_accuracy" else 1
    # The first of equal ones, so that patience counts epochs without progress.
    return min(history, key=lambda row: (sign * row[monitor], row["epoch"]))["epoch"]


def _prefixed(prefix, arrays):
    return {f"{prefix}.{name}": value for name, value in arrays.items()}
