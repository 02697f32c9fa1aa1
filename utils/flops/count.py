"""FLOPs and MACs of any Keras 3 model, call by call, from its layers and their shapes.

    >>> import keras
    >>> from utils import flops
    >>> report = flops.count(keras.applications.MobileNetV2(weights=None))
    >>> report.total_macs
    300774272

Nothing is run and nothing is traced but layers of your own, so that a count takes milliseconds. A layer without a rule
is never counted as zero: it is named in `report.unsupported`, and the totals are then lower bounds.

Also reachable from here, in modules of their own: :func:`count_tflite` reads the same report from a `.tflite` file,
:func:`keras_flops_total` is the keras-flops package made to run on today's TensorFlow.

Importing this module needs Keras, NumPy and pandas only.
"""

import functools
import warnings

import keras

from ..layer_calls import layer_calls
from . import layers, operations
from .formulas import CONVENTIONS, Cost, elements, product
from .report import CostReport, CostRow, Unsupported


def count(model, input_shape=None, batch_size=1, rules=None, unsupported="warn", convention="exact"):
    """Count MACs, FLOPs, element-wise operations, parameters and bytes of every call of a model.

    Args:
        model: any Keras 3 model.
        input_shape: shape or shapes without the batch, as in :func:`utils.layer_calls.layer_calls`; None for the
            shapes that the model was built with.
        batch_size: number of inputs to count for.
        rules: {layer type, or class name of a `keras.ops` operation: rule} for this call only; goes before the rules
            that there are, and is looked up through the class hierarchy as they are. A rule is
            `rule(layer, input_shapes, output_shapes)` and returns a :class:`Cost`, or an int: MACs.
        unsupported: what to do about calls without a rule: "warn", "raise" or "ignore". They are in
            `report.unsupported` in any case.
        convention: "exact", or "input_over_stride" for the published studies' way (see `CONVENTIONS`).

    Returns:
        :class:`CostReport`.

    Raises:
        ValueError: an input dimension is unknown, a shape does not fit, an argument is none of those that there are,
            or (with unsupported="raise") a call has no rule.
        TypeError: not a Keras 3 model, or a rule that is no rule.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 8)), keras.layers.Conv2D(16, 3, padding="same")])
        >>> report = count(model)
        >>> report.total_macs, report.total_flops, report.total_params
        (1179648, 2359296, 1168)
        >>> count(model, rules={keras.layers.Conv2D: lambda layer, given, gives: 7}).total_macs
        7
    """
    if unsupported not in ("warn", "raise", "ignore"):
        raise ValueError(f'unsupported={unsupported!r} is unknown; choose "warn", "raise" or "ignore"')
    if isinstance(batch_size, bool) or not hasattr(batch_size, "__index__") or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is no number of inputs; give a whole number from 1")
    own = _checked_rules(rules)
    closed = tuple(key for key in own if isinstance(key, type) and key not in (keras.Layer, keras.Model))
    table = {**layers.rules_for(convention), **operations.RULES, **own}
    calls = layer_calls(model, input_shape, batch_size=int(batch_size), closed=closed)
    _check_inputs(model, calls)

    rows, problems, seen = [], [], set()
    for call in calls:
        cost, problem = _cost(call, table)
        if problem:
            problems.append(Unsupported(call.path, call.type, problem))
        rows.append(_row(call, cost, seen))
    if problems and unsupported != "ignore":
        sentence = _sentence(model, problems)
        if unsupported == "raise":
            raise ValueError(sentence)
        warnings.warn(sentence, stacklevel=2)
    return CostReport(model.name, tuple(rows), int(batch_size), convention, CONVENTIONS[convention], tuple(problems))


def count_tflite(path_or_bytes, unsupported="warn"):
    """The same report from a `.tflite` file; see :func:`utils.flops.tflite.count_tflite`."""
    from .tflite import count_tflite

    return count_tflite(path_or_bytes, unsupported=unsupported)


def keras_flops_total(model, batch_size=1):
    """What the keras-flops package says; see :func:`utils.flops.keras_flops.keras_flops_total`."""
    from .keras_flops import keras_flops_total

    return keras_flops_total(model, batch_size=batch_size)


