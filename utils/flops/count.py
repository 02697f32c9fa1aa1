"""FLOPs and MACs of any Keras 3 model, call by call, from its layers and their shapes.

Nothing is run. Calls of Keras' layers and operations are counted by rule; layers of your own by looking inside; and
what cannot be looked into, from the graph that the backend makes of it. Each row of the report names its way.
"""

import functools
import math

import keras

from .._checks import whole
from ..layer_calls import keras_graph, layer_calls
from . import layers, operations
from .formulas import ACTIVATION_OPS, CONVENTIONS, Cost
from .graph import operations_cost
from .report import CostReport, CostRow, Unsupported, check_choice, tell


def count(model, input_shape=None, batch_size=None, rules=None, unsupported="warn", convention="exact"):
    """Count MACs, FLOPs, element-wise operations, parameters and bytes of every call of a model.

    Args:
        model: any Keras 3 model, or a single layer.
        input_shape: shape or shapes without the batch, as in :func:`utils.layer_calls.layer_calls`; None for the
            shapes that the model was built with.
        batch_size: number of inputs to count for; None for the batch that the model or `input_shape` fixes, else 1.
            The report names the batch that it counted.
        rules: {layer type, or class name of a `keras.ops` operation: rule} for this call only; goes before the rules
            that there are, and is looked up through the class hierarchy. A rule is
            `rule(layer, input_shapes, output_shapes)` and returns a :class:`Cost`, or an int: MACs.
        unsupported: what to do about calls that cannot be counted: "warn", "raise" or "ignore". They are in
            `report.unsupported` in any case, with the cause.
        convention: "exact", or "input_over_stride" for the published studies' way (see `CONVENTIONS`).

    Returns:
        :class:`CostReport`. Patches cut by `extract_patches` are moved data, which costs nothing here.

    Raises:
        ValueError: an input dimension is unknown, a shape does not fit, an argument is not one of those allowed,
            or (with unsupported="raise") a call cannot be counted.
        TypeError: not a Keras 3 model, or a rule that is not callable.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((32, 32, 8)), keras.layers.Conv2D(16, 3, padding="same")])
        >>> report = count(model)
        >>> report.total_macs, report.total_flops, report.total_params
        (1179648, 2359296, 1168)

        A rule for a layer of your own, where its source would be counted otherwise:

        >>> class Gabor(keras.layers.Layer):  # 8 fixed filters of 5 x 5, applied by a library of its own
        ...     def call(self, photos):
        ...         return keras.ops.repeat(photos[..., :1], 8, axis=-1)
        >>> def gabor(layer, input_shapes, output_shapes):
        ...     batch, height, width, filters = output_shapes[0]
        ...     return Cost(macs=batch * height * width * filters * 5 * 5)
        >>> count(keras.Sequential([keras.Input((32, 32, 3)), Gabor()]), rules={Gabor: gabor}).total_macs
        204800
    """
    check_choice(unsupported)
    batch_size = batch_size if batch_size is None else whole("batch_size", batch_size)
    table = _Rules(rules, convention)
    calls = layer_calls(
        model, input_shape, batch_size=_batch(model, batch_size), closed=table.closed, opened=table.looks_inside,
        graphs=True,
    )  # fmt: skip
    counted = _check_inputs(model, calls, batch_size)

    rows, problems, seen = [], [], set()
    first = _channels_first(calls)
    for call in calls:
        cost, way, problem = _cost(call, table)
        if problem:
            problems.append(Unsupported(call.path, call.type, problem))
        rows.append(_row(call, cost, way, seen, not first.isdisjoint(call.outputs)))
    tell(f"{model.name!r}", problems, unsupported)
    return CostReport(model.name, tuple(rows), counted, convention, CONVENTIONS[convention], tuple(problems))


KNOWN_ACTIVATIONS = {id(getattr(keras.activations, name, None)) for name in ACTIVATION_OPS} | {id(None)}


