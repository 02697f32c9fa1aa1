"""FLOPs and MACs of any Keras 3 model, call by call, from its layers and their shapes."""

from .count import (  # noqa: F401
    CONVENTIONS,
    Cost,
    count,
    count_tflite,
    itemsize,
    keras_flops_total,
)
