"""Which photos there are, cleaned and split by photographer, and how they become batches.

Begin with ``load("clothing-10")``, or ``from_folder("my_photos")`` for your own: a Dataset with photos, classes and a
split. `splits` decides who may stand on which side, `audit` says what is wrong with photos, `pipeline` decodes them
(`load_images`) and feeds them to Keras (`batches`). Nothing here imports TensorFlow before photos become tensors.
"""

import importlib

_HOMES = {
    "dataset": ("Dataset", "FRACTIONS", "NAMES", "OFFICIAL_TEST_SENDERS", "load"),
    "folder": ("from_folder",),
    "pipeline": ("Augment", "batches", "load_images"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = ("audit", "pipeline", "published", "sketches", "splits")
__all__ = [*_HOME, *_MODULES]


def __getattr__(name):  # so that a command can print its help without loading pandas
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