class _Rules:
    """The rules of one count: the caller's before those of layers and operations."""

    def __init__(self, rules, convention):
        rules = {} if rules is None else rules
        if not isinstance(rules, dict) or not all(
            isinstance(key, (type, str)) and callable(rule) for key, rule in rules.items()
        ):
            raise TypeError(
                "rules must be {layer type or operation name: function of (layer, input_shapes, output_shapes)}, "
                f"got {rules!r}"
            )
        self.own, self.layers, self.found = dict(rules), layers.rules_for(convention), {}
        self.closed = tuple(key for key in self.own if isinstance(key, type) and key not in (keras.Layer, keras.Model))

    def find(self, layer):
        """The rule for a layer or operation, or None."""
        if id(layer) not in self.found:
            self.found[id(layer)] = layer, self._find(layer)  # the layer is kept, so that its id stays its own
        return self.found[id(layer)][1]

    def _find(self, layer):
        bases, name = type(layer).__mro__, type(layer).__name__
        for base in bases:
            if base in self.closed:
                return self.own[base]
        kind = keras_graph.kind(type(layer))
        if not isinstance(layer, keras.Layer):
            return self.own.get(name) or (operations.RULES.get(name) if kind == "operation" else None)
        if kind in ("custom", "model") or not _as_ruled(layer):
            return None
        return next((self.layers[base] for base in bases if base in self.layers), None)

    def fallback(self, layer):
        """A rule for keras.Layer or keras.Model: for what has none else."""
        return next((self.own[base] for base in type(layer).__mro__ if base in self.own), None)

    def looks_inside(self, layer):
        """Whether a layer or operation of Keras has to be opened, since no rule holds for it as it is."""
        return self.find(layer) is None and self.fallback(layer) is None


def _as_ruled(layer):
    """Whether a layer computes what its rule says: weights, activations, cells, parts are Keras' own, without LoRA."""
    own = vars(layer)
    if (
        keras_graph.builds_otherwise(type(layer))
        or own.get("lora_enabled")
        or {id(own.get("activation")), id(own.get("recurrent_activation"))} - KNOWN_ACTIVATIONS
    ):
        return False
    if isinstance(layer, keras.layers.RNN):
        return _known_cell(layer.cell)
    if isinstance(layer, (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)):
        return all(_plain(part) and _as_ruled(part) for part in keras_graph.parts(layer) if part is not layer)
    return True


def _plain(layer):
    return keras_graph.kind(type(layer)) == "layer" and not keras_graph.replaced_call(layer)


