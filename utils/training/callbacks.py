"""What happens around the steps of training: the learning rate, the guard against divergence, moving averages."""

import contextlib
import math

import keras
import numpy as np

from utils.training.run_store import value_of


@keras.saving.register_keras_serializable("clothing")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to a peak, then a constant rate or half a cosine down to zero.

    The rate follows from the optimizer's step counter alone, so that a resumed run goes on where it was.

    Args:
        peak: learning rate after warm-up.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of the ramp peak / warmup_steps, 2 peak / warmup_steps, ... peak.
        cosine: False keeps the peak after warm-up.

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

    def get_config(self):
        return {
            "peak": self.peak, "total_steps": self.total_steps, "warmup_steps": self.warmup_steps,
            "cosine": self.cosine,
        }  # fmt: skip


def make_optimizer(config, steps_per_epoch):
    """The optimizer of a run, with its schedule and moving average.

    Args:
        config: RunConfig.
        steps_per_epoch: optimizer steps in one epoch.

    Returns:
        keras.optimizers.Optimizer, not yet built.
    """
    rate = config.learning_rate
    if config.schedule == "cosine" or config.warmup_epochs:
        rate = WarmupCosine(
            rate,
            config.epochs * steps_per_epoch,
            round(config.warmup_epochs * steps_per_epoch),
            config.schedule == "cosine",
        )
    average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    if config.optimizer == "adam":
        return KeepingAdam(rate, **average)
    optimizer = KeepingAdamW(rate, weight_decay=config.weight_decay, **average)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def learning_rate(optimizer):
    """The rate of the optimizer's next step, as a float."""
    return float(keras.ops.convert_to_tensor(optimizer.learning_rate).numpy())


class _OwnWeights:
    """Part of an optimizer with a moving average: leaves the model its own weights until it is asked."""

    def finalize_variable_values(self, var_list):
        # Keras puts the averages into the model at the end of every `fit`; here that would be after every epoch.
        pass

    def take_averages(self, variables):
        self._overwrite_model_variables_with_average_value(variables)


class KeepingAdam(_OwnWeights, keras.optimizers.Adam):
    """Adam that leaves the model its own weights."""


class KeepingAdamW(_OwnWeights, keras.optimizers.AdamW):
    """AdamW that leaves the model its own weights."""


class GlobalMeanCrossentropy(keras.losses.CategoricalCrossentropy):
    """Cross-entropy as a mean over the photos of all devices.

    Keras takes the mean on each device and then over devices: in a last batch that does not divide evenly, a photo
    would count more on one device than on another, and two devices would train differently from one.
    """

    def __call__(self, y_true, y_pred, sample_weight=None):
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return super().__call__(y_true, y_pred, sample_weight)
        losses = self.call(y_true, y_pred)
        weights = tf.ones_like(losses) if sample_weight is None else tf.cast(sample_weight, losses.dtype)
        photos = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(tf.shape(losses)[0], losses.dtype))
        # The devices' gradients are summed, so each contributes its part of the one mean.
        return tf.reduce_sum(losses * weights) / photos


class OneEpoch(keras.callbacks.Callback):
    """Ends `fit` after one epoch, whose number Keras' progress bar then shows rightly as "Epoch 3/8"."""

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


class Diverged(RuntimeError):
    """The loss is not a finite number any more."""


class StopOnNonFinite(keras.callbacks.Callback):
    """Raises :class:`Diverged` at the first loss that is NaN or infinite.

    Args:
        run_id: named in the message.
    """

    def __init__(self, run_id):
        super().__init__()
        self.run_id = run_id
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.check(logs or {}, "loss", f"step {batch + 1} of epoch {self.epoch + 1}")

    def check(self, logs, name, where):
        """Raise if ``logs[name]`` is there and is not finite."""
        value = logs.get(name)
        if value is not None and not math.isfinite(value):
            rate = learning_rate(self.model.optimizer)
            raise Diverged(
                f"run {self.run_id}: {name} became {value} at {where}, at a learning rate of {rate:.3g}; use a lower "
                f"learning_rate or a longer warm-up (epochs before this one are kept)"
            )


@contextlib.contextmanager
def averaged_weights(model):
    """Inside the block the model has the optimizer's moving averages as weights; afterwards its own again.

    Without a moving average (``ema=0``) nothing changes.

    Args:
        model: compiled with an optimizer of :func:`make_optimizer`; its trainable variables in the order in which the
            optimizer was built.
    """
    optimizer = model.optimizer
    if not getattr(optimizer, "use_ema", False):
        yield
        return
    own = [value_of(variable) for variable in model.trainable_variables]
    optimizer.take_averages(model.trainable_variables)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, own, strict=True):
            variable.assign(value)


def reseed(model, seed, epoch):
    """Start every random layer (dropout) of the model anew from (seed, epoch): no epoch depends on those before."""
    for number, generator in enumerate(_seed_generators(model)):
        start = np.random.SeedSequence([seed, epoch, number]).generate_state(1)[0] & 0x7FFFFFFF
        generator.state.assign(np.array([start, 0], generator.state.dtype))


def _seed_generators(model):
    for layer in model._flatten_layers(include_self=False):
        yield from getattr(layer, "_seed_generators", ())
