"""What the instruments (layer_calls, flops, receptive_field) read of Keras 3 that Keras does not publish, in one place.

Keras publishes a model's layers, not the graph of its calls. The graph is read here from these names; a test checks
each of them, so that a Keras release that changes one fails with a message that says which:

`Function._nodes_by_depth`; `Node.operation`, `.arguments.args`, `.arguments.kwargs`, `.input_tensors`, `.outputs`,
`.is_input`; `KerasTensor._keras_history`; `Operation._inbound_nodes`, `._outbound_nodes`, `._auto_config`;
`Sequential._functional`, `._layers`;
`Layer._flatten_layers`, `._assert_input_compatibility`, `._build_shapes_dict`; `Variable._shape`, `._dtype`; the
modules `keras.src.layers.layer` (`Node`) and `keras.src.ops.core` (`Cond`), and `keras.src.*` as the home of Keras'
own classes.
"""

import contextlib
import functools
import math
import sys

import keras
from keras import tree


def _words(text):
    return frozenset(text.split())


# Methods that a subclass may write anew without changing what its inherited `call` computes.
HARMLESS = _words("""
    __init__ __new__ __repr__ __str__ __hash__ __eq__ __init_subclass__ __reduce__ __del__ build get_config from_config
    compute_output_shape compute_output_spec compute_mask build_from_config get_build_config count_params summary
    save_own_variables load_own_variables save_assets load_assets compile fit evaluate predict train_step test_step
    predict_step compute_loss compute_metrics get_compile_config compile_from_config from_preset save_to_preset
    get_weights set_weights get_quantization_layer_structure
""")


def kind(layer_type):
    """How a class is walked: "model", "wrapper", "custom", "layer" or "operation".

    "custom" is what only its own code can tell about: a layer or operation that is not Keras' own, unless it inherits
    everything that computes something from a layer of Keras.
    """
    return _kind(layer_type, layer_type.call)  # `call` may be replaced on the class later


@functools.cache
def _kind(layer_type, call):
    if not issubclass(layer_type, keras.Layer):
        return "operation" if keras_own(layer_type) else "custom"
    if issubclass(layer_type, keras.Model) and keras_own(call) and keras_own(layer_type.__call__):
        return "model"
    if (
        not keras_own(call)
        or _computes_otherwise(layer_type)
        or issubclass(layer_type, (keras.layers.Lambda, keras.layers.Pipeline))
    ):
        return "custom"
    wrappers = keras.layers.TimeDistributed, keras.layers.SpectralNormalization, keras.layers.Bidirectional
    return "wrapper" if issubclass(layer_type, wrappers) else "layer"


def keras_own(thing):
    return getattr(thing, "__module__", "").startswith(("keras.src.", "keras.layers.", "keras.ops."))


def _computes_otherwise(layer_type):
    """Whether a class replaces something of the layer of Keras that it inherits from, or has none to inherit from."""
    theirs = [base for base in layer_type.__mro__ if keras_own(base) or base is keras.Layer]
    if theirs[0] in (keras.Layer, keras.layers.Wrapper, keras.Model):
        return True
    return any(
        name not in HARMLESS
        and (callable(value) or isinstance(value, (property, classmethod, staticmethod)))
        and any(name in vars(base) for base in theirs)
        for base in layer_type.__mro__
        if base not in theirs[0].__mro__
        for name, value in vars(base).items()
    )


@functools.cache
def builds_otherwise(layer_type):
    """Whether a class makes its weights by code of its own, which may be of other shapes than Keras' layer says."""
    return not keras_own(layer_type.build)


@functools.cache
def keeps_batch(layer_type):
    """Whether a class is one of Keras' own layers, all of which map (None, ...) to (None, ...) whatever the batch."""
    return layer_type.__module__.startswith("keras.src.layers.") and not issubclass(layer_type, keras.layers.Lambda)


def replaced_call(layer):
    """Whether this one object has a method of its own, put in place of one of its class's that computes something."""
    return not vars(layer).keys().isdisjoint(_computing(type(layer)))


