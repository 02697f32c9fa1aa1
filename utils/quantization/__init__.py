"""Small enough for a phone: a trained network as a `.tflite` file in eight schemes, and what each keeps and costs.

Call `convert` (one scheme) or `convert_all`, then `evaluate_schemes` on test photos, then `save`; `TFLiteModel` runs a
file. The submodules answer more: `calibration` (ranges), `error` (which layer suffers), `qat` (training for int8),
`runtimes` and `operators` (time). TensorFlow and Keras are imported only where a Keras model comes in.
"""

from utils.classify import TFLiteModel  # noqa: F401

from . import calibration  # noqa: F401
from .convert import SCHEMES, convert, convert_all  # noqa: F401
from .measure import (  # noqa: F401
    calibration_study,
    confidence_threshold,
    evaluate_schemes,
    gzip_bytes,
    representative_photos,
    save,
)
