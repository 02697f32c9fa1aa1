"""Channel pruning: whole expansion channels of inverted-residual blocks go, and a truly smaller model is built.

An inverted-residual block widens its input with a 1x1 convolution, filters every channel by itself (depthwise), and
narrows the result with another 1x1 convolution. Nothing else reads the wide channels in between, so any of them can be
taken out of the three kernels. Source: Li et al. 2017, arXiv:1608.08710 (L1 norm of filters).
"""

import dataclasses

import keras
import numpy as np
import pandas as pd

from utils._checks import whole
from utils.layer_calls import keras_graph, layer_calls
from utils.models import set_weights

from .magnitude import check_kernels, check_model, check_share

L = keras.layers
_KEEPS_CHANNELS = (
    L.Activation, L.ReLU, L.LeakyReLU, L.Dropout, L.SpatialDropout2D, L.ZeroPadding2D, L.AveragePooling2D,
    L.MaxPooling2D, L.GlobalAveragePooling2D, L.GlobalMaxPooling2D, L.Identity,
)  # fmt: skip
_ELEMENTWISE = (
    "Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Clip", "Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu",
    "Silu", "HardSilu", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Minimum", "Maximum",
)  # fmt: skip
_MIXING = ("softmax", "log_softmax", "sparsemax", "glu")  # activations that look at all channels


@dataclasses.dataclass(frozen=True)
class Block:
    """The layers that share the expansion channels of one block, by name.

    Attributes:
        name, channels: of the expanding convolution.
        producers: Conv2D layers that make the channels (the expansion; in squeeze-excite also the gate).
        channelwise: layers with weights per channel (depthwise convolution, batch normalization).
        consumers: Conv2D and Dense layers that read them (the projection; in squeeze-excite also the squeeze).
        reshapes: Reshape layers to (1, 1, channels), as squeeze-excite has.
    """

    name: str
    channels: int
    producers: tuple
    channelwise: tuple
    consumers: tuple
    reshapes: tuple = ()


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelPruned:
    """A smaller model and what was taken out.

    Attributes:
        model: the new Keras model; the one given is untouched.
        fraction: share of the expansion channels removed, over the blocks that were pruned.
        parameters_removed: share of the whole model's parameters that went with them.
        blocks: DataFrame, one row per block: block, channels_before, channels_after, removed (share).
        kept: {block name: sorted indices of the channels kept}.
        left_alone: {depthwise convolution: channels} whose channels something else sees, so that none could go.
    """

    model: keras.Model
    fraction: float
    parameters_removed: float
    blocks: pd.DataFrame
    kept: dict
    left_alone: dict

    def __repr__(self):
        before, after = self.blocks["channels_before"].sum(), self.blocks["channels_after"].sum()
        names = ", ".join(f"{name} ({channels} channels)" for name, channels in self.left_alone.items())
        return (
            f"{self.model.name!r} with {after:,} of {before:,} expansion channels in {len(self.blocks)} "
            f"block{'s' * (len(self.blocks) != 1)} ({self.fraction:.1%} removed) and {self.model.count_params():,} "
            f"parameters ({self.parameters_removed:.1%} of the model's parameters removed)"
            + (f"; left alone: {names}" if names else "")
        )

    def _repr_html_(self):
        return f"<p>{self!r}</p>{self.blocks.round(3).to_html(index=False)}"


def find_blocks(model):
    """The inverted-residual blocks of a model, in execution order.

    A block starts at a 1x1 Conv2D whose channels pass, each by itself, a DepthwiseConv2D among other layers, until
    convolutions read them, and nothing else (no residual sum, no output of the model) sees the channels.

    Args:
        model: a built functional or Sequential Keras 3 model with a flat graph.

    Returns:
        list of Block.

    Raises:
        TypeError, ValueError: not a Keras model; one that is not built, or subclassed; there is no such block, or one
            with LoRA or quantized weights.

    Example:
        >>> model = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> [(block.name, block.channels) for block in find_blocks(model)][:2]
        [('block_1_expand', 96), ('block_2_expand', 144)]
    """
    check_model(model)
    if keras_graph.graph_of(model) is None:
        raise ValueError(
            f"expected a functional or Sequential model, got {model.name!r} ({type(model).__name__}), which has no "
            "graph that says who reads each channel; build it as keras.Model(inputs, outputs)"
        )
    graph = _Graph(model)
    blocks, seen = [], set()
    for call in graph.calls:
        layer = call.layer
        if type(layer) is L.Conv2D and layer.kernel_size == (1, 1) and layer.name not in seen:
            block = graph.block(call)
            if block is not None:
                blocks.append(block)
                seen.update(block.producers)
    if not blocks:
        raise ValueError(
            f"model {model.name!r} has no inverted-residual block (1x1 convolution, depthwise convolution, 1x1 "
            "convolution) in a flat graph, whose channels nothing else sees, so none can be pruned"
        )
    check_kernels(model.get_layer(name) for block in blocks for name in (*block.producers, *block.consumers))
    return blocks


