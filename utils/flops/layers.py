"""Formulas for what one layer call costs: the linear algebra, and the table in which all rules are looked up.

A rule is a pure function `rule(layer, input_shapes, output_shapes) -> Cost`, with full shapes, batch included. The
formulas stand by themselves (`conv_macs`, `dense_macs`, …), so that a reader can check one number with one line.

The convention, which every report states:

- 1 MAC is one multiplication and one addition of the linear algebra (convolutions, matrix products), bias excluded;
  FLOPs = 2 x MACs. Padding counts as input, as all frameworks compute it.
- Element-wise operations are a column of their own and part of neither: one for each addition, multiplication,
  division, comparison or selection, and one for each call of a function such as exp or tanh. What they come to for an
  activation stands in :data:`utils.flops.elementwise.ACTIVATION_OPS`.
- Inference: dropout and augmentation do nothing, batch normalization is one multiplication and one addition.
"""

import dataclasses
import functools

import keras
import numpy as np

from . import elementwise, sequence
from .formulas import Cost, elements, product

layers = keras.layers

CONVENTIONS = {
    "exact": "MACs at every output position; FLOPs = 2 x MACs; element-wise operations apart",
    "input_over_stride": (
        "the published studies' convention: convolutions counted at floor(input / stride) positions instead of their "
        "output positions, else exact; FLOPs = 2 x MACs; element-wise operations apart"
    ),
}


def conv_macs(kernel_size, in_channels, out_shape, groups=1, channels_first=False):
    """Multiply-accumulates of one convolution in 1, 2 or 3 dimensions, bias excluded.

    MACs = batch * positions_out * C_out * kernel_elements * (C_in / groups).

    Dilation does not enter: it moves the taps, not their number.

    Args:
        kernel_size: spatial kernel size, for example (3, 3).
        in_channels: C_in.
        out_shape: (batch, H_out, W_out, C_out), fully known.
        groups: channel groups; C_in for a depthwise convolution.
        channels_first: whether `out_shape` is (batch, C_out, H_out, W_out); the product is the same.

    Returns:
        int, MACs for the whole batch (1 MAC = 2 FLOPs).

    Raises:
        ValueError: unknown dimension, or C_in not divisible by groups.

    Example:
        >>> conv_macs((3, 3), 3, (1, 112, 112, 32))  # MobileNetV2 Conv1
        10838016

    Source: Howard et al. 2017, arXiv:1704.04861.
    """
    if in_channels % groups:
        raise ValueError(f"{in_channels} input channels cannot be split into {groups} groups; choose a divisor")
    return elements(out_shape) * product(kernel_size) * (in_channels // groups)


def conv_transpose_macs(kernel_size, in_shape, out_channels):
    """Multiply-accumulates of one transposed convolution, bias excluded.

    MACs = batch * positions_in * C_in * kernel_elements * C_out: every input element is spread over one kernel.

    Args:
        kernel_size: spatial kernel size.
        in_shape: (batch, H_in, W_in, C_in), fully known.
        out_channels: C_out.

    Raises:
        ValueError: unknown dimension.

    Example:
        >>> conv_transpose_macs((2, 2), (1, 16, 16, 8), 16)
        131072

    Source: Dumoulin and Visin 2016, arXiv:1603.07285, section 4.
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

    One operand multiplies nothing (0). Three and more are contracted pairwise in the order that `numpy.einsum_path`
    finds cheapest ("greedy"), as the backends do.

    Args:
        equation: such as "abc,cd->abd"; an ellipsis stands for dimensions of any number.
        *shapes: one known shape for each operand.

    Raises:
        ValueError: the equation does not fit the shapes, or a dimension is unknown.

    Example:
        >>> einsum_macs("abc,cd->abd", (1, 10, 32), (32, 16))
        5120
    """
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(shapes):
        raise ValueError(f"einsum {equation!r} names {len(terms)} operands and got {len(shapes)}")
    if len(terms) == 1:
        return 0
    if len(terms) > 2:
        return _chain_macs(equation, terms, right, shapes)
    sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        elements(shape)
        named = term.replace("...", "")
        extra = len(shape) - len(named)
        if extra < 0 or (extra and "..." not in term):
            raise ValueError(f"einsum {equation!r} does not fit an operand of shape {shape}")
        at = term.index("...") if "..." in term else 0
        labels = [*term[:at], *((".", extra - i) for i in range(extra)), *named[at:]] if extra else list(named)
        for label, dim in zip(labels, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), dim)
    return product(sizes.values())


def _chain_macs(equation, terms, right, shapes):
    operands = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
    path = np.einsum_path(equation, *operands, optimize="greedy")[0][1:]
    terms, shapes, total = list(terms), [tuple(shape) for shape in shapes], 0
    for number, step in enumerate(path):
        chosen = sorted(step, reverse=True)
        taken = [(terms.pop(at), shapes.pop(at)) for at in chosen]
        sizes = {label: dim for term, shape in taken for label, dim in zip(term, shape, strict=True)}
        total += product(sizes.values()) * (len(taken) - 1)
        needed = set(right).union(*terms) if number < len(path) - 1 else set(right)
        kept = "".join(label for label in sizes if label in needed)
        terms.append(kept)
        shapes.append(tuple(sizes[label] for label in kept))
    return total


# --- rules: layers of Keras that multiply and add ---------------------------------------------------------------------


