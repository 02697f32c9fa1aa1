"""Training: from a RunConfig and a dataset to a Run, resumable at every epoch.

``train`` finds finished runs, goes on with interrupted ones and trains new ones. The best epoch is chosen on the
validation set; nothing here looks at the test set.
"""

import contextlib
import functools
import hashlib
import math
import sys
import time

import keras
import numpy as np
from tqdm import tqdm
from tqdm.keras import TqdmCallback

from utils import environment, files, models
from utils.datasets import pipeline, splits

from . import batches, features
from . import run as runs
from .config import BASELINE, RunConfig

OTHER_CONTENT = "it was trained on other photos or labels, though the dataset's fingerprint is the same"


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


def train(run, dataset, resume=True, strategy=None, folder=None, verbose=1, callbacks=(), shipped=True):
    """Train a run, go on with it, or load it where it is finished.

    Sets the process' random seeds (Python, NumPy, TensorFlow) from ``run.seed``.

    Args:
        run: RunConfig.
        dataset: datasets.Dataset (anything with `frame`, `classes`, `fingerprint`).
        resume: False trains from the start; an older folder of this run is set aside.
        strategy: ``tf.distribute.MirroredStrategy`` over devices of this machine, which share out each batch; an epoch
            then leaves out the last photos of its order that fill no batch.
        folder: folder that holds the runs; default ``CLOTHING_RUNS_DIR``, else ``runs/``.
        verbose: 0 silent, 1 progress bar (one for each epoch, or one for a whole frozen run), 2 one line an epoch.
        callbacks: any ``keras.callbacks``, such as TensorBoard; they come after the epoch is kept, and a run that is
            loaded calls none.
        shipped: False trains what is not finished under `folder`, though it ships in ``models/``.

    Returns:
        Run, finished.

    Raises:
        SplitLeak: a photographer or a file stands on two sides and ``run.allow_leaks`` does not allow it.
        ValueError: unknown model, an empty part, a class without a training photo, or an unfit strategy.
        RunBusy: another process trains this run.
        Diverged: the loss is NaN or infinite; epochs before that one are kept.
        OSError: the folder cannot be written to; the last whole epoch is kept.

    Example:
        >>> from utils import datasets
        >>> photos = datasets.load("clothing-10")  # doctest: +SKIP
        >>> train(RunConfig("B", "mobilenet_v2", "frozen", 60, allow_leaks=("sender",)), photos)  # doctest: +SKIP
        Run b-...: finished, 60 of 60 epochs, ...
    """
    _check(run, dataset, strategy)
    home = files.runs_dir(folder) / run.run_id_for(dataset.fingerprint)
    found = runs.find_finished(home.name, home.parent, shipped) if resume else None
    if found and (found.content is None or found.content == content_of(dataset.frame)):
        return found
    with runs.lock(home):
        if home.exists() and (found or not resume):
            runs.set_aside(home, OTHER_CONTENT if found else "it is trained again from the start")
        trainer = _Trainer(run, dataset, home, strategy, verbose, callbacks)
        try:
            trainer.go_on()
        except runs.DamagedRun as error:
            runs.set_aside(home, str(error))
            trainer.go_on()
    return runs.load(home.name, home.parent)


def content_of(frame):
    """Digest of what is trained on and chosen by: the parts, labels and bytes of all photos but the test set's."""
    hashes = frame["sha256"] if "sha256" in frame else [""] * len(frame)
    rows = zip(frame["split"], frame["label"], hashes, frame["path"], strict=True)
    rows = sorted((part, label, sha or features.content(path)) for part, label, sha, path in rows if part != "test")
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _check(run, dataset, strategy):
    if not isinstance(run, RunConfig) or not hasattr(dataset, "frame"):
        got = f"{type(run).__name__} and {type(dataset).__name__}"
        raise TypeError(f"train needs a RunConfig and a Dataset (of datasets.load or from_folder), got {got}")
    if run.model != BASELINE and run.model not in models.BACKBONES:
        raise ValueError(f"model must be one of {', '.join([BASELINE, *models.BACKBONES])}, got {run.model!r}")
    splits.require(dataset.frame, ["path", "label", "split"], "a dataset to train on")
    splits.check(dataset.frame, allow=set(run.allow_leaks))
    parts = dataset.frame["split"].value_counts()
    if not parts.get("train"):
        raise ValueError("the dataset has no training photo; check its split")
    if not parts.get("validation") and run.monitor != "none":
        raise ValueError(
            f"the dataset has no validation photo to choose by {run.monitor}; use another split, or monitor='none'"
        )
    # Raises where a class has no training photo.
    batches.class_weights(dataset.frame[dataset.frame["split"] == "train"], dataset.classes)
    if strategy is not None:
        import tensorflow as tf

        if not isinstance(strategy, tf.distribute.MirroredStrategy | tf.distribute.OneDeviceStrategy):
            raise ValueError(
                f"strategy must be a MirroredStrategy over devices of this machine, got {type(strategy).__name__}; "
                "Keras cannot fit over several machines: train other runs there"
            )
        if run.batch_size % strategy.num_replicas_in_sync:
            raise ValueError(
                f"batch_size must be a multiple of the {strategy.num_replicas_in_sync} devices, got {run.batch_size}"
            )