class _Graph:
    """Who makes and who reads each tensor of a model."""

    def __init__(self, model):
        self.calls = layer_calls(model)
        self.maker, self.readers, self.times = {}, {}, {}
        for call in self.calls:
            self.times[id(call.layer)] = self.times.get(id(call.layer), 0) + 1
            for key in call.outputs:
                self.maker[key] = call
            for key in call.inputs:
                self.readers.setdefault(key, []).append(call)

    def block(self, start):
        """The Block whose channels `start` makes, or None if its channels reach something that must not change."""
        if not self._makes(start, start.layer.filters):
            return None
        group, todo, axis = set(), list(start.outputs), 1 if start.layer.data_format == "channels_first" else -1
        producers, channelwise, consumers, reshapes = [start], [], [], []
        while todo:
            key = todo.pop()
            if key in group:
                continue
            group.add(key)
            if key not in self.readers:  # an output of the model
                return None
            for call in self.readers[key]:
                if "/" in call.path or self.times[id(call.layer)] > 1:
                    return None
                layer = call.layer
                if _per_channel(layer, axis):
                    channelwise.append(call)
                elif isinstance(layer, L.Reshape) and tuple(layer.target_shape) == (1, 1, start.layer.filters):
                    reshapes.append(call)
                elif _keeps_channels(call):
                    pass
                elif call.type == "Multiply" and len(call.inputs) > 1:  # not by a constant for each channel
                    sides = [shape[axis] for shape in call.input_shapes]  # one number for all channels sees none
                    others = [key for key, side in zip(call.inputs, sides, strict=True) if side != 1]
                    found = [self._behind(other, group, start) for other in others if other not in group]
                    if None in found:
                        return None
                    new = [maker for maker in found if maker is not start and maker not in producers]
                    producers += new
                    todo += [key for maker in new for key in maker.outputs]
                elif (type(layer) is L.Conv2D and layer.groups == 1) or type(layer) is L.Dense:
                    consumers.append(call)
                    continue
                else:
                    return None
                todo += call.outputs
        parts = (producers, channelwise, consumers, reshapes)
        names = [tuple(dict.fromkeys(call.layer.name for call in calls)) for calls in parts]
        depthwise = any(isinstance(call.layer, L.DepthwiseConv2D) for call in channelwise)
        if not depthwise or not consumers:
            return None
        return Block(start.layer.name, start.layer.filters, *names)

    def _behind(self, key, group, start):
        """The convolution that makes a gate's channels, behind activations; None if something else does."""
        call = self.maker.get(key)
        while call is not None and _keeps_channels(call):
            if call.inputs[0] in group:  # a gate of the group's own channels, as x * sigmoid(x)
                return start
            call = self.maker.get(call.inputs[0])
        return call if call is not None and self._makes(call, start.layer.filters) else None

    def _makes(self, call, channels):
        """Whether a call is the only one of a convolution that makes so many channels, each by a filter of its own."""
        layer = call.layer
        fits = type(layer) is L.Conv2D and layer.groups == 1 and layer.filters == channels and not _mixes(layer)
        return fits and "/" not in call.path and self.times[id(layer)] == 1


def _mixes(layer):
    """Whether the layer's activation looks at all channels; one of the user's own may."""
    name = getattr(getattr(layer, "activation", None), "__name__", "linear")
    return name in _MIXING or not hasattr(keras.activations, name)


def _keeps_channels(call):
    """Whether each channel passes by itself and alike: an activation, a pooling, arithmetic with plain numbers."""
    if isinstance(call.layer, L.Layer):
        return type(call.layer) in _KEEPS_CHANNELS and len(call.inputs) == 1 and not _mixes(call.layer)
    # such as the hard sigmoid of MobileNetV3's gates, relu6(x + 3) / 6
    others = [
        value for value in (*call.call_args, *call.call_kwargs.values()) if not keras.utils.is_keras_tensor(value)
    ]
    plain = all(value is None or isinstance(value, (int, float)) for value in others)
    return call.type in _ELEMENTWISE and len(call.inputs) == 1 and plain


def _per_channel(layer, axis):
    """Whether the layer has weights for each channel, which stand along `axis` of four, and mixes none."""
    if isinstance(layer, L.DepthwiseConv2D):
        return layer.depth_multiplier == 1 and not _mixes(layer)
    return isinstance(layer, L.BatchNormalization) and layer.axis in (axis, axis % 4)