@functools.cache
def _computing(layer_type):
    if not issubclass(layer_type, keras.Layer) or issubclass(layer_type, keras.Model):
        return frozenset(["call"])
    bases = [base for base in layer_type.__mro__ if issubclass(base, keras.Layer) and base is not keras.Layer]
    methods = {name for base in bases if keras_own(base) for name, value in vars(base).items() if callable(value)}
    return frozenset(methods - HARMLESS - {"quantize"} | {"call"})  # Keras itself wraps `quantize` on each object


def runs_call(layer):
    """Whether calling a layer is Keras' own way to its `call`, and not some other code."""
    return keras_own(type(layer).__call__)


def check_model(model):
    """Raise TypeError where it is no model or layer of Keras 3."""
    if not isinstance(model, keras.Layer):
        raise TypeError(
            f"expected a Keras 3 model or layer, got {type(model).__module__}.{type(model).__qualname__}; "
            "load the model first, and rebuild a tf_keras (Keras 2) model in Keras 3"
        )


def parts(layer):
    """A layer and every layer inside it."""
    return list(layer._flatten_layers()) if isinstance(layer, keras.Layer) else []


def graph_of(model):
    """The Functional graph behind a Keras model, or None where its own `call` decides what happens."""
    if kind(type(model)) != "model":
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Function) else None


def built_by_call(model):
    """Whether a Sequential model has its batch from the call that built it, and from no Input or file."""
    if not isinstance(model, keras.Sequential):
        return False
    made = getattr(model._layers[0]._auto_config, "config", {})
    return None not in (made.get("batch_shape"), made.get("dtype")) and made.get("sparse") is None


def nodes(graph):
    """Nodes (calls) of a graph in the order in which Keras runs them, inputs left out."""
    by_depth = graph._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def nodes_behind(results, sources):
    """Nodes that lead from `sources` to `results` (symbolic tensors), each after what it reads."""
    known = {id(source) for source in sources}
    done, order = set(), []
    stack = [(result, False) for result in reversed(results) if isinstance(result, keras.KerasTensor)]
    while stack:
        tensor, ready = stack.pop()
        history = getattr(tensor, "_keras_history", None)
        if id(tensor) in known or history is None or history.operation is None:
            continue
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            order.append(node)
        else:
            stack.append((tensor, True))
            stack.extend((parent, False) for parent in reversed(node.input_tensors))
    return order


def stored(weight):
    """(number of elements, dtype) of a variable; its public properties take ten times as long."""
    return math.prod(weight._shape), weight._dtype


def maker(tensor):
    """The layer whose call gave a symbolic tensor, or None."""
    history = getattr(tensor, "_keras_history", None)
    return history.operation if history is not None else None


@contextlib.contextmanager
def no_mark_on(layer):
    """Undo what a trace leaves on the layers inside `layer`: connections, and what its code set, counted or collected.

    What a layer that was built by the trace has got is kept, unless traced tensors are in it.
    """
    layers = parts(layer)
    marks = [
        (part.built, len(part._inbound_nodes), len(part._outbound_nodes), {k: _kept(v) for k, v in vars(part).items()})
        for part in layers
    ]
    try:
        yield
    finally:
        for part, (built, inbound, outbound, attributes) in zip(layers, marks, strict=True):
            del part._inbound_nodes[inbound:]
            del part._outbound_nodes[outbound:]
            for name, value in list(vars(part).items()):
                old, held = attributes.get(name, (..., None))
                if value is old and held is None:
                    continue
                leaves = _leaves(value)
                made = any(isinstance(leaf, (keras.Layer, keras.Variable)) for leaf in leaves)
                if any(map(_is_traced, leaves)) or (built and not made):
                    if name in attributes:
                        vars(part)[name] = _put_back(old, held)
                    else:
                        del vars(part)[name]


def _kept(value):
    """A value and, of a list or dict, what it holds."""
    if isinstance(value, dict):
        return value, {key: _kept(part) for key, part in value.items()}
    return value, [_kept(part) for part in value] if isinstance(value, list) else None


