"""What one call costs as arithmetic of shapes: the formulas that the rules of layers, operations and files share.

The convention, which every report states:

- 1 MAC is one multiplication and one addition of the linear algebra (convolutions, matrix products), bias excluded;
  FLOPs = 2 x MACs. Padding counts as input, as all frameworks compute it.
- Element-wise operations are a column of their own and part of neither: one for each addition, multiplication,
  division, comparison or selection, and one for each call of a function such as exp or tanh.
- Inference: dropout and augmentation do nothing, batch normalization is one multiplication and one addition.
"""

import dataclasses
import math

import keras
import numpy as np

CONVENTIONS = {
    "exact": "MACs at every output position; FLOPs = 2 x MACs; element-wise operations apart",
    "input_over_stride": (
        "the published studies' convention: convolutions counted at floor(input / stride) positions instead of their "
        "output positions, else exact; FLOPs = 2 x MACs; element-wise operations apart"
    ),
}


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


def repeated(once, times):
    """Cost of a loop that runs so many times; None where the data decide."""
    if times is None:
        return Cost(unknown=f"how often its loop runs depends on the data ({once.macs:,} MACs each time)")
    return Cost(times * once.macs, times * once.elementwise, once.unknown)


def either(costs):
    """Cost of a branch that the data choose: known where all cost the same."""
    if len({cost.macs for cost in costs}) == 1:
        unknown = "; ".join(dict.fromkeys(cost.unknown for cost in costs if cost.unknown))
        return Cost(costs[0].macs, max(cost.elementwise for cost in costs), unknown or None)
    macs = " or ".join(f"{cost.macs:,}" for cost in costs)
    return Cost(unknown=f"which branch runs depends on the data ({macs} MACs)")


def words(text):
    """The names in a table."""
    return frozenset(text.split())


def by_name(table):
    """{name: value} of a table {value: names}."""
    return {name: value for value, names in table.items() for name in names.split()}


def product(values):
    """Product of whole numbers, as int."""
    return int(math.prod(values))


def elements(shape):
    """Number of elements of a shape; ValueError where a dimension is unknown."""
    if None in shape:
        raise ValueError(f"the shape {tuple(shape)} has an unknown dimension; pass an input_shape that fixes it")
    return math.prod(shape)


# --- linear algebra ---------------------------------------------------------------------------------------------------


