"""What each Keras layer or operation does to the field of a tensor: one small function a kind of layer.

A rule is `rule(call, fields) -> Field | list of Field | None`: `call` is a utils.layer_calls.LayerCall, `fields` holds
one utils.receptive_field.algebra.Field for each of its inputs (None for an input that sees nothing of the image). A
list answers each output by itself. None as an answer means that the rule cannot say. Rules are looked up by class name
along the class hierarchy, among Keras' own classes only, so that a layer of yours that happens to be called "Pad" is
not mistaken for one of Keras'.

Everything is described as in inference: dropout and random augmentation pass the image through.
"""

import functools

import keras
import numpy as np

from . import index_maps as maps
from . import windows
from .algebra import join
from .index_maps import merge, operands
from .lines import window
from .windows import normalized, removed, stepped

__all__ = ["RULES", "TAKES_NONE", "lookup", "merge", "stepped", "window"]


def reduction(call, fields):
    """Mean, sum, maximum over axes: those of the image are mixed and gone."""
    shape, layer = call.input_shapes[0], call.layer
    gone = normalized(layer.axes if call.type == "Moments" else getattr(layer, "axis", None), len(shape))
    return removed(fields[0].mix(gone, shape, call.path), gone, call)


def own(call, fields):
    """Element by element; a mask that comes along counts in training only."""
    return fields[0]


def constant(call, fields):
    return [None]


def new_units(field, shape, path):
    """New units from all that lies along the last axis."""
    return field.mix({len(shape) - 1}, shape, path, stays=True)


def dense(call, fields):
    return new_units(fields[0], call.input_shapes[0], call.path)


def contraction(call, fields, terms, target):
    """A product of tensors over letters: those that the target lacks are mixed, the others move to their places."""
    found = []
    for (field, shape), letters in zip(operands(call, fields), terms, strict=True):
        if field is None:
            continue
        gone = {axis for axis, letter in enumerate(letters) if letter not in target}
        field = field.mix(gone, shape, call.path)
        moves = {axis: target.index(letter) for axis, letter in enumerate(letters) if axis not in gone}
        shape = [next((shape[at] for at, letter in enumerate(letters) if letter == one), 1) for one in target]
        found.append(field.move(moves.get).stretch(shape, call.output_shapes[0]))
    joined = join(found, call.path)
    fresh = [at for at, letter in enumerate(target) if at not in joined.positions]
    axes = [
        axis._replace(dead=(fresh[-1], call.path)) if axis.whole and not axis.positions and fresh else axis
        for axis in joined.axes
    ]
    return joined._replace(axes=tuple(axes))


def _letters(text, rank):
    """The letters of one term, an ellipsis written out so that it counts from the back."""
    if "..." not in text:
        return text
    before, after = text.split("...")
    extra = rank - len(before) - len(after)
    return before + "".join(chr(0x200 - number) for number in range(extra, 0, -1)) + after


def einsum_dense(call, fields):
    source, rest = call.layer.equation.replace(" ", "").split(",")
    term = _letters(source, len(call.input_shapes[0]))
    return contraction(call, fields, [term], _letters(rest.split("->")[1], len(call.output_shapes[0])))


def einsum(call, fields):
    text = call.layer.subscripts.replace(" ", "")
    if "->" not in text:
        return None
    sources, target = text.split("->")
    terms = [_letters(term, len(shape)) for term, shape in zip(sources.split(","), call.operand_shapes, strict=True)]
    return contraction(call, fields, terms, _letters(target, len(call.output_shapes[0])))


def matmul(call, fields):
    """Rows of the first with columns of the second; the axes before them go along."""
    ranks = [len(shape) for shape in call.operand_shapes]
    if len(ranks) != 2 or min(ranks) < 2 or (call.type == "Dot" and ranks[1] > 2):
        return None
    batch = [chr(0x200 - number) for number in range(max(ranks) - 2, 0, -1)]
    terms = [[*batch[len(batch) - rank + 2 :], *tail] for rank, tail in zip(ranks, ("ij", "jk"), strict=True)]
    return contraction(call, fields, terms, [*batch, "i", "k"])