def _channels(layer, shape):
    return shape[1] if layer.data_format == "channels_first" else shape[-1]


def _finish(layer, macs, out_shape):
    """Add the bias (one addition an output element) and the activation to the MACs of a layer."""
    cost = Cost(macs, elements(out_shape) if layer.use_bias else 0)
    return cost + elementwise.activation(getattr(layer, "activation", None), out_shape)


def conv(layer, input_shapes, output_shapes):
    """Conv1D, Conv2D, Conv3D, any padding, strides, dilation, groups."""
    channels = _channels(layer, input_shapes[0])
    return _finish(layer, conv_macs(layer.kernel_size, channels, output_shapes[0], layer.groups), output_shapes[0])


def depthwise(layer, input_shapes, output_shapes):
    """DepthwiseConv1D, DepthwiseConv2D: every output channel reads one input channel."""
    channels = _channels(layer, input_shapes[0])
    return _finish(layer, conv_macs(layer.kernel_size, channels, output_shapes[0], channels), output_shapes[0])


def separable(layer, input_shapes, output_shapes):
    """SeparableConv1D, SeparableConv2D: depthwise, then 1x1. MACs = positions * C_in * m * (kernel + C_out)."""
    return _finish(layer, _separable_macs(layer, input_shapes[0], output_shapes[0]), output_shapes[0])


def _separable_macs(layer, in_shape, out_shape):
    positions = elements(out_shape) // _channels(layer, out_shape)
    middle = _channels(layer, in_shape) * layer.depth_multiplier
    return positions * middle * (product(layer.kernel_size) + _channels(layer, out_shape))


def conv_transpose(layer, input_shapes, output_shapes):
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose."""
    macs = conv_transpose_macs(layer.kernel_size, input_shapes[0], _channels(layer, output_shapes[0]))
    return _finish(layer, macs, output_shapes[0])


def dense(layer, input_shapes, output_shapes):
    """Dense on input of any rank."""
    return _finish(layer, dense_macs(input_shapes[0], layer.units), output_shapes[0])


def einsum_dense(layer, input_shapes, output_shapes):
    """EinsumDense: its equation on the input and the kernel."""
    macs = einsum_macs(
        layer.equation, input_shapes[0], einsum_kernel_shape(layer.equation, input_shapes, output_shapes)
    )
    cost = Cost(macs, elements(output_shapes[0]) if layer.bias_axes else 0)
    return cost + elementwise.activation(layer.activation, output_shapes[0])


def einsum_kernel_shape(equation, input_shapes, output_shapes):
    """Shape of an EinsumDense kernel, from the shapes around it."""
    left, _, right = equation.replace(" ", "").partition("->")
    source, kernel = left.split(",")
    sizes = {}
    for term, shape in ((source, input_shapes[0]), (right, output_shapes[0])):
        head, dots, tail = term.partition("...")
        sizes.update(zip(head, shape, strict=not dots))
        if dots:
            sizes.update(zip(tail, shape[len(shape) - len(tail) :], strict=True))
    return tuple(sizes[label] for label in kernel)


def dot(layer, input_shapes, output_shapes):
    """Dot (the merging layer): a batched matrix product over `axes`."""
    axes = layer.axes if isinstance(layer.axes, (tuple, list)) else (layer.axes, layer.axes)
    macs = elements(output_shapes[0]) * input_shapes[0][axes[0]]
    return Cost(macs, sum(map(elements, input_shapes)) * 3 if layer.normalize else 0)


def embedding(layer, input_shapes, output_shapes):
    """Embedding looks up; ReversibleEmbedding called with `reverse=True` multiplies by the whole table."""
    if len(input_shapes[0]) < len(output_shapes[0]):
        return Cost()
    capped = 3 * elements(output_shapes[0]) if getattr(layer, "logit_soft_cap", None) else 0  # divide, tanh, multiply
    return Cost(dense_macs(input_shapes[0], output_shapes[0][-1]), capped)


# --- the studies' convention ------------------------------------------------------------------------------------------


def _over_stride(rule, layer, input_shapes, output_shapes):
    """A convolution's cost with its MACs at floor(input / stride) positions, as Keras_FLOP_Estimator counts."""
    cost = rule(layer, input_shapes, output_shapes)
    inside = slice(2, None) if layer.data_format == "channels_first" else slice(1, -1)
    counted = [dim // stride for dim, stride in zip(input_shapes[0][inside], layer.strides, strict=True)]
    real = product(output_shapes[0][inside])
    return dataclasses.replace(cost, macs=cost.macs * product(counted) // real if real else 0)


RULES = {
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), conv),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), separable),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), conv_transpose),
    layers.Dense: dense,
    layers.EinsumDense: einsum_dense,
    layers.Dot: dot,
    layers.Embedding: embedding,
    **elementwise.RULES,
    **sequence.RULES,
}

OVER_STRIDE_RULES = {
    layer_type: functools.partial(_over_stride, rule)
    for layer_type, rule in RULES.items()
    if rule in (conv, depthwise, separable)
}


def rules_for(convention):
    """The table of rules of a convention: {layer type: rule}.

    Raises:
        ValueError: there is no such convention; the message lists those that there are.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention {convention!r} is unknown; choose one of {', '.join(map(repr, CONVENTIONS))}")
    return {**RULES, **OVER_STRIDE_RULES} if convention == "input_over_stride" else RULES