def _checked_rules(rules):
    for key, rule in (rules or {}).items():
        if not (isinstance(key, (type, str)) and callable(rule)):
            raise TypeError(
                f"rules[{key!r}] is no rule; give {{layer type or operation name: function of (layer, input_shapes, "
                "output_shapes)}"
            )
    return dict(rules or {})


def _check_inputs(model, calls):
    for call in calls:
        if call.type == "InputLayer" and any(None in shape for shape in call.output_shapes):
            raise ValueError(
                f"input {call.path!r} of {model.name!r} has unknown dimensions, {call.output_shapes[0]}; "
                "give input_shape, for example (224, 224, 3)"
            )


def _rule(call, table):
    for layer_type in type(call.layer).__mro__:
        if layer_type in table:
            return table[layer_type]
    return table.get(call.type) if not isinstance(call.layer, keras.Layer) or call.type in table else None


def _cost(call, table):
    """(Cost or None, what is not known or None) of a call."""
    rule = _rule(call, table)
    if rule is None:
        if call.opened:
            return Cost(), None
        return None, call.problem or "there is no rule for it; give one with rules={type: rule}"
    unknown = [shape for shape in (*call.operand_shapes, *call.output_shapes) if None in shape]
    if unknown:
        return None, f"its shape {unknown[0]} depends on the data"
    try:
        cost = rule(call.layer, call.operand_shapes, call.output_shapes)
    except Exception as error:
        raise ValueError(
            f"the rule for layer {call.path!r} ({call.type}) failed on {call.operand_shapes} -> {call.output_shapes}: "
            f"{error}; replace it with rules={{type: rule}}"
        ) from error
    if isinstance(cost, Cost):
        return cost, cost.unknown and f"{cost.unknown} has no rule; the rest of it is counted"
    if isinstance(cost, bool) or not hasattr(cost, "__index__") or cost < 0:
        raise TypeError(f"the rule for layer {call.path!r} ({call.type}) gave {cost!r}; return a Cost or an int, MACs")
    return Cost(int(cost)), None


def _row(call, cost, seen):
    """The report's row of a call; `seen` are the ids of the weights that earlier rows have counted."""
    layer = call.layer
    fresh = [weight for weight in getattr(layer, "weights", ()) if id(weight) not in seen]
    seen.update(id(weight) for weight in fresh)
    sizes = [product(weight.shape) for weight in fresh]
    return CostRow(
        index=call.index,
        path=call.path,
        type=call.type,
        input_shapes=call.input_shapes,
        output_shapes=call.output_shapes,
        kernel=_pair(layer, "kernel_size", "pool_size"),
        strides=_pair(layer, "strides"),
        filters=_first(layer, "filters", "units", "output_dim"),
        params=sum(sizes),
        macs=cost.macs if cost else None,
        elementwise_ops=cost.elementwise if cost else None,
        activation_bytes=_activation_bytes(call),
        weight_bytes=sum(size * itemsize(weight.dtype) for size, weight in zip(sizes, fresh, strict=True)),
    )


def _first(layer, *names):
    for name in names:
        value = getattr(layer, name, None)
        if hasattr(value, "__index__"):
            return int(value)
    return None


def _pair(layer, *names):
    for name in names:
        value = getattr(layer, name, None)
        if isinstance(value, (tuple, list)):
            return tuple(value)
    return None


def _activation_bytes(call):
    sizes = []
    for shape, dtype in zip(call.output_shapes, call.output_dtypes, strict=True):
        if None in shape or dtype == "string":
            return None
        sizes.append(elements(shape) * itemsize(dtype))
    return sum(sizes)


@functools.cache
def itemsize(dtype):
    """Bytes of one element of a Keras dtype ("float32" -> 4; the 4-bit types are stored in whole bytes)."""
    if dtype == "bool":
        return 1
    digits = "".join(letter for letter in str(dtype).split("_")[0] if letter.isdigit())
    return max(1, int(digits[:2] if not digits.startswith("8") else 8) // 8)


def _sentence(model, problems):
    shown = "; ".join(map(str, problems[:5])) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
    return f"{model.name!r}: not counted, so that the totals are lower bounds: {shown}"
