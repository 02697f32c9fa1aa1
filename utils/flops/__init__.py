"""What a Keras 3 model or a `.tflite` file costs: MACs, FLOPs, element-wise operations, parameters and bytes, by call.

Call `count(model)` first: its report prints itself and has tables (`top`, `by_type`, `by_block`, `to_frame`).
`count_tflite` gives the same report of a file, `keras_flops_total` what the keras-flops package says of a model.
A call that cannot be counted is never zero: it is named in `report.unsupported`. Needs Keras, NumPy and pandas only.
"""

from . import tflite
from .count import count, itemsize
from .formulas import CONVENTIONS, Cost
from .keras_flops import keras_flops_total
from .report import CostReport, CostRow, Unsupported
from .tflite import count_tflite

__all__ = [
    "CONVENTIONS", "Cost", "CostReport", "CostRow", "Unsupported", "count", "count_tflite", "itemsize",
    "keras_flops_total", "tflite",
]  # fmt: skip
