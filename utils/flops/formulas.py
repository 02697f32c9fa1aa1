"""What a rule returns, and the arithmetic of shapes that all rules share."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call costs.

    Attributes:
        macs: multiply-accumulates of its linear algebra (FLOPs are twice as many).
        elementwise: its element-wise operations.
        unknown: what of it could not be counted, as a phrase ("its activation 'foo'"), or None. A cost with something
            unknown is reported under `unsupported`.
    """

    macs: int = 0
    elementwise: int = 0
    unknown: str | None = None

    def __add__(self, other):
        unknown = "; ".join(part for part in (self.unknown, other.unknown) if part) or None
        return Cost(self.macs + other.macs, self.elementwise + other.elementwise, unknown)


def product(values):
    """Product of whole numbers, as int."""
    return int(math.prod(values))


def elements(shape):
    """Number of elements of a shape.

    Raises:
        ValueError: a dimension is unknown.
    """
    if None in shape:
        raise ValueError(f"the shape {tuple(shape)} has an unknown dimension; give an input_shape that fixes it")
    return math.prod(shape)
