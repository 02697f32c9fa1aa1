"""Training: from a RunConfig and a dataset to a Run, resumable at every epoch."""

from .loop import (  # noqa: F401
    class_weight_table,
    export_record,
    load,
    train,
)