def _known_cell(cell):
    if isinstance(cell, keras.layers.StackedRNNCells):
        return _plain(cell) and all(map(_known_cell, cell.cells))
    if not _plain(cell) or not _as_ruled(cell):
        return False
    return "Conv" in type(cell).__name__ or isinstance(
        cell, (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
    )


def _batch(model, batch_size):
    """What stands in for the batch: the caller's number, else the model's own, else 1."""
    if batch_size is not None:
        return int(batch_size)
    graph = keras_graph.graph_of(model) if isinstance(model, keras.Layer) else None
    if graph and keras_graph.built_by_call(model):
        return 1
    fixed = {tensor.shape[0] for tensor in graph.inputs if tensor.shape} - {None} if graph else set()
    return fixed.pop() if len(fixed) == 1 else 1


def _check_inputs(model, calls, batch_size):
    """The batch of the inputs: a number, or a tuple where they differ."""
    shapes = []
    for call in calls:
        if call.type == "InputLayer" and not call.inputs:
            if any(None in shape for shape in call.output_shapes):
                raise ValueError(
                    f"input {call.path!r} of {model.name!r} has unknown dimensions, {call.output_shapes[0]}; "
                    "pass input_shape, for example (224, 224, 3)"
                )
            shapes += call.output_shapes
    batches = tuple(dict.fromkeys(shape[0] for shape in shapes if shape))
    if batch_size is not None and batches and batches != (batch_size,):
        raise ValueError(
            f"batch_size must be {' or '.join(map(str, batches))}, which input_shape or {model.name!r} fixes, got "
            f"{batch_size}; pass input_shape without the batch"
        )
    return batches[0] if len(batches) == 1 else batches or 1


def _channels_first(calls):
    """Keys of the tensors whose channels are axis 1: from the layers that say so, and along what keeps the axes."""
    formats = {}
    for call in calls:
        said = _attributes(call.layer).get("data_format") if call.type != "Flatten" else None
        if said:
            for key in (*call.inputs, *call.outputs):
                formats.setdefault(key, said)
    if "channels_first" not in formats.values():
        return set()
    keeping = [call for call in calls if call.type not in ("Permute", "Transpose", "Moveaxis", "Swapaxes", "Reshape")]
    forwards = [(call.inputs, call.outputs) for call in keeping]
    for source, target in [*forwards, *((outputs, inputs) for inputs, outputs in reversed(forwards))]:
        known = next((formats[key] for key in source if key in formats), None)
        for key in target if known else ():
            formats.setdefault(key, known)
    return {key for key, said in formats.items() if said == "channels_first"}


def _cost(call, table):
    """(Cost or None, way, what is not known or None) of a call."""
    if call.operations is not None and table.fallback(call.layer) is None:
        cost = operations_cost(call.operations)
        way = "graph" if call.problem or call.operations else "inside"
        if cost.unknown is None:
            return cost, way, None
        if not (cost.macs or cost.elementwise):
            return None, "", cost.unknown
        return cost, way, f"{cost.unknown}; the rest of it is counted"
    rule = table.find(call.layer) or table.fallback(call.layer)
    if rule is None:
        if call.opened:
            return Cost(), "inside", None
        return None, "", call.problem or "there is no rule for it; pass one with rules={type: rule}"
    unknown = [shape for shape in (*call.operand_shapes, *call.output_shapes) if None in shape]
    if unknown:
        return None, "", f"its shape {unknown[0]} depends on the data"
    try:
        cost = rule(call.layer, call.operand_shapes, call.output_shapes)
    except Exception as error:
        raise ValueError(
            f"the rule for layer {call.path!r} ({call.type}) failed on {call.operand_shapes} -> {call.output_shapes}: "
            f"{error}; replace it with rules={{type: rule}}"
        ) from error
    if isinstance(cost, Cost):
        return cost, "rule", cost.unknown and f"{cost.unknown} has no rule; the rest of it is counted"
    if isinstance(cost, bool) or not hasattr(cost, "__index__") or cost < 0:
        raise TypeError(
            f"the rule for layer {call.path!r} ({call.type}) must return a Cost or an int of MACs, got {cost!r}"
        )
    return Cost(int(cost)), "rule", None


def _row(call, cost, way, seen, channels_first):
    """The report's row of a call; `seen` are the ids of the weights that earlier rows have counted."""
    own = _attributes(call.layer)
    params = weight_bytes = 0
    for weight in call.layer.weights if isinstance(call.layer, keras.Layer) else ():
        if id(weight) not in seen:
            seen.add(id(weight))
            size, dtype = keras_graph.stored(weight)
            params += size
            weight_bytes += size * itemsize(dtype)
    kernel, strides = own.get("kernel_size") or own.get("pool_size"), own.get("strides")
    filters = own.get("filters") or own.get("units") or own.get("output_dim")
    return CostRow(
        index=call.index,
        path=call.path,
        type=call.type,
        input_shapes=call.input_shapes,
        output_shapes=call.output_shapes,
        kernel=tuple(kernel) if isinstance(kernel, (tuple, list)) else None,
        strides=tuple(strides) if isinstance(strides, (tuple, list)) else None,
        filters=int(filters) if hasattr(filters, "__index__") else None,
        params=params,
        macs=cost.macs if cost else None,
        elementwise_ops=cost.elementwise if cost else None,
        activation_bytes=_activation_bytes(call),
        weight_bytes=weight_bytes,
        way=way,
        channels_first=channels_first,
    )


def _attributes(layer):
    """What a layer was made with; LSTM and the like keep it in their cell. (A getattr that fails is slow.)"""
    kept_in_cell = isinstance(layer, keras.layers.RNN) and type(layer) is not keras.layers.RNN
    return vars(layer.cell if kept_in_cell else layer)


def _activation_bytes(call):
    outputs, total = list(zip(call.output_shapes, call.output_dtypes, strict=True)), 0
    if call.opened:  # what it hands on is there already, but for what both directions are merged into
        outputs = outputs[:1] if isinstance(call.layer, keras.layers.Bidirectional) and call.layer.merge_mode else []
    for shape, dtype in outputs:
        if None in shape or dtype == "string":
            return None
        total += math.prod(shape) * itemsize(dtype)
    return total


@functools.cache
def itemsize(dtype):
    """Bytes of one element of a Keras dtype ("float32" -> 4; the 4-bit types are stored in whole bytes)."""
    if dtype == "bool":
        return 1
    digits = "".join(letter for letter in str(dtype).split("_")[0] if letter.isdigit())
    return max(1, int(digits[:2] if not digits.startswith("8") else 8) // 8)
