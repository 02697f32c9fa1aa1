"""What one training run is: every choice in one frozen record, and the id that follows from it.

Two runs with the same choices on the same photos have the same id, so that a finished run is found again and an
interrupted one goes on. This module imports neither TensorFlow nor Keras: writing down a run costs nothing.
"""

import dataclasses
import hashlib
import json
import re

MODES = {
    "scratch": "all layers, from random weights",
    "frozen": "the head alone, on cached backbone features",
    "frozen_online": "the head alone, every batch through the frozen backbone (study B's way)",
    "fine_tune": "backbone and head, batch normalization in inference mode",
}
OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine")
MONITORS = ("val_accuracy", "val_loss", "none")
CLASS_WEIGHTS = (False, True, "effective")
HEAD_INITS = ("probe", "random")
AUGMENTS = (None, "light", "strong", "study_b")
BASELINE = "baseline_cnn"

TOLD_APART_BY = (
    "learning_rate", "class_weights", "balance_to", "epochs", "progressive", "augment", "mixup", "cutmix", "ema",
    "teacher",
)  # fmt: skip


def in_words(choices):
    """What sets a recipe apart from others, out of :meth:`RunConfig.to_dict`, in a few words.

    Example:
        >>> in_words({"name": "a", "epochs": 9, "mixup": 0.2})
        'learning rate 0.001, epochs 9, mixup 0.2'
    """
    choices = {"learning_rate": RunConfig.learning_rate} | choices  # to_dict leaves out what has its default
    return ", ".join(f"{key.replace('_', ' ')} {choices[key]}" for key in TOLD_APART_BY if key in choices)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The choices of one training run; equal choices give an equal :attr:`run_id`.

    Fields that keep their default do not enter the id, so that a field added later leaves old ids as they are.

    Attributes:
        name: readable name; the first part of the id.
        model: ``"baseline_cnn"`` or a key of ``models.BACKBONES``.
        mode: one of :data:`MODES`.
        epochs: passes over the training photos, at least 1.
        input_size: side of the square input, in pixels.
        batch_size: photos a step, over all devices together.
        optimizer: ``"adam"`` or ``"adamw"``.
        learning_rate: peak learning rate.
        weight_decay: decoupled decay of adamw; biases and batch-norm parameters are not decayed.
        schedule: ``"constant"``, or ``"cosine"`` down to zero at the last step.
        warmup_epochs: epochs of linear warm-up to the peak; fractions are allowed.
        label_smoothing: share of the target spread evenly over all classes, 0 <= s < 1.
        dropout: rate before the classifier (transfer models only).
        class_weights: True = balanced (n / (C * n_c)), ``"effective"`` = class-balanced loss, False = none.
        effective_beta: beta of the effective number of samples, Cui et al. 2019, arXiv:1901.05555.
        balance_to: photos a class after balancing the training part (study A's 500), or None.
        augment: None, ``"light"``, ``"strong"`` or ``"study_b"`` (horizontal flip and rotation); see pipeline.Augment.
        views: augmented views a photo beside the plain one, in frozen mode.
        mixup: alpha of the Beta distribution, Zhang et al. 2018, arXiv:1710.09412; 0 = off.
        cutmix: alpha of the Beta distribution, Yun et al. 2019, arXiv:1905.04899; 0 = off.
        ema: momentum a step of the moving average of the weights that is judged and kept; 0 = off.
        patience: epochs without a better `monitor` before training stops; None = never.
        monitor: what the best epoch is chosen by, always on validation; ``"none"`` keeps the last epoch.
        unfreeze_from: fine_tune: the first layer (by name) that trains; None = all.
        head_init: fine_tune: ``"probe"`` starts the head from a linear probe on frozen features, or ``"random"``.
        seed: of initial weights, order, augmentation and dropout; each epoch's randomness follows from (seed, epoch).
        progressive: training sizes of the stages, smallest first, none above `input_size`; () = one size. Validation
            and prediction always see `input_size`: training below it is cheaper, and garments that look a little larger
            in the test than in training cost nothing (Touvron et al. 2019, arXiv:1906.06423).
        allow_leaks: what the split check lets pass by name: "sender", "file".
        teacher: run ids of finished runs whose mean probabilities become soft targets (self-distillation), or
            the name of a callable that is handed to ``train(..., teacher=)``.
        teacher_weight: share of the teacher in the target.

    Raises:
        ValueError: a choice is out of range or does not go with another one; the message names both.

    Example:
        >>> run = RunConfig(name="B frozen", model="mobilenet_v2", mode="frozen", epochs=50)
        >>> run.run_id == dataclasses.replace(run, mixup=0.0).run_id
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
    schedule: str = "constant"
    warmup_epochs: float = 0
    label_smoothing: float = 0.0
    dropout: float = 0.2
    class_weights: bool | str = False
    effective_beta: float = 0.999
    balance_to: int | None = None
    augment: str | None = None
    views: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    patience: int | None = None
    monitor: str = "val_accuracy"
    unfreeze_from: str | None = None
    head_init: str = "probe"
    seed: int = 0
    progressive: tuple[int, ...] = ()
    allow_leaks: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    teacher_weight: float = 0.5

    def __post_init__(self):
        for field in ("progressive", "allow_leaks", "teacher"):
            value = getattr(self, field)
            value = (value,) if isinstance(value, str) else tuple(value)
            # Sets have no order; the id must not depend on theirs.
            object.__setattr__(self, field, value if field != "allow_leaks" else tuple(sorted(value)))
        self._check_choices()
        self._check_numbers()
        self._check_combinations()

    def _check_choices(self):
        for field in ("name", "model"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field).strip():
                raise ValueError(f"RunConfig.{field} is {getattr(self, field)!r}; give a text that is not empty")
        allowed = {
            "mode": tuple(MODES), "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "monitor": MONITORS,
            "class_weights": CLASS_WEIGHTS, "head_init": HEAD_INITS, "augment": AUGMENTS,
        }  # fmt: skip
        for field, choices in allowed.items():
            value = getattr(self, field)
            if value not in choices:
                known = ", ".join(repr(choice) for choice in choices)
                raise ValueError(f"RunConfig.{field} is {value!r}, which is unknown; choose one of {known}")

    def _check_numbers(self):
        # name: (lowest, highest, whole number); the bounds themselves are allowed.
        bounds = {
            "epochs": (1, 10**6, True), "input_size": (8, 4096, True), "batch_size": (1, 10**6, True),
            "learning_rate": (1e-12, 1e3, False), "weight_decay": (0, 1e3, False), "warmup_epochs": (0, 10**6, False),
            "label_smoothing": (0, 0.999, False), "dropout": (0, 0.999, False), "effective_beta": (0, 0.999999, False),
            "views": (0, 1000, True), "mixup": (0, 100, False), "cutmix": (0, 100, False), "ema": (0, 0.99999, False),
            "seed": (0, 2**31 - 1, True), "teacher_weight": (0, 1, False),
            "balance_to": (1, 10**9, True), "patience": (1, 10**6, True),
        }  # fmt: skip
        for field, (low, high, whole) in bounds.items():
            value = getattr(self, field)
            if value is None and field in ("balance_to", "patience"):
                continue
            kind = "a whole number" if whole else "a number"
            number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high:
                raise ValueError(f"RunConfig.{field} is {value!r}; it must be {kind} from {low:g} to {high:g}")

    def _check_combinations(self):
        def refuse(field, reason):
            raise ValueError(f"RunConfig.{field} is {getattr(self, field)!r}, but {reason}")

        if self.model == BASELINE and self.mode != "scratch":
            refuse("mode", f"{BASELINE} has no pretrained backbone: use mode='scratch'")
        if self.mode == "frozen" and self.cutmix:
            refuse("cutmix", "mode='frozen' mixes cached features, which have no pixels: use mixup")
        if self.mode == "frozen" and self.views and not self.augment:
            refuse("views", "augment is None, so that every view would be the same: choose augment='light'")
        if self.mode != "frozen" and self.views:
            refuse("views", f"mode={self.mode!r} draws new augmentation every epoch: use it with mode='frozen'")
        if self.mode == "frozen" and self.augment and not self.views:
            refuse("augment", "mode='frozen' sees each photo once unless views says how many augmented views to add")
        if self.weight_decay and self.optimizer != "adamw":
            refuse("weight_decay", f"optimizer={self.optimizer!r} has none: use optimizer='adamw'")
        if self.unfreeze_from and self.mode != "fine_tune":
            refuse("unfreeze_from", f"mode={self.mode!r} does not fine-tune: use mode='fine_tune'")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            refuse("warmup_epochs", f"epochs is {self.epochs}: warm-up must end before training does")
        if self.patience and self.monitor == "none":
            refuse("patience", "monitor is 'none': choose monitor='val_accuracy' or 'val_loss'")
        if self.progressive:
            if self.mode.startswith("frozen") or self.model == BASELINE:
                refuse(
                    "progressive", "only fine_tune or scratch training of a transfer model can change its input size"
                )
            if self.progressive[-1] > self.input_size or list(self.progressive) != sorted(set(self.progressive)):
                refuse("progressive", f"the sizes must grow, and none may pass input_size={self.input_size}")
            if len(self.progressive) > self.epochs:
                refuse("progressive", f"epochs is {self.epochs}: each size needs at least one epoch")
        unknown = set(self.allow_leaks) - {"sender", "file"}
        if unknown:
            refuse("allow_leaks", "only 'sender' and 'file' can be allowed")

    @property
    def run_id(self):
        """Readable slug and a hash of the choices, e.g. ``"b-frozen-1f0c2d9a"``; see :meth:`run_id_for`."""
        return self._id("")

    def run_id_for(self, fingerprint):
        """The id of this run on one dataset, given the dataset's fingerprint: the name of the run's folder."""
        return self._id(str(fingerprint))

    def input_size_at(self, epoch):
        """Side of the training input in `epoch` (0-based): the stages of `progressive` share the epochs evenly."""
        if not self.progressive:
            return self.input_size
        return self.progressive[epoch * len(self.progressive) // self.epochs]

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
        missing = sorted(
            name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values
        )
        if unknown or missing:
            raise ValueError(
                f"not a RunConfig of this version: unknown fields {unknown}, missing fields {missing}; train again"
            )
        return cls(**values)

    def _id(self, fingerprint):
        # 1 and 1.0 are the same choice; repr of a float is exact, so that no two rates share an id.
        facts = {
            key: repr(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            for key, value in self.to_dict().items()
        }
        text = json.dumps([facts, fingerprint], sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:48] or "run"
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def _repr_html_(self):
        rows = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in self.to_dict().items())
        return f"<table><caption>RunConfig {self.run_id}</caption>{rows}</table>"