def channel_importance(model, block):
    """How much each expansion channel of a block matters, largest most.

    The product of the L1 norms of the channel's expanding filter, depthwise filter and projecting slice, the filters
    scaled by their batch normalization (gamma / sqrt(variance + epsilon)).

    Returns:
        float array (channels,), zero or more, with mean 1 unless all are zero.

    Example:
        >>> model = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> channel_importance(model, find_blocks(model)[0]).shape
        (96,)
    """
    layers = {layer.name: layer for layer in model.layers}
    score = np.ones(block.channels)
    for norm in (layers[name] for name in block.channelwise if isinstance(layers[name], L.BatchNormalization)):
        gamma = np.abs(np.asarray(norm.gamma)) if norm.scale else 1.0
        score *= gamma / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)
    for name in (block.name, *block.channelwise):
        if hasattr(layers[name], "kernel"):  # (h, w, in, channels), depthwise (h, w, channels, 1)
            kernel = np.abs(np.asarray(layers[name].kernel))
            score *= kernel.sum(axis=(0, 1, 2) if name == block.name else (0, 1, 3))
    projection = max((layers[name] for name in block.consumers), key=lambda layer: layer.kernel.shape[-1])
    kernel = np.abs(np.asarray(projection.kernel))
    score *= kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=(0, 2))
    return score / score.mean() if score.any() else score


def prune_channels(model, fraction, divisor=8, minimum=8):
    """Remove expansion channels and build the smaller model; nothing is trained (see `pruning.fine_tune`).

    Args:
        model: a built Keras 3 model with inverted-residual blocks.
        fraction: share of every block's expansion channels to remove, in [0, 1); rounded so that `divisor` divides
            what is kept.
        divisor: channels kept are a multiple of this (SIMD kernels work in eights); 1 for none.
        minimum: a block keeps at least this many channels.

    Returns:
        ChannelPruned.

    Raises:
        ValueError: fraction outside [0, 1), or no such block.

    Example:
        >>> model = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> prune_channels(model, 0.5).model.count_params() < 0.75 * model.count_params()
        True
    """
    check_share(fraction, "fraction")
    whole("divisor", divisor)
    whole("minimum", minimum)
    found, kept = find_blocks(model), {}
    for block in found:
        wanted = round(block.channels * (1 - fraction) / divisor) * divisor if fraction else block.channels
        count = min(max(wanted, minimum), block.channels)
        order = np.argsort(-channel_importance(model, block), kind="stable")
        kept[block.name] = np.sort(order[:count])
    rows = [(block.name, block.channels, len(kept[block.name])) for block in found]
    table = pd.DataFrame(rows, columns=["block", "channels_before", "channels_after"])
    table["removed"] = 1 - table["channels_after"] / table["channels_before"]
    removed = 1 - table["channels_after"].sum() / table["channels_before"].sum()
    small = rebuild(model, found, kept)
    pruned = {name for block in found for name in block.channelwise}
    wide = {layer.name: layer.kernel.shape[-2] for layer in model.layers if isinstance(layer, L.DepthwiseConv2D)}
    return ChannelPruned(
        model=small,
        fraction=float(removed),
        parameters_removed=1 - small.count_params() / model.count_params(),
        blocks=table,
        kept=kept,
        left_alone={name: channels for name, channels in wide.items() if name not in pruned},
    )


def rebuild(model, blocks, kept):
    """An uncompiled model of the same layer names that has only the channels in `kept`, {block name: indices}."""
    makes, reads, carries, sizes = (
        {name: kept[block.name] for block in blocks for name in getattr(block, part)}
        for part in ("producers", "consumers", "channelwise", "reshapes")
    )

    def smaller(layer):
        config = layer.get_config()
        if layer.name in makes:
            config["filters"] = len(makes[layer.name])
        if layer.name in sizes:
            config["target_shape"] = (1, 1, len(sizes[layer.name]))
        return type(layer).from_config(config)

    small = keras.models.clone_model(model, clone_function=smaller)
    for old, new in zip(model.layers, small.layers, strict=True):
        weights = old.get_weights()
        if old.name in reads:  # the kernel's axis before the last: channels in
            weights[0] = np.take(weights[0], reads[old.name], axis=-2)
        if old.name in makes:  # kernel and bias: channels out
            weights = [np.take(array, makes[old.name], axis=-1) for array in weights]
        if old.name in carries:  # a depthwise kernel is (h, w, channels, 1), everything else (channels,)
            keep = carries[old.name]
            weights = [np.take(array, keep, axis=-2 if array.ndim == 4 else -1) for array in weights]
        set_weights(new, weights)
    return small
