"""Which garment is in a photo: the shipped int8 classifier on anyone's photos, from the command line."""

from .command import (  # noqa: F401
    ENDINGS,
    LOW_CONFIDENCE,
    NOTE,
    SHIPPED,
    classify,
    find_photos,
    load,
    main,
    run,
    threshold,
)
