"""Which garment is in a photo: what a deployed classifier needs, and nothing more (Pillow, NumPy, LiteRT).

`load` opens the shipped int8 file (or another), `classify` answers for one photo, `TFLiteModel` runs any `.tflite`
classifier on arrays of photos, and `photo.read_photo` turns a file into pixels exactly as training did.
From the command line: ``python -m utils.classify PHOTO``.
"""

from . import photo  # noqa: F401
from .command import LOW_CONFIDENCE, NOTE, SHIPPED, classify, load, main, run, threshold  # noqa: F401
from .interpreter import (  # noqa: F401
    PIXELS,
    TFLiteModel,
    checked_range,
    checked_threads,
    description_path,
    open_interpreter,
    read_description,
    read_model,
    try_apart,
)
from .photo import check_photo, read_photo  # noqa: F401