def _put_back(value, held):
    """The same list or dict, and in it what it held."""
    if isinstance(value, dict):
        for key in value.keys() - held.keys():
            del value[key]
        value.update({key: _put_back(*part) for key, part in held.items()})
    elif isinstance(value, list):
        value[:] = [_put_back(*part) for part in held]
    return value


def _is_traced(value):
    if isinstance(value, keras.Variable):
        return False
    return isinstance(value, keras.KerasTensor) or keras.ops.is_tensor(value)


def _leaves(value):
    if not isinstance(value, (list, tuple, dict)):
        return [value]
    return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in _leaves(part)]


@contextlib.contextmanager
def raw_errors():
    """Errors inside a call as they were raised, without the line "Exception encountered when ..." before them."""
    filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtered:
            keras.config.enable_traceback_filtering()


@contextlib.contextmanager
def symbolic_scope():
    """Where a call may run without computing or changing anything, as Keras runs one to infer shapes."""
    with keras.StatelessScope(), keras.SymbolicScope():
        yield


ARITHMETIC = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide", "floordiv": "floor_divide",
    "mod": "mod", "pow": "power", "matmul": "matmul",
}  # fmt: skip


@contextlib.contextmanager
def symbolic_calls(layer):
    """Let symbolic tensors through where tensors of the backend pass: three places where Keras alone would stop.

    A variable on the left of an operator; a layer that returns something beside its tensors; an EinsumDense that says
    less of its output's shape than follows from its input's. And `ops.cond` gives a tensor of its own: Keras hands on
    what its first branch returned, which may be the input itself, so that the call would not be seen.
    """
    variable, module = keras.Variable, sys.modules[keras.Layer.__module__]
    base = next(one for one in variable.__mro__ if "__matmul__" in vars(one))
    methods = {name: vars(base)[name] for name in (f"__{word}__" for word in ARITHMETIC)}
    node, cond = module.Node, sys.modules["keras.src.ops.core"].Cond
    described = cond.compute_output_spec

    def through_operation(name, original):
        function = getattr(keras.ops, ARITHMETIC[name.strip("_")])

        def method(self, other):
            return function(self, other) if isinstance(other, keras.KerasTensor) else original(self, other)

        return method

    def own_outputs(self, *branches):
        outputs = described(self, *branches)
        return tree.map_structure(lambda one: keras.KerasTensor(one.shape, one.dtype), outputs)

    class TensorsOnly(node):
        def __init__(self, operation, call_args=None, call_kwargs=None, outputs=None):
            tensors = [leaf for leaf in tree.flatten(outputs) if isinstance(leaf, keras.KerasTensor)]
            super().__init__(operation, call_args, call_kwargs, tensors)

    einsums = [part for part in parts(layer) if isinstance(part, keras.layers.EinsumDense)]
    einsums = [part for part in einsums if "compute_output_spec" not in vars(part)]
    for part in einsums:
        vars(part)["compute_output_spec"] = functools.partial(keras.Operation.compute_output_spec, part)
    for name, original in methods.items():
        setattr(base, name, through_operation(name, original))
    module.Node, cond.compute_output_spec = TensorsOnly, own_outputs
    try:
        yield
    finally:
        module.Node, cond.compute_output_spec = node, described
        for name, original in methods.items():
            setattr(base, name, original)
        for part in einsums:
            del vars(part)["compute_output_spec"]


def check_input(layer, args):
    """Raise ValueError where a layer's input specification refuses the shapes of `args`."""
    if isinstance(layer, keras.Layer) and args:
        layer._assert_input_compatibility(args[0])


def all_built(model):
    """Whether every layer inside a model has its weights."""
    return all(part.built for part in model._flatten_layers())


def built_shapes(model):
    """The input shape (or structure of shapes) that a model whose own `call` decides was built with, or None."""
    if isinstance(model, keras.Function):
        return tree.map_structure(lambda tensor: tensor.shape, model.input)
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
        return None
    return next(iter(shapes.values())) if len(shapes) == 1 else dict(shapes)
