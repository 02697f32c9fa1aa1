"""Coloured squares and a backbone of two layers: training in seconds, for the tests and for the kill harness."""

import dataclasses
import hashlib
import pathlib

import numpy as np
import pandas as pd
from PIL import Image

from utils.training.config import RunConfig

CLASSES = ("blue", "green", "red")
SIZE = 32


@dataclasses.dataclass(frozen=True)
class Photos:
    """What training needs of a datasets.Dataset."""

    frame: pd.DataFrame
    classes: tuple = CLASSES
    name: str = "squares"

    @property
    def fingerprint(self):
        facts = self.frame[["id", "label", "split", "sender"]].to_csv(index=False)
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    def part(self, name):
        return self.frame[self.frame["split"] == name].reset_index(drop=True)


def squares(folder, per_class=(8, 4, 4), noise=70, seed=0):
    """Noisy squares, one colour a class, every photo by its own sender; `per_class`: train, validation, test."""
    rng, rows = np.random.default_rng(seed), []
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(CLASSES):
        for split, count in zip(("train", "validation", "test"), per_class, strict=True):
            for i in range(count):
                pixels = rng.normal(100, noise, (SIZE, SIZE, 3))
                pixels[..., 2 - number] += 40
                path = folder / f"{label}-{split}-{i}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                rows.append({"path": str(path), "label": label, "split": split, "sender": path.stem, "id": path.stem})
    return Photos(pd.DataFrame(rows))


def add_backbone(setitem, setattr_):
    """Make ``tiny`` a backbone of utils.models, with fixed weights; takes monkeypatch's setitem and setattr."""
    import keras

    from utils.models import networks as models

    def body(image):
        x = keras.layers.Rescaling(1 / 255, name="preprocess")(image)
        x = keras.layers.Normalization(name="normalization")(x)  # as in EfficientNetB0: it keeps copies of its weights
        x = keras.layers.Conv2D(12, 5, strides=4, name="conv")(x)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.ReLU(6.0, name="top_activation")(x)
        return keras.Model(image, x)

    def fill(model):
        rng = np.random.default_rng(5)
        model.get_layer("normalization").set_weights([np.full(3, 0.4), np.full(3, 0.1), np.asarray(0)])
        model.get_layer("normalization").finalize_state()
        model.get_layer("conv").set_weights([rng.normal(0, 0.3, (5, 5, 3, 12)), np.zeros(12)])
        model.get_layer("norm").set_weights([np.ones(12), np.zeros(12), np.zeros(12), np.ones(12)])

    known = models._weights
    setitem(models._BODIES, "tiny", body)
    setitem(models.BACKBONES, "tiny", models.Backbone("tiny", "Tiny"))
    setattr_(
        models, "_weights",
        lambda name, weights, download=True: (
            known(name, weights, download) if name != "tiny" else ("fixed", None if weights is None else fill)
        ),
    )  # fmt: skip


def prepare(patch, folder):
    """The tiny backbone, and runs and caches below `folder`; takes a MonkeyPatch."""
    patch.setenv("CLOTHING_RUNS_DIR", str(folder / "runs"))
    patch.setenv("CLOTHING_CACHE_DIR", str(folder / "cache"))
    add_backbone(patch.setitem, patch.setattr)


def config(mode="fine_tune", **choices):
    """A small RunConfig on the tiny backbone."""
    base = {
        "name": "tiny", "model": "tiny", "mode": mode, "epochs": 3, "input_size": SIZE, "batch_size": 8,
        "learning_rate": 1e-2, "dropout": 0.2,
    }  # fmt: skip
    return RunConfig(**{**base, **choices})
