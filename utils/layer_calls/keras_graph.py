"""What this project reads of Keras 3 that Keras does not publish, in one place.

Keras publishes a model's layers, not the graph of its calls. The graph is read here, and nowhere else, from these
attributes; `tests/test_layer_calls.py` checks each of them by name, so that a Keras release that changes one fails
with a message that says which:

`Function._nodes_by_depth`; `Node.operation`, `.arguments.args`, `.arguments.kwargs`, `.input_tensors`, `.outputs`,
`.is_input`; `KerasTensor._keras_history`; `Operation._inbound_nodes`, `._outbound_nodes`; `Sequential._functional`;
`Layer._flatten_layers`, `._assert_input_compatibility`, `._build_shapes_dict`.
"""

import functools

import keras


@functools.cache
def kind(layer_type):
    """How a class is walked: "model", "wrapper", "bidirectional", "custom", "layer" or "operation"."""
    if not issubclass(layer_type, keras.Layer):
        return "operation"
    if issubclass(layer_type, keras.Model) and _from_keras(layer_type.call):
        return "model"
    if issubclass(layer_type, (keras.layers.TimeDistributed, keras.layers.SpectralNormalization)):
        return "wrapper"
    if issubclass(layer_type, keras.layers.Bidirectional):
        return "bidirectional"
    return "custom" if _is_custom(layer_type) else "layer"


@functools.cache
def keeps_batch(layer_type):
    """Whether a class is one of Keras' own layers, all of which map (None, ...) to (None, ...) whatever the batch."""
    return layer_type.__module__.startswith("keras.src.layers.") and not issubclass(layer_type, keras.layers.Lambda)


def graph_of(model):
    """The Functional graph behind a Keras model, or None where its own `call` decides what happens."""
    if kind(type(model)) != "model":
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Function) else None


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


def maker(tensor):
    """The layer whose call gave a symbolic tensor, or None."""
    history = getattr(tensor, "_keras_history", None)
    return history.operation if history is not None else None


class UndoConnections:
    """A context that forgets the calls which a trace adds to the layers inside `layer`: it leaves no mark on them."""

    def __init__(self, layer):
        self.layers = layer._flatten_layers()

    def __enter__(self):
        self.marks = [(part, len(part._inbound_nodes), len(part._outbound_nodes)) for part in self.layers]

    def __exit__(self, *_):
        for part, inbound, outbound in self.marks:
            del part._inbound_nodes[inbound:]
            del part._outbound_nodes[outbound:]


def check_input(layer, args):
    """Raise ValueError where a layer's input specification refuses the shapes of `args`."""
    if isinstance(layer, keras.Layer) and args:
        layer._assert_input_compatibility(args[0])


def all_built(model):
    """Whether every layer inside a model has its weights."""
    return all(part.built for part in model._flatten_layers())


def built_shapes(model):
    """The input shape (or structure of shapes) that a model without a graph was built with, or None."""
    shapes = getattr(model, "_build_shapes_dict", None)
    if not shapes:
        return None
    return next(iter(shapes.values())) if len(shapes) == 1 else dict(shapes)


def _is_custom(layer_type):
    """A class directly below keras.Layer, keras.Model or keras.layers.Wrapper: only its `call` says what it does."""
    if issubclass(layer_type, (keras.layers.Lambda, keras.layers.Pipeline)):
        return True
    plain = (keras.Layer, keras.layers.Wrapper)
    return all(
        base in plain
        for base in layer_type.__mro__
        if base.__module__.startswith(("keras.src.layers.", "keras.layers."))
    )


def _from_keras(function):
    return getattr(function, "__module__", "").startswith("keras.")
