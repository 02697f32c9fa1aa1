"""What one training run is: every choice in one frozen record, and the id that follows from it.

Two runs with the same choices on the same photos have the same id, so that a finished run is found again and an
interrupted one goes on. This module imports neither TensorFlow nor Keras: writing down a run costs nothing.
"""

import dataclasses
import hashlib
import json
import re

from utils._checks import whole

BASELINE = "baseline_cnn"
CHOICES = {
    "mode": ("scratch", "frozen", "fine_tune"),
    "optimizer": ("adam", "adamw"),
    "schedule": ("constant", "cosine"),
    "monitor": ("val_accuracy", "val_loss", "none"),
    "class_weights": (False, True),
    "augment": (None, "light", "stretched", "strong", "study_b"),
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The choices of one training run; equal choices give an equal :attr:`run_id`.

    Fields that keep their default do not enter the id, so that a field added later leaves old ids as they are.

    Attributes:
        name: readable name; the first part of the id.
        model: ``"baseline_cnn"`` or a key of ``models.BACKBONES``.
        mode: ``"scratch"`` (all layers, from random weights), ``"frozen"`` (the head alone, on cached backbone
            features) or ``"fine_tune"`` (backbone and head, which starts from a linear probe; batch
            normalization in inference mode).
        epochs: passes over the training photos, at least 1.
        input_size: side of the square input, in pixels.
        batch_size: photos a step, over all devices together.
        optimizer: ``"adam"`` or ``"adamw"``.
        learning_rate: peak learning rate.
        weight_decay: decoupled decay of adamw; biases and batch-norm parameters are not decayed.
        clip_norm: a step's gradient over all weights is shortened to this length if it is longer; None = never.
        schedule: ``"constant"``, or ``"cosine"`` down to zero at the last step.
        warmup_epochs: epochs of linear warm-up to the peak; fractions are allowed.
        label_smoothing: share of the target spread evenly over all classes, 0 <= s < 1.
        dropout: rate before the classifier (transfer models only).
        class_weights: every class counts alike in the loss, n / (C * n_c).
        balance_to: photos per class after balancing the training set (study A's 500), or None.
        augment: None, ``"light"``, ``"stretched"``, ``"strong"`` or ``"study_b"`` (flip, rotation).
        views: augmented views of each photo beside the plain one, in frozen mode.
        patience: epochs without a better `monitor` before training stops; None = never.
        monitor: what the best epoch is chosen by, always on validation; ``"none"`` keeps the last epoch.
        seed: of initial weights, order, augmentation and dropout; each epoch's randomness follows from (seed, epoch).
        allow_leaks: what the split check lets pass by name: "sender", "file".

    Raises:
        ValueError: a choice is out of range or does not go with another one; the message names both.

    Example:
        >>> run = RunConfig(name="B frozen", model="mobilenet_v2", mode="frozen", epochs=50)
        >>> run.run_id == dataclasses.replace(run, seed=0).run_id
        True
    """

    name: str
    model: str
    mode: str
    epochs: int
    input_size: int = 224
    batch_size: int = 32
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: str = "constant"
    warmup_epochs: float = 0
    label_smoothing: float = 0.0
    dropout: float = 0.2
    class_weights: bool = False
    balance_to: int | None = None
    augment: str | None = None
    views: int = 0
    patience: int | None = None
    monitor: str = "val_accuracy"
    seed: int = 0
    allow_leaks: tuple[str, ...] = ()

    def __post_init__(self):
        leaks = (self.allow_leaks,) if isinstance(self.allow_leaks, str) else self.allow_leaks or ()
        object.__setattr__(self, "allow_leaks", tuple(sorted(leaks)))  # the id must not depend on an order
        self._expect("name", isinstance(self.name, str), "a text")
        for field, choices in CHOICES.items():
            self._expect(field, getattr(self, field) in choices, f"one of {', '.join(map(repr, choices))}")
        for field in ("epochs", "input_size", "batch_size", "balance_to", "patience", "views", "seed"):
            value, least = getattr(self, field), int(field not in ("views", "seed"))
            if value is not None or field not in ("balance_to", "patience"):
                object.__setattr__(self, field, whole(f"RunConfig.{field}", value, least))
        for field in ("label_smoothing", "dropout"):
            self._expect(field, _number(self, field) and 0 <= getattr(self, field) < 1, "at least 0 and below 1")
        for field in ("learning_rate", "weight_decay", "warmup_epochs"):
            self._expect(field, _number(self, field) and 0 <= getattr(self, field) < 1e6, "a number from 0 up")
        clipped = self.clip_norm is None or (_number(self, "clip_norm") and 0 < self.clip_norm < 1e6)
        self._expect("clip_norm", clipped, "a number above 0, or None")
        self._expect("allow_leaks", set(leaks) <= {"sender", "file"}, "of 'sender' and 'file'")
        self._check_combinations()

    def _expect(self, field, right, wanted):
        if not right:
            raise ValueError(f"RunConfig.{field} must be {wanted}, got {getattr(self, field)!r}")

    def _check_combinations(self):
        def refuse(field, reason):
            raise ValueError(f"RunConfig.{field} is {getattr(self, field)!r}, but {reason}")

        if self.model == BASELINE and self.mode != "scratch":
            refuse("mode", f"{BASELINE} has no pretrained backbone: use mode='scratch'")
        if self.mode == "frozen" and self.views and not self.augment:
            refuse("views", "augment is None, so that every view would be the same: choose augment='light'")
        if self.mode != "frozen" and self.views:
            refuse("views", f"mode={self.mode!r} draws new augmentation every epoch: use it with mode='frozen'")
        if self.mode == "frozen" and self.augment and not self.views:
            refuse("augment", "mode='frozen' sees each photo once unless views says how many augmented views to add")
        if self.weight_decay and self.optimizer != "adamw":
            refuse("weight_decay", f"optimizer={self.optimizer!r} has none: use optimizer='adamw'")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            refuse("warmup_epochs", f"epochs is {self.epochs}: warm-up must end before training does")
        if self.patience and self.monitor == "none":
            refuse("patience", "monitor is 'none': choose monitor='val_accuracy' or 'val_loss'")

    @property
    def run_id(self):
        """Readable slug and a hash of the choices, e.g. ``"b-frozen-1f0c2d9a"``; see :meth:`run_id_for`."""
        return self.run_id_for("")

    def run_id_for(self, fingerprint):
        """The id of this run on one dataset, given the dataset's fingerprint: the name of the run's folder."""
        # 1 and 1.0 are the same choice; repr of a float is exact, so that no two rates share an id.
        facts = {
            key: repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            for key, value in self.to_dict().items()
        }
        text = json.dumps([facts, str(fingerprint)], sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:48] or "run"
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def to_dict(self):
        """The fields that differ from their defaults, fit for JSON; :meth:`from_dict` reads it back."""
        changed = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                changed[field.name] = list(value) if isinstance(value, tuple) else value
        return changed

    @classmethod
    def from_dict(cls, values):
        """The RunConfig that :meth:`to_dict` wrote.

        Raises:
            ValueError: an unknown or missing field; names it.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
        missing = [name for name in needed if name not in values]
        if unknown or missing:
            raise ValueError(
                f"not a RunConfig of this version: unknown fields {unknown}, missing fields {missing}; train again"
            )
        return cls(**values)


def _number(config, field):
    value = getattr(config, field)
    return isinstance(value, int | float) and not isinstance(value, bool)