class _Trainer:
    """One run's photos and choices, from the last checkpoint to the finished run."""

    def __init__(self, config, dataset, home, strategy, verbose, callbacks):
        self.config, self.dataset, self.home = config, dataset, home
        self.strategy, self.verbose, self.callbacks = strategy, verbose, callbacks
        self.classes = tuple(map(str, dataset.classes))
        frame = dataset.frame
        if config.balance_to:
            frame = splits.balance(frame, at_most=config.balance_to, seed=config.seed)
        self.frame = frame[frame["split"] == "train"].reset_index(drop=True)
        self.validation = frame[frame["split"] == "validation"].reset_index(drop=True)
        self.weights = np.ones(len(self.classes), np.float32)
        if config.class_weights:
            self.weights = np.array(list(batches.class_weights(self.frame, self.classes).values()), np.float32)

    def go_on(self):
        """Train from the checkpoint, if there is one, to the end, and write the finished run."""
        config, checkpoint = self.config, self.home / runs.CHECKPOINT
        self.epoch, self.mark = 0, time.perf_counter()
        state, arrays = runs.read_checkpoint(checkpoint) if checkpoint.exists() else (self._first_state(), {})
        if state["content"] != content_of(self.dataset.frame):
            raise runs.DamagedRun(OTHER_CONTENT)
        with self.strategy.scope() if self.strategy else contextlib.nullcontext():
            network, stream, validation, full = self._frozen() if config.mode == "frozen" else self._on_photos()
            if self.strategy:  # a photo for every device in every step
                stream = stream.take(max(len(self.frame) // config.batch_size, 1))
            optimizer = make_optimizer(config, -(-len(self.frame) // config.batch_size))
            # XLA ("auto" turns it on) is several times slower on CPUs, and compiles for minutes. A step of a head takes
            # microseconds: a whole epoch of them in one call of the compiled function.
            network.compile(
                optimizer, loss="categorical_crossentropy", metrics=["accuracy"], jit_compile=False,
                steps_per_execution=len(stream) if config.mode == "frozen" else 1,
            )  # fmt: skip
            optimizer.build(network.trainable_variables)
        if arrays:
            runs.assign(network.weights, arrays["model"], "weights in the checkpoint")
            runs.assign(optimizer.variables, arrays["optimizer"], "optimizer's variables in the checkpoint")
        elif config.mode == "fine_tune" and validation is not None:
            state["initial"] = self.judge(network, validation)
        keeper = _Keeper(self, state, arrays.get("best"), validation if self.strategy else None)
        self.epoch = state["epochs_done"]
        if self.epoch < config.epochs and not keeper.patience_is_over():
            bar = None
            if config.mode == "frozen" and self.verbose == 1:  # one for all epochs: each is over in a moment
                bar = TqdmCallback(config.epochs, verbose=0, tqdm_class=tqdm, desc="head", file=sys.stdout)
            with contextlib.closing(bar.epoch_bar) if bar else contextlib.nullcontext():
                network.fit(
                    stream, validation_data=None if self.strategy else validation, initial_epoch=self.epoch,
                    epochs=config.epochs, verbose=0 if bar else self.verbose, shuffle=False,
                    callbacks=[keeper, *([bar] if bar else []), *keras.tree.flatten(self.callbacks)],
                )  # fmt: skip
        runs.assign(network.weights, keeper.best, "best weights in the checkpoint")
        state = keeper.state | {"status": "finished", "duration_s": self.duration(keeper.state)}
        runs.write(self.home, state, runs.variables_to_arrays(full().weights))
        checkpoint.unlink(missing_ok=True)

    def judge(self, network, validation):
        """Validation loss and accuracy."""
        if not self.strategy:
            found = network.evaluate(validation, verbose=0, return_dict=True)
            return {"val_loss": found["loss"], "val_accuracy": found["accuracy"]}
        # Not shared out: Keras fails where the shares of devices differ in size.
        loss, right = keras.metrics.CategoricalCrossentropy(), keras.metrics.CategoricalAccuracy()
        for images, targets in validation:
            found = network(images, training=False)
            loss.update_state(targets, found)
            right.update_state(targets, found)
        return {"val_loss": float(loss.result()), "val_accuracy": float(right.result())}

    def duration(self, state):
        """Seconds of work so far."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        return round(state["duration_s"] + passed, 3)

    def _first_state(self):
        config = self.config
        return {
            "run_id": self.home.name, "status": "training", "config": config.to_dict(),
            "fingerprint": str(self.dataset.fingerprint), "content": content_of(self.dataset.frame),
            "classes": list(self.classes), "epochs_done": 0, "best_epoch": 0, "history": [], "initial": {},
            "environment": environment.describe(), "duration_s": 0.0,
            "n_train": len(self.frame), "n_validation": len(self.validation),
            "weights_source": models.weights_source(config.model if config.mode != "scratch" else BASELINE),
        }  # fmt: skip

    # --- what each mode trains ----------------------------------------------------------------------------------------

    def _frozen(self):
        """(network to train, its batches, its validation batches or None, function that returns the full network)."""
        import tensorflow as tf

        config = self.config
        trained = self._extract(self.frame, views=config.views, augment=batches.augmentation(config.augment))
        validation = None
        if len(self.validation):
            labels = pipeline.label_numbers(self.validation["label"], self.classes)
            targets = batches.class_targets(len(self.classes))[labels]
            validation = tf.data.Dataset.from_tensor_slices((self._extract(self.validation), targets)).batch(32)
        # Just before the weights are drawn: what was built or cached until here must not tell in them.
        keras.utils.set_random_seed(config.seed)
        network = keras.Sequential([
            keras.Input((trained.shape[-1],), name="features"),
            keras.layers.Dropout(config.dropout, name="dropout"),
            keras.layers.Dense(len(self.classes), activation="softmax", name="classifier"),
        ], name="head")  # fmt: skip
        labels = pipeline.label_numbers(self.frame["label"], self.classes)
        stream = batches.feature_batches(trained, labels, self.weights, config, lambda: self.epoch)
        return (
            network, stream, validation,
            lambda: models.attach_head(self._pretrained(), *network.get_layer("classifier").get_weights()),
        )  # fmt: skip

    def _on_photos(self):
        """As :meth:`_frozen`."""
        config = self.config
        scratch = config.mode == "scratch"
        head = None if scratch else self._probe()
        keras.utils.set_random_seed(config.seed)
        model = runs.build(config, self.classes, weights=None) if scratch else self._pretrained()
        if head:
            models.attach_head(model, head.kernel, head.bias)
        models.set_trainable(model, batch_norm=scratch)
        if scratch:
            fuse_batch_norm(model)
        stream = batches.photo_batches(self.frame, self.classes, self.weights, config, lambda: self.epoch)
        validation = None
        if len(self.validation):
            validation = pipeline.batches(self.validation, self.classes, config.input_size, 32)
        return model, stream, validation, lambda: model

    def _pretrained(self):
        model = runs.build(self.config, self.classes)
        if models.needs_batch_norm(self.config.model):
            features.calibrate(model, self.frame, self.config.input_size)
        return model

    def _extract(self, frame, **options):
        config = self.config
        return features.extract(
            config.model, frame, config.input_size, seed=config.seed, verbose=min(self.verbose, 1),
            calibration=self.frame, **options,
        )  # fmt: skip

    def _probe(self):
        judged = (self._extract(self.validation), self.validation["label"]) if len(self.validation) else ()
        weights = self.weights[pipeline.label_numbers(self.frame["label"], self.classes)]
        probe = features.linear_probe(
            self._extract(self.frame), self.frame["label"], *judged, classes=self.classes, sample_weight=weights
        )
        if self.verbose:
            print(f"head from {probe!r}", flush=True)
        return probe


class _Keeper(keras.callbacks.Callback):
    """Keeps what an epoch leaves: a row of history, the best weights, the checkpoint; stops when patience is over."""

    def __init__(self, trainer, state, best, validation):
        super().__init__()
        self.trainer, self.state, self.best, self.validation = trainer, state, best, validation

    def patience_is_over(self):
        patience = self.trainer.config.patience
        return bool(patience) and self.state["epochs_done"] - self.state["best_epoch"] >= patience

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        # Every random layer starts anew from (seed, epoch): no epoch depends on those before.
        generators = [layer.seed_generator for layer in self.model.layers if hasattr(layer, "seed_generator")]
        for number, generator in enumerate(generators):
            start = np.random.SeedSequence([self.trainer.config.seed, epoch, number]).generate_state(1)[0] & 0x7FFFFFFF
            generator.state.assign(np.array([start, 0], generator.state.dtype))

    def on_train_batch_end(self, batch, logs=None):
        self._check("loss", logs or {}, f"step {batch + 1} of epoch {self.trainer.epoch + 1}")

    def on_epoch_end(self, epoch, logs=None):
        if self.validation is not None:
            logs = logs | self.trainer.judge(self.model, self.validation)
        self._check("val_loss", logs, f"validation after epoch {epoch + 1}")
        names = ("loss", "accuracy", "val_loss", "val_accuracy")
        row = {"epoch": epoch + 1} | {name: float(logs[name]) for name in names if name in logs}
        row["learning_rate"] = self._learning_rate()
        row["seconds"] = round(time.perf_counter() - self.started, 3)
        history = [*self.state["history"], row]
        best_epoch = _best_epoch(history, self.trainer.config.monitor)
        if best_epoch == epoch + 1:
            self.best = runs.variables_to_arrays(self.model.weights)
        self.state = self.state | {
            "epochs_done": epoch + 1, "history": history, "best_epoch": best_epoch,
            "duration_s": self.trainer.duration(self.state),
        }  # fmt: skip
        runs.write_checkpoint(
            self.trainer.home / runs.CHECKPOINT, self.state, best=self.best,
            model=runs.variables_to_arrays(self.model.weights),
            optimizer=runs.variables_to_arrays(self.model.optimizer.variables),
        )  # fmt: skip
        self.trainer.epoch = epoch + 1  # before the next pass over the photos begins
        self.model.stop_training |= self.patience_is_over()

    def _learning_rate(self):
        return float(keras.ops.convert_to_tensor(self.model.optimizer.learning_rate).numpy())

    def _check(self, name, logs, where):
        value = logs.get(name, 0.0)
        if not math.isfinite(value):
            raise Diverged(
                f"run {self.state['run_id']}: {name} became {value} at {where}, at a learning rate of "
                f"{self._learning_rate():.3g}; use a lower learning_rate or a longer warm-up "
                "(epochs before this one are kept)"
            )


def fuse_batch_norm(model):
    """Let TensorFlow's one kernel normalize batches; Keras 3 makes it of sums that each read the input."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = functools.partial(_fused_batch_norm, layer)


def _fused_batch_norm(layer, inputs, training=None, mask=None):
    import tensorflow as tf

    kernel = tf.compat.v1.nn.fused_batch_norm
    gamma, beta, mean, variance = (tf.convert_to_tensor(weight.value) for weight in layer.weights)
    if not training:
        return kernel(inputs, gamma, beta, mean, variance, layer.epsilon, is_training=False)[0]
    outputs, batch_mean, batch_variance = kernel(inputs, gamma, beta, epsilon=layer.epsilon)
    count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], tf.float32)
    batch_variance *= (count - 1) / count  # the kernel's is unbiased, Keras averages the biased one
    layer.moving_mean.assign(mean * layer.momentum + batch_mean * (1 - layer.momentum))
    layer.moving_variance.assign(variance * layer.momentum + batch_variance * (1 - layer.momentum))
    return outputs


def _best_epoch(history, monitor):
    if monitor == "none":
        return history[-1]["epoch"]
    sign = -1 if monitor == "val_accuracy" else 1
    # The first of equal ones, so that patience counts epochs without progress.
    return min(history, key=lambda row: (sign * row[monitor], row["epoch"]))["epoch"]


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, peak / warmup_steps a step, to a peak; then a constant rate or half a cosine down to zero.

    Example:
        >>> rate = WarmupCosine(1.0, total_steps=12, warmup_steps=2)
        >>> [round(float(rate(step)), 2) for step in (0, 1, 2, 7, 12)]
        [0.5, 1.0, 1.0, 0.5, 0.0]

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983; warm-up: Goyal et al. 2017, arXiv:1706.02677.
    """

    def __init__(self, peak, total_steps, warmup_steps=0, cosine=True):
        self.peak, self.total_steps, self.warmup_steps, self.cosine = peak, total_steps, warmup_steps, cosine

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        ramp = self.peak * (step + 1) / max(self.warmup_steps, 1)
        rest = max(self.total_steps - self.warmup_steps, 1)
        share = keras.ops.clip((step - self.warmup_steps) / rest, 0.0, 1.0)
        after = self.peak * 0.5 * (1 + keras.ops.cos(math.pi * share)) if self.cosine else self.peak + 0.0 * step
        return keras.ops.where(step < self.warmup_steps, ramp, after)


def make_optimizer(config, steps_per_epoch):
    """The keras.optimizers.Optimizer of a run, with its schedule; not yet built."""
    rate, total, warmup = config.learning_rate, config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    if config.schedule == "cosine" or warmup:
        rate = WarmupCosine(rate, total, round(warmup), config.schedule == "cosine")
    if config.optimizer == "adam":
        return keras.optimizers.Adam(rate, global_clipnorm=config.clip_norm)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
