"""Figures: every function takes data and returns a matplotlib Figure; a notebook says `plots.X(...)`.

None computes a result. Colours have one meaning everywhere (:mod:`utils.plots.style`), photos keep their true colours,
and captions belong into Markdown below the figure. A notebook shows a figure by itself at the end of its cell.
"""
# ruff: noqa: F401
# isort: skip_file
# fmt: off

from . import style
from .cost import (
    effective_maps, field_by_depth, macs_against_time, macs_by_resolution, regions_on_photo,
)
from .data import (
    augmentation_sheet, dataset_cover, label_distribution, predictions, training_curves, wardrobe,
)
from .deploy import (
    changed_answers, file_bars, latency_bars, old_runtimes, pruning_curves, quantization_error, top_predictions,
)
from .drawings import (
    clipped_bias, convolution_by_hand, int8_levels, kinds_of_convolution, pruning_drawing, receptive_field_steps,
    splits_drawing, transfer_drawing,
)
from .judging import (
    accuracy_against_cost, balancing_order, class_f1, confusion_matrices, confusion_matrix, gradcam_overlay,
    random_against_grouped, reliability_diagram,
)