def dot(call, fields):
    return mix_all(call, fields) if isinstance(call.layer, keras.layers.Layer) else matmul(call, fields)


def tensordot(call, fields):
    """Summed over the given axes of both; what is left of the first stands before what is left of the second."""
    axes, ranks = call.layer.axes, [len(shape) for shape in call.operand_shapes]
    if isinstance(axes, int):
        axes = list(range(ranks[0] - axes, ranks[0])), list(range(axes))
    axes = [[at % rank for at in np.atleast_1d(one)] for one, rank in zip(axes, ranks, strict=True)]
    terms = [[(number, at) for at in range(rank)] for number, rank in enumerate(ranks)]
    for one, two in zip(*axes, strict=True):
        terms[1][two] = terms[0][one]
    target = [letter for letter in (*terms[0], *terms[1]) if (letter in terms[0]) != (letter in terms[1])]
    return contraction(call, fields, terms, target)


def over_axis(call, fields):
    """Normalized over `axis` (None: over all): whatever lies along it is mixed, and stays."""
    shape = call.input_shapes[0]
    if shape != call.output_shapes[0]:  # flat
        return mix_all(call, fields)
    return fields[0].mix(normalized(getattr(call.layer, "axis", -1), len(shape)), shape, call.path, keep=True)


def over_image(call, fields):
    """Statistics over all positions of one image."""
    shape = call.input_shapes[0]
    return fields[0].mix(set(range(1, len(shape))), shape, call.path, keep=True)


def attention(call, fields):
    """Every query meets every key; the local path is that of the query."""
    rank, shape = len(call.output_shapes[0]), call.input_shapes[0]
    axes = set(getattr(call.layer, "_attention_axes", None) or range(1, rank - 1))
    found = [] if fields[0] is None else [fields[0].mix(axes, shape, call.path, keep=True)]
    for field, shape in zip(fields[1:], call.input_shapes[1:], strict=True):
        if field is not None and len(shape) == rank:  # no mask
            found.append(field.mix(axes, shape, call.path))
    return new_units(join(found, call.path), call.output_shapes[0], call.path)


def recurrent(call, fields):
    """Every step is mixed with the others, and every unit with all that a step holds."""
    shape = call.input_shapes[0]
    if len(shape) != 3:
        return None  # a cell of one's own, for images
    return windows.mixed_steps(call, new_units(fields[0], shape, call.path))


def mix_all(call, fields):
    """Everything meets everything, and no grid is left."""
    field = next(field for field in fields if field is not None).map(lambda _, line: (None, line))
    return field._replace(axes=tuple(axis._replace(whole=True, mixer=axis.mixer or call.path) for axis in field.axes))


def average(call, fields):
    return merge(call, fields) if isinstance(call.layer, keras.layers.Layer) else reduction(call, fields)


def wrapper(call, fields):
    inner = getattr(call.layer, "layer", None) or call.layer.forward_layer
    rule = lookup(inner)
    return None if rule is None else rule(call._replace(layer=inner, type=type(inner).__name__), fields)


def activated(rule):
    """The rule of a layer that ends in an activation: most of these take every element for itself, softmax does not."""

    @functools.wraps(rule)
    def both(call, fields):
        field, function = rule(call, fields), getattr(call.layer, "activation", None)
        if field is None or function is None:
            return field
        if isinstance(function, keras.Layer):
            shapes, rule_of_it = call.output_shapes, lookup(function)
            inner = call._replace(layer=function, type=type(function).__name__, input_shapes=shapes)
            return None if rule_of_it is None else rule_of_it(inner, (field,))
        shape = call.output_shapes[0]
        mixed = _mixed(function, shape, call.output_dtypes[0])
        return None if mixed is None else field.mix(mixed, shape, call.path, keep=True)

    return both


