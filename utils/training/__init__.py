"""Training: from a RunConfig and a dataset to a Run, resumable at every epoch.

`RunConfig` writes down the choices of a run, `train` makes a finished Run of it, `load` finds one by its id, `export`
and `export_record` write it in the form that ships. A RunConfig costs nothing: TensorFlow is imported with the first
of the other names. `features` holds frozen features and the linear probe.
"""

import importlib

from .config import BASELINE, RunConfig  # noqa: F401

_PLACES = {
    "batches": ("augmentation", "class_weight_table", "class_weights"),
    "loop": ("Diverged", "train"),
    "run": ("SHIPPED", "Run", "RunBusy", "export", "export_record", "find_finished", "load"),
}


def __getattr__(name):
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    if name == "features":
        return importlib.import_module(f"{__name__}.features")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
