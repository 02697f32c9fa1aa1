"""How good a classifier is, on whose photos, and where it errs.

Call :func:`evaluate` first: it judges probabilities against the labels of a frame of photos. :func:`compare` sets two
models against each other on the same photos, :func:`grouped_cv` judges a recipe on photographers whom it has not seen,
:func:`worst_mistakes` lists errors, and :func:`gradcam` shows where the model looked.
"""

from .calibrate import fit_temperature, rescale
from .compare import Paired, compare
from .gradcam import GradCam, gradcam
from .grouped_cv import GroupedCV, grouped_cv
from .intervals import sender_interval, wilson
from .judge import EPSILON, Evaluation, check_labels, evaluate, reliability, worst_mistakes

__all__ = [
    "EPSILON", "Evaluation", "GradCam", "GroupedCV", "Paired", "check_labels", "compare", "evaluate",
    "fit_temperature", "gradcam", "grouped_cv", "reliability", "rescale", "sender_interval", "wilson", "worst_mistakes",
]  # fmt: skip
