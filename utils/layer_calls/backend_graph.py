"""What the backend is about to compute for one call, traced on placeholders: TensorFlow's graph, or JAX's jaxpr.

Two questions are put to it. What does a call that is traced with symbolic tensors compute *beside* them, on weights and
constants alone? And what does a call compute that symbolic tensors cannot be sent through? Nothing is executed.
"""

import contextlib
import dataclasses

import keras
from keras import tree

from . import keras_graph as internals

SHAPES_ONLY = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a traced function returned, and what of the backend's own operations that needs."""

    results: object
    operations: tuple  # `tf.Operation`, or equations of a jaxpr, without those of the calls
    calls: tuple = ()  # of inner layers, none of them in a loop: (layer, args, kwargs, outputs), with symbolic tensors


def trace(function, specs, targets, layers=()):
    """Trace a call on placeholders like `specs`; `targets(results)` are the tensors that are really needed of it.

    The calls of `layers` are listed instead of what they compute. NotImplementedError: this backend has no graph.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        with contextlib.suppress(Exception), _functions_in_line():  # a graph of its own may know fewer shapes
            return _tensorflow(function, specs, targets, layers)
        return _tensorflow(function, specs, targets, layers)
    if backend == "jax":
        return _jax(function, specs, targets, layers)
    if backend == "torch" and not specs:
        return _torch(function)
    raise NotImplementedError(f"the graph of the {backend} backend is not read; count it on TensorFlow or JAX")


@contextlib.contextmanager
def _functions_in_line():
    """Run what `tf.function` wraps as the Python function that it is, so that its layers and shapes are seen."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _tensorflow(function, specs, targets, layers):
    import tensorflow as tf

    graph = tf.__internal__.FuncGraph("traced_call")
    calls, ranges = [], []

    @contextlib.contextmanager
    def listed():
        start = len(graph.get_operations())
        yield
        ranges.append((start, len(graph.get_operations())))

    with graph.as_default(), internals.symbolic_scope():
        given = [tf.compat.v1.placeholder(spec.dtype, spec.shape) for spec in specs]
        with _watched(layers, calls, listed, lambda: tf.compat.v1.get_default_graph() is graph):
            results = function(*given)
    operations = graph.get_operations()
    needed, stack = set(), [tensor.op for tensor in targets(results) if getattr(tensor, "graph", None) is graph]
    while stack:
        operation = stack.pop()
        if operation not in needed:
            needed.add(operation)
            if operation.type in SHAPES_ONLY:  # TensorFlow takes a known shape without computing the tensor
                continue
            stack += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    kept, inside = [], set()
    for call, span in zip(calls, ranges, strict=True):
        if any(getattr(tensor, "op", None) in needed for tensor in tree.flatten(call[-1])):
            kept.append(tree.map_structure(symbolic, call))
            inside.update(range(*span))
    own = [operation for at, operation in enumerate(operations) if at not in inside and operation in needed]
    return Trace(results, tuple(own), tuple(kept))


def _jax(function, specs, targets, layers):
    import jax

    calls, results = [], []

    def run(*given):
        with _watched(layers, calls, lambda: jax.named_scope(f"call_{len(calls)}_of_layer")):
            results.append(function(*given))
        return [tensor for tensor in targets(results[0]) if isinstance(tensor, jax.Array)]

    with internals.symbolic_scope():  # around the trace: weights that it makes get their values when the scope ends
        jaxpr = jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(spec.shape, spec.dtype) for spec in specs)).jaxpr
    live, needed = set(map(id, jaxpr.outvars)), []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or live.intersection(map(id, equation.outvars)):
            needed.append(equation)
            live.update(map(id, equation.invars))
    marks = [f"call_{number}_of_layer" for number in range(len(calls))]
    scopes = {id(equation): str(equation.source_info.name_stack) for equation in jaxpr.eqns}
    inner = " ".join(_scopes_inside(jaxpr.eqns))
    listed = [at for at, mark in enumerate(marks) if any(mark in scopes[id(equation)] for equation in needed)]
    empty = [at for at, mark in enumerate(marks) if mark not in inner and mark not in " ".join(scopes.values())]
    own = [one for one in reversed(needed) if not any(marks[at] in scopes[id(one)] for at in listed)]
    return Trace(
        results[0], tuple(own), tuple(tree.map_structure(symbolic, calls[at]) for at in sorted({*listed, *empty}))
    )


def inner_jaxprs(equation):
    """The jaxprs that stand in the parameters of an equation."""
    found = []
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                found.append(part)
    return found


def _scopes_inside(equations):
    for equation in equations:
        for jaxpr in inner_jaxprs(equation):
            yield from (str(one.source_info.name_stack) for one in jaxpr.eqns)
            yield from _scopes_inside(jaxpr.eqns)


def _torch(function):
    """PyTorch has no graph, but counts what it executes: enough to say that there is something beside the calls."""
    from torch.utils.flop_counter import FlopCounterMode

    with internals.symbolic_scope(), FlopCounterMode(display=False) as counter:
        results = function()
    macs = counter.get_total_flops() // 2
    return Trace(results, (macs,) if macs else ())


@contextlib.contextmanager
def _watched(layers, calls, scope, at_top=lambda: True):
    """Append the outermost calls of `layers` to `calls` while the block runs, each in a `scope()` of its own."""
    depth = 0

    def watching(layer, original):
        def call(*args, **kwargs):
            nonlocal depth
            if depth or not at_top():
                return original(*args, **kwargs)
            depth += 1
            try:
                with scope():
                    outputs = original(*args, **kwargs)
            finally:
                depth -= 1
            calls.append((layer, args, kwargs, outputs))
            return outputs

        return call

    patched = [(layer, name) for layer in layers for name in ("call", "quantized_call") if hasattr(layer, name)]
    patched = [(layer, name) for layer, name in patched if name not in vars(layer)]
    for layer, name in patched:
        vars(layer)[name] = watching(layer, getattr(layer, name))
    try:
        yield
    finally:
        for layer, name in patched:
            del vars(layer)[name]


def symbolic(value):
    """A symbolic tensor like a tensor of the backend; anything else as it is."""
    if keras.ops.is_tensor(value) and not isinstance(value, keras.KerasTensor):
        return keras.KerasTensor(tuple(value.shape), keras.backend.standardize_dtype(value.dtype))
    return value
