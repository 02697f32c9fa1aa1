"""Figures of notebook 1: photos, labels, senders, training, and (from the two modules beside it) judgements."""

from .data import (  # noqa: F401
    PARTS,
    accuracy_against_cost,
    balancing_order,
    class_f1,
    confusion_matrix,
    dataset_cover,
    gradcam_overlay,
    label_distribution,
    mistakes,
    photo_grid,
    random_against_grouped,
    reliability_diagram,
    sender_accuracy,
    sender_sizes,
    training_curves,
)
from .drawings import (  # noqa: F401
    convolution_by_hand,
    int8_levels,
    kinds_of_convolution,
    macs_by_resolution,
    pruning_drawing,
    receptive_field_steps,
    splits_drawing,
    transfer_drawing,
)