def _mixed(function, shape, dtype):
    """The axes along which a function of one tensor reads more than the same element, tried on numbers; else None."""
    if function in ELEMENTWISE:
        return set()
    for sides in ([min(side or 4, 4) for side in shape[1:]], [side or 4 for side in shape[1:]]):
        try:
            values = np.random.default_rng(0).uniform(0.5, 1, (2, 1, *sides))
            axes = set()
            for image in (values[0], -values[1]):
                before = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(image, dtype)))
                if before.shape != image.shape:
                    return None
                for at in ([side // 3 for side in image.shape], [side // 2 for side in image.shape]):
                    for factor in (-3, 3):
                        changed = image.copy()
                        changed[tuple(at)] *= factor
                        after = keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(changed, dtype)))
                        moved = np.argwhere(after != before)
                        axes |= {axis for axis, place in enumerate(at) if (moved[:, axis] != place).any()}
            return axes
        except Exception:  # it may want the real sides
            continue
    return None


def time_distributed(call, fields):
    rule = lookup(call.layer.layer)
    return None if rule is None or len(fields) != 1 else each_step(call, fields[0], lambda *one: rule(one[0], one[1:]))


def each_step(call, field, rule):
    """`rule(inner call, field)` on every time step: axis 1 steps aside for the while."""
    inner = call._replace(
        layer=call.layer.layer,
        type=type(call.layer.layer).__name__,
        input_shapes=tuple((shape[0], *shape[2:]) for shape in call.input_shapes),
        output_shapes=tuple((shape[0], *shape[2:]) for shape in call.output_shapes),
    )
    aside = min(0, *field.positions) - 1000  # a position that no inner rule touches
    field = rule(inner, field.renamed(lambda axis: aside if axis == 1 else axis - (axis > 1)))
    return None if field is None else field.renamed(lambda axis: 1 if axis == aside else axis + (axis > 0))


