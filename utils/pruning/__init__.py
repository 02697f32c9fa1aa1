"""Pruning a trained Keras 3 model: gradually or at once, with a report of what is left."""

from .tuning import (  # noqa: F401
    RAMP,
    REFRESHES,
    SCHEDULES,
    UPDATES,
    MagnitudePruning,
    Pruned,
    RefreshNormalization,
    copy_model,
    cubic_sparsity,
    fine_tune,
    gzip_bytes,
    magnitude_masks,
    prunable,
    prune,
    sparsity_report,
    steps_of,
)
