"""How good a classifier is, on whose photos, and where it errs."""

from .gradcam import GradCam, gradcam  # noqa: F401
from .judge import (  # noqa: F401
    EPSILON,
    Evaluation,
    check_labels,
    compare,
    confusions,
    evaluate,
    grouped_cv,
    reliability,
    sender_interval,
    worst_mistakes,
)
