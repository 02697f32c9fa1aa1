"""Small enough for a phone: convert, save, and put every scheme's price beside what it buys."""

from .measure import (  # noqa: F401
    PREPROCESSING,
    SCHEMES,
    TFLiteModel,
    calibration_study,
    compare_tools,
    confidence_threshold,
    convert,
    convert_all,
    evaluate_schemes,
    gzip_bytes,
    representative_photos,
    save,
)