def conv_macs(kernel_size, in_channels, out_shape, groups=1):
    """Multiply-accumulates of one convolution in 1, 2 or 3 dimensions, bias excluded.

    MACs = batch * positions_out * C_out * kernel_elements * (C_in / groups).
    Dilation does not enter: it moves the taps, not their number. Howard et al. 2017, arXiv:1704.04861.

    Example:
        >>> conv_macs((3, 3), 3, (1, 112, 112, 32))  # MobileNetV2 Conv1
        10838016
    """
    if in_channels % groups:
        raise ValueError(f"{in_channels} input channels cannot be split into {groups} groups; choose a divisor")
    return elements(out_shape) * product(kernel_size) * (in_channels // groups)


def conv_transpose_macs(kernel_size, in_shape, out_channels):
    """Multiply-accumulates of one transposed convolution: every input element is spread over one kernel.

    MACs = batch * positions_in * C_in * kernel_elements * C_out. Dumoulin and Visin 2016, arXiv:1603.07285, section 4.

    Example:
        >>> conv_transpose_macs((2, 2), (1, 16, 16, 8), 16)
        131072
    """
    return elements(in_shape) * product(kernel_size) * out_channels


def dense_macs(in_shape, units):
    """Multiply-accumulates of a Dense layer on input of any rank: batch * positions * C_in * units, bias excluded.

    Example:
        >>> dense_macs((1, 43264), 64)  # the published baseline's first Dense layer
        2768896
    """
    return elements(in_shape) * units


def einsum_macs(equation, *shapes):
    """Multiply-accumulates of an einsum: the product of the sizes of all indices, for two operands.

    One operand multiplies nothing (0). An index that only one operand has, and the result has not, is summed first, as
    the backends do. Three operands and more are contracted pairwise in the order that the backend takes: the cheapest
    one on JAX, the one that greedy search finds on TensorFlow.

    Example:
        >>> einsum_macs("abc,cd->abd", (1, 10, 32), (32, 16))
        5120
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ValueError(f"einsum {equation!r} names {len(terms)} operands and got {len(shapes)}")
    operands = [_labelled(equation, term, shape) for term, shape in zip(terms, shapes, strict=True)]
    result = set(right if arrow else left)  # without an arrow no index is summed that one operand alone has
    if "." in result:
        result.update(label for operand in operands for label in operand if isinstance(label, int))
    order = [tuple(range(len(operands)))]
    if len(operands) > 2:
        stand_ins = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
        search = "optimal" if keras.backend.backend() == "jax" else "greedy"
        order = np.einsum_path(equation, *stand_ins, optimize=search)[0][1:]
    total = 0
    for step in order if len(operands) > 1 else ():
        taken = [operands.pop(at) for at in sorted(step, reverse=True)]
        needed = result.union(*operands)
        sizes = {}
        for number, operand in enumerate(taken):
            others = needed.union(*taken[:number], *taken[number + 1 :])
            for label, dim in operand.items():
                if label in others:
                    sizes[label] = max(sizes.get(label, 1), dim)
        total += product(sizes.values()) * (len(taken) - 1)
        operands.append({label: dim for label, dim in sizes.items() if label in needed})
    return total


def _labelled(equation, term, shape):
    """{index: size} of an operand; the dimensions of an ellipsis are numbered from the right, from -1 down."""
    elements(shape)
    head, dots, tail = term.partition("...")
    extra = len(shape) - len(head) - len(tail)
    if extra < 0 or (extra and not dots):
        raise ValueError(f"einsum {equation!r} does not fit an operand of shape {shape}")
    return dict(zip([*head, *range(-extra, 0), *tail], shape, strict=True))


def attention_macs(batch, heads, queries, keys, key_dim, value_dim):
    """Multiply-accumulates of scaled dot-product attention without projections: scores and weighted sum.

    MACs = batch * heads * queries * keys * (key_dim + value_dim); a causal mask does not reduce it, since all scores
    are computed and then masked. Vaswani et al. 2017, arXiv:1706.03762.
    """
    return batch * heads * queries * keys * (key_dim + value_dim)


# --- element-wise operations ------------------------------------------------------------------------------------------

# For each element, written out from each function's definition. Softmax: maximum, subtraction, exp, sum, division.
ACTIVATION_OPS = by_name({
    0: "linear",
    1: "relu exponential tanh",
    2: "relu6 leaky_relu hard_tanh tanh_shrink threshold",
    3: "elu softplus softsign glu hard_shrink",
    4: "celu sigmoid hard_sigmoid sparse_sigmoid soft_shrink",
    5: "selu log_sigmoid silu hard_silu gelu mish softmax log_softmax squareplus",
    6: "sparse_plus",
})  # fmt: skip
INTERPOLATION_RADIUS = {"nearest": 0, "bilinear": 1, "area": 1, "bicubic": 2, "lanczos3": 3, "lanczos5": 5}


def resize_cost(interpolation, antialias, channels_first, given, gives):
    """Resizing a grid: 2 * taps - 1 operations for each output element; nearest computes nothing.

    taps = product over the two axes of 2 * radius, and with antialiasing of 2 * radius * max(1, in / out).
    """
    if interpolation not in INTERPOLATION_RADIUS:
        return Cost(unknown=f"its interpolation {interpolation!r}")
    radius = INTERPOLATION_RADIUS[interpolation]
    if not radius:
        return Cost()
    inside = slice(-2, None) if channels_first else slice(-3, -1)
    taps = 1
    for size, wanted in zip(given[inside], gives[inside], strict=True):
        taps *= math.ceil(2 * radius * (max(1.0, size / wanted) if antialias else 1.0))
    return Cost(0, (2 * taps - 1) * elements(gives))


def relu_cost(function, shape):
    """A comparison, one more for a ceiling (ReLU6), a multiplication for a slope, two for a threshold."""
    operations = 1 + (function.max_value is not None) + bool(function.negative_slope) + 2 * bool(function.threshold)
    return Cost(0, operations * elements(shape))


def each(operations):
    """A rule: so many operations for each output element."""
    return lambda layer, input_shapes, output_shapes: Cost(0, operations * elements(output_shapes[0]))


def each_input(operations):
    """A rule: so many operations for each element of the first input."""
    return lambda layer, input_shapes, output_shapes: Cost(0, operations * elements(input_shapes[0]))


def nothing(layer, input_shapes, output_shapes):
    """A rule: data is moved, looked up or handed on; nothing is computed."""
    return Cost()
