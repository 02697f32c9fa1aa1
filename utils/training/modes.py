"""What each mode of training trains: the network, its batches, and the way from it to the full network."""

import contextlib
import dataclasses

import keras
import numpy as np

from utils import files, models
from utils.datasets import pipeline, splits
from utils.training import batches as training_data
from utils.training import features
from utils.training import run as runs
from utils.training.run_store import value_of

EVALUATION_BATCH = 32  # photos a forward pass in validation; part of no result


@dataclasses.dataclass
class Setup:
    """What differs between the modes.

    Attributes:
        network: owns the variables that are checkpointed; images or features to probabilities.
        batches: callable, epoch (0-based) -> tf.data of that epoch.
        validation: tf.data, or None.
        full: callable, () -> the full network with the present weights of `network`.
        at_size: callable, input size -> a network for that size on the same variables.
        steps_per_execution: steps in one call of the compiled function.
    """

    network: keras.Model
    batches: object
    validation: object
    full: object
    at_size: object = None
    steps_per_execution: int = 1


def spans_machines(strategy):
    """Whether a ``tf.distribute`` strategy has workers beside this process."""
    return bool(
        strategy.extended._in_multi_worker_mode()
    )  # the public way, cluster_resolver, raises where there is none


class Task:
    """One run's photos and choices, and the set-up that its mode makes of them.

    Args:
        config: RunConfig.
        dataset: datasets.Dataset.
        strategy: ``tf.distribute`` strategy or None.
        verbose: as in ``training.train``.

    Raises:
        ValueError: some device would get no photo in some step, or the devices are on several machines.
    """

    def __init__(self, config, dataset, strategy=None, verbose=1):
        self.config, self.verbose = config, verbose
        if strategy is not None and spans_machines(strategy):
            raise ValueError(
                "this strategy spans several machines, with which Keras cannot fit (tried: 3.15 with TensorFlow 2.21); "
                "use MirroredStrategy on each machine, and give each machine runs of its own"
            )
        self.classes = tuple(map(str, dataset.classes))
        self.scope = strategy.scope if strategy is not None else contextlib.nullcontext
        self.devices = strategy.num_replicas_in_sync if strategy is not None else 0
        frame = dataset.frame
        if config.balance_to:
            frame = splits.balance(frame, at_most=config.balance_to, seed=config.seed)
        self.frame = frame[frame["split"] == "train"].reset_index(drop=True)
        self.validation = frame[frame["split"] == "validation"].reset_index(drop=True)
        self.steps = -(-len(self.frame) // config.batch_size)
        if self.devices and not divides(len(self.frame), config.batch_size, self.devices):
            raise ValueError(
                f"{len(self.frame)} photos in batches of {config.batch_size} leave one of {self.devices} devices "
                "without a photo in some step; choose another batch_size"
            )

    def setup(self, teacher=None):
        """The Setup of the run's mode; `teacher`: probabilities (n, C) of the training photos, or None."""
        config = self.config
        labels = training_data.targets(self.frame, self.classes, config.label_smoothing, teacher, config.teacher_weight)
        weights = np.ones(len(self.frame), np.float32)
        if config.class_weights:
            kind = "balanced" if config.class_weights is True else config.class_weights
            table = training_data.class_weights(self.frame, self.classes, kind, config.effective_beta)
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
            validation = tf.data.Dataset.from_tensor_slices((found, judged)).batch(self._evaluation_batch())
        # Just before the weights are drawn: what was built or cached until here must not tell in them.
        keras.utils.set_random_seed(config.seed)
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

        epoch_now = [0]
        stream = training_data.feature_batches(trained, labels, weights, config, lambda: epoch_now[0])

        def batches(epoch):
            epoch_now[0] = epoch
            return stream

        return Setup(
            network=network,
            batches=batches,
            validation=validation,
            full=full,
            # Steps of microseconds: a whole epoch in one call of the compiled function.
            steps_per_execution=-(-len(labels) // config.batch_size),
        )

    def _setup_photos(self, labels, weights):
        config = self.config
        kernel_bias = self._probe(weights) if config.mode == "fine_tune" and config.head_init == "probe" else None
        keras.utils.set_random_seed(config.seed)
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
            validation = pipeline.batches(self.validation, self.classes, config.input_size, self._evaluation_batch())
        return Setup(
            network=network,
            batches=batches,
            validation=validation,
            full=lambda: model,
            at_size=lambda size: at_size(network, size),
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

    def _evaluation_batch(self):
        n, sizes = len(self.validation), range(EVALUATION_BATCH, 0, -1)
        return next((size for size in sizes if divides(n, size, max(self.devices, 1))), EVALUATION_BATCH)


def teacher_probabilities(task, store, teacher):
    """The teacher's probabilities (n, C) of the training photos, asked once and kept in the run's folder.

    Args:
        task: Task.
        store: RunStore of the run.
        teacher: callable frame -> probabilities, or None for the runs that the config names.

    Raises:
        ValueError: they do not go with the photos, or a teacher knows other classes.
        FileNotFoundError: a teacher is not there, or is not finished.
    """
    if not task.config.teacher:
        return None
    shape = (len(task.frame), len(task.classes))
    path = store.folder / "teacher.npy"
    if path.exists():
        with contextlib.suppress(ValueError, OSError, EOFError):
            known = np.load(path, allow_pickle=False)
            if known.shape == shape and np.isfinite(known).all():
                return known
    if teacher is not None:
        found = np.asarray(teacher(task.frame), np.float32)
    else:
        teachers = [runs.load(name, store.folder.parent) for name in task.config.teacher]
        for one in teachers:
            if one.classes != task.classes:
                raise ValueError(f"teacher {one.run_id} knows the classes {one.classes}, not {task.classes}")
        found = np.mean([one.predict(task.frame) for one in teachers], axis=0, dtype=np.float32)
    if found.shape != shape or not np.isfinite(found).all():
        raise ValueError(f"the teacher gave {found.shape}, not finite probabilities of shape {shape}")
    with files.atomic_path(path) as part:
        np.save(part, found)
    return found


def at_size(network, size):
    """The same layers on an input of another size: new graph, same variables."""
    image = keras.Input((size, size, 3), name="image")
    sized = keras.models.clone_model(
        keras.Model(
            network.input, network.output, name=network.name
        ),  # not compiled: the optimizer is not to be cloned
        input_tensors=image,
        clone_function=lambda layer: layer,
        call_function=lambda layer, *a, **k: layer(*a, **k),
    )
    if [id(v) for v in sized.trainable_variables] != [id(v) for v in network.trainable_variables]:
        raise RuntimeError(f"{network.name} at size {size} does not share its variables; use progressive=()")
    return sized


def divides(n, batch_size, devices):
    """Whether every device has a photo in every step; b photos are shared out as ceil(b / devices) each, in order."""
    last = [size for size in (min(batch_size, n), n % batch_size) if size]
    return all(-(-size // -(-size // devices)) >= devices for size in last)
