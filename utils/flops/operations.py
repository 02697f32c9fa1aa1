"""What operations of `keras.ops` cost where a model calls them directly. Looked up by class name.

An operation is a `keras.Operation` whose class Keras does not publish; its name ("Matmul", "Multiply") is what stays.
A rule reads the operation, the shapes of all its operands (weights and constants too) and of its outputs. An operation
that stands in no list below is unsupported, and reported so.
"""

import math

from .formulas import (
    ACTIVATION_OPS,
    Cost,
    attention_macs,
    by_name,
    each,
    each_input,
    einsum_macs,
    elements,
    nothing,
    product,
    relu_cost,
    resize_cost,
)


def _contraction(operation, shapes, outputs):
    a, b, out = elements(shapes[0]), elements(shapes[1]), elements(outputs[0])
    return Cost(out * math.isqrt(a * b // out) if out else 0)


def _einsum(operation, shapes, outputs):
    macs = einsum_macs(operation.subscripts, *shapes)
    return Cost(macs, elements(shapes[0]) if len(shapes) == 1 else 0)


def _separable(operation, shapes, outputs):
    depthwise, pointwise = shapes[1], shapes[2]
    positions = elements(outputs[0]) // pointwise[-1]
    return Cost(positions * (product(depthwise) + product(pointwise)))


def _dot_product_attention(operation, shapes, outputs):
    (batch, queries, heads, dim), keys = shapes[0], shapes[1][1]
    pairs = batch * heads * queries * keys
    macs = attention_macs(batch, heads, queries, keys, dim, dim)
    return Cost(macs, elements(shapes[0]) + 5 * pairs)


def _pool(operation, shapes, outputs):
    size = operation.pool_size
    rank = len(shapes[0]) - 2
    return Cost(0, elements(outputs[0]) * product([size] * rank if isinstance(size, int) else size))


def _resize(operation, shapes, outputs):
    first = getattr(operation, "data_format", None) == "channels_first"
    return resize_cost(operation.interpolation, operation.antialias, first, shapes[0], outputs[0])


def _gelu(operation, shapes, outputs):
    return Cost(0, (9 if operation.approximate else 5) * elements(outputs[0]))


def _norm(operation, shapes, outputs):
    axes = len(shapes[0] if operation.axis is None else operation.axis)
    if axes == 2 and operation.ord in ("nuc", 2, -2):
        return Cost(unknown="its singular value decomposition")
    return Cost(0, 2 * elements(shapes[0]))


RULES = by_name({
    # data that is moved, made or looked up
    nothing: """
        Reshape Transpose Concatenate GetItem Squeeze ExpandDims Stack Pad Flip Fliplr Flipud Roll Repeat Tile Split
        ArraySplit Hsplit Vsplit Dsplit Slice SliceUpdate Cast SaturateCast StopGradient BroadcastTo Swapaxes Moveaxis
        Ravel Take TakeAlongAxis Copy Unstack DepthToSpace SpaceToDepth ExtractPatches Unfold OneHot MultiHot
        ConvertToTensor Arange ZerosLike OnesLike EmptyLike Full FullLike Rot90 Diag Diagonal Diagflat Tril Triu Hstack
        Vstack Dstack Append Array View Identity Real Imag ViewAsReal ViewAsComplex CropImages PadImages Rearrange
        Scatter ScatterUpdate Meshgrid Size Ndim GetShape""",
    each(1): """
        Add Subtract Multiply Divide TrueDivide DivideNoNan FloorDivide Mod Fmod Power Maximum Minimum Fmax Fmin Arctan2
        Absolute Abs Fabs Negative Square Sqrt Cbrt Rsqrt Reciprocal Exp Exp2 Expm1 Log Log2 Log10 Log1p Sin Cos Tan
        Sinh Cosh Arcsin Arccos Arctan Arcsinh Arccosh Arctanh Erf Erfc Erfinv Sign Floor Ceil Round Trunc Where Equal
        NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr LogicalNot LogicalXor Isnan Isinf Isfinite
        BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitwiseInvert Outer""",
    each(2): "Clip BatchNorm",
    each(3): "Normalize",
    each(4): "RMSNorm",
    each(5): "RGBToGrayscale",
    each(7): "LayerNorm",
    each_input(1): "Sum Mean Max Min Amax Amin Prod Any All Argmax Argmin CountNonzero Cumsum Cumprod",
    each_input(4): "Var Std Moments Logsumexp",
    _gelu: "Gelu",
    lambda operation, shapes, outputs: relu_cost(operation, outputs[0]): "ReLU",
    _norm: "Norm",
    lambda operation, shapes, outputs: Cost(elements(outputs[0]) * shapes[0][-1]): "Matmul",
    _contraction: "Dot Tensordot Inner Vdot",
    _einsum: "Einsum",
    # The kernels are (..., C_in / groups, C_out), (..., C_in, multiplier) and, transposed, (..., C_out, C_in).
    lambda operation, shapes, outputs: Cost(elements(outputs[0]) * product(shapes[1][:-1])): "Conv",
    lambda operation, shapes, outputs: Cost(elements(outputs[0]) * product(shapes[1][:-2])): "DepthwiseConv",
    lambda operation, shapes, outputs: Cost(elements(shapes[0]) * product(shapes[1][:-1])): "ConvTranspose",
    _separable: "SeparableConv",
    _dot_product_attention: "DotProductAttention",
    _pool: "MaxPool AveragePool",
    _resize: "Resize",
})  # fmt: skip
for _name, _operations in ACTIVATION_OPS.items():
    RULES.setdefault(_name.title().replace("_", ""), each(_operations))