ELEMENTWISE = {  # of all others it is tried
    getattr(keras.activations, name)
    for name in ("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "tanh", "softplus")
}
_KINDS = {
    activated(windows.windowed): """
        BaseConv BaseDepthwiseConv BaseSeparableConv BasePooling Conv DepthwiseConv SeparableConv MaxPool
        AveragePool GaussianBlur""",
    windows.pointwise: "RGBToGrayscale RGBToHSV HSVToRGB",
    activated(windows.transposed): "BaseConvTranspose ConvTranspose",
    windows.global_pool: "BaseGlobalPooling",
    windows.adaptive_pool: "BaseAdaptivePooling AdaptiveAveragePool AdaptiveMaxPool",
    windows.margins: "ZeroPadding1D ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D",
    windows.center_crop: "CenterCrop",
    windows.pad_operation: "Pad",
    windows.up_sampling: "UpSampling1D UpSampling2D UpSampling3D",
    windows.resizing: "Resizing Resize",
    windows.image_margins: "CropImages PadImages",
    windows.depth_to_space: "DepthToSpace",
    windows.space_to_depth: "SpaceToDepth",
    maps.repeat: "Repeat",
    maps.tile: "Tile",
    maps.flip: "Flip",
    maps.rot90: "Rot90",
    maps.roll: "Roll",
    maps.patches: "ExtractPatches",
    maps.concatenate: "Concatenate Hstack Vstack",
    maps.stack: "Stack",
    maps.split: "Split ArraySplit",
    maps.unstack: "Unstack",
    windows.glu: "Glu",
    maps.permute: "Permute Transpose Swapaxes Moveaxis",
    maps.regroup: "Reshape Flatten Ravel",
    maps.expand_dims: "ExpandDims",
    maps.squeeze: "Squeeze",
    maps.get_item: "GetItem",
    maps.slice_operation: "Slice",
    maps.take: "Take",
    reduction: "Mean Sum Prod Max Min Amax Amin Std Var Any All Argmax Argmin Median Logsumexp CountNonzero Moments",
    average: "Average",
    own: "BatchNormalization Embedding",
    constant: "ZerosLike OnesLike",
    activated(dense): "Dense",
    activated(einsum_dense): "EinsumDense",
    einsum: "Einsum",
    matmul: "Matmul",
    over_axis: """
        LayerNormalization RMSNormalization UnitNormalization Softmax LogSoftmax Sparsemax Normalize LayerNorm RMSNorm
        Cumsum Cumprod Sort Argsort""",
    over_image: "GroupNormalization AutoContrast Equalization ContrastLimitedAdaptiveHistogramEqualization",
    attention: "MultiHeadAttention GroupQueryAttention Attention AdditiveAttention DotProductAttention",
    recurrent: "RNN",
    windows.recurrent_convolution: "ConvLSTM ConvLSTM1D ConvLSTM2D ConvLSTM3D",
    tensordot: "Tensordot",
    dot: "Dot",
    windows.difference: "Diff",
    wrapper: "SpectralNormalization Bidirectional",
    time_distributed: "TimeDistributed",
    activated(merge): "Activation",
    # Element-wise, with one input or several.
    merge: """
        Add Subtract Multiply Maximum Minimum Divide TrueDivide DivideNoNan FloorDivide Power Mod Where Arctan2 Hypot
        ReLU LeakyReLU ELU PReLU Dropout BaseSpatialDropout GaussianNoise GaussianDropout AlphaDropout
        ActivityRegularization Rescaling Normalization Identity Masking LayerScale StochasticDepth
        CustomScaleLayer Discretization
        CutMix MaxNumBoundingBoxes MixUp RandomBrightness RandomColorDegeneration RandomColorJitter RandomContrast
        RandomElasticTransform RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHue RandomInvert
        RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness RandomShear
        RandomTranslation RandomZoom Solarization
        Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink SparsePlus Silu Squareplus LogSigmoid LeakyRelu
        HardSigmoid HardSilu Elu Selu Gelu Celu TanhShrink HardTanh HardShrink Threshold BatchNorm Rsqrt Erf Erfc
        Absolute Arccos Arcsin Arctan Cbrt Ceil Clip Conjugate Copy Cos Cosh Equal Exp Exp2 Expm1 Floor Greater
        GreaterEqual Isfinite Isinf Isnan Less LessEqual Log Log10 Log1p Log2 Logaddexp LogicalAnd LogicalNot LogicalOr
        Negative NotEqual Reciprocal Round Sign Sin Sinh Sqrt Square Tan Tanh Trunc NanToNum
        StopGradient Cast SaturateCast ConvertToTensor Select BroadcastTo Tril Triu Abs FullLike Real Imag BitwiseAnd
        Sinc Erfinv Heaviside Signbit Deg2rad Rad2deg Log1p LogicalXor Fmin Fmax""",
}  # fmt: skip
RULES = {name: rule for rule, names in _KINDS.items() for name in names.split()}

# At inference these cut or resize in a way that depends on the image's aspect, or are not local at all.
UNREADABLE = {"RandomCrop", "AugMix", "RandAugment", "Lambda"}


def lookup(layer, rules=None):
    """The rule for a layer, or None. `rules` {class or class name: rule} come first and apply to any class."""
    mro = type(layer).__mro__
    if rules:
        for cls in mro:
            rule = rules.get(cls) or rules.get(cls.__name__)
            if rule is not None:
                return rule
    return _keras_rule(type(layer))


@functools.cache
def _keras_rule(layer_type):
    if not layer_type.call.__module__.startswith("keras."):
        return None  # a subclass whose call is its own does what it likes
    for cls in layer_type.__mro__:
        if cls.__module__.split(".")[0] == "keras":
            if cls.__name__ in UNREADABLE:
                return None
            if cls.__name__ in RULES:
                return RULES[cls.__name__]
    return None


# Rules that can do with a first input that sees nothing of the image.
TAKES_NONE = {merge, average, maps.concatenate, maps.stack, attention, mix_all, matmul, einsum, tensordot, dot}
