"""The arguments of one call: `references` are the symbolic tensors in them, `given` the tensors they stand for."""

import functools
import inspect

import keras
from keras import tree

from . import keras_graph as internals


def known_outputs(layer, references, given, known):
    """[(shape, dtype)] where a call's outputs follow from those that Keras has recorded, else None."""
    if known is None:
        return None
    recorded, shapes = [reference.shape for reference in references], [tensor.shape for tensor in given]
    gives = [(reference.shape, reference.dtype) for reference in known]
    if recorded == shapes:
        return gives
    batches = {shape[:1] for shape in shapes}
    if len(batches) > 1 or recorded != [(None, *shape[1:]) for shape in shapes]:
        return None
    if not internals.keeps_batch(type(layer)) or {shape[:1] for shape, _ in gives} != {(None,)}:
        return None
    (batch,) = batches  # it alone is another one
    return [(batch + shape[1:], dtype) for shape, dtype in gives]


def described(outputs):
    """[(shape, dtype)] of a structure of symbolic tensors."""
    return [(tuple(output.shape), output.dtype) for output in tree.flatten(outputs)]


def fresh(tensors):
    """Symbolic tensors of the same shapes."""
    return [keras.KerasTensor(tensor.shape, tensor.dtype) for tensor in tensors]


def replaced(args, kwargs, references, values):
    """The arguments with these values in place of the references."""
    stand_in = dict(zip(map(id, references), values, strict=True))
    return tree.map_structure(lambda leaf: stand_in.get(id(leaf), leaf), (args, kwargs))


def holds_tensor(value):
    """Whether a structure has a tensor or an array in it."""
    return any(hasattr(leaf, "shape") for leaf in tree.flatten(value))


@functools.cache
def signature(layer_type):
    return inspect.signature(layer_type.call)


def operands(layer, args, kwargs, references, given):
    """Shapes of the tensors that the arithmetic reads, in signature order; masks are none of them."""
    shapes = {id(reference): tensor.shape for reference, tensor in zip(references, given, strict=True)}
    try:
        bound = signature(type(layer)).bind(None, *args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = {"args": args, **kwargs}
    leaves = [leaf for name, value in bound.items() if "mask" not in name for leaf in tree.flatten(value)]
    return tuple(
        shapes[id(leaf)] if id(leaf) in shapes else tuple(leaf.shape) for leaf in leaves if hasattr(leaf, "shape")
    )


def in_graph_order(graph, args, kwargs, references, given):
    """The tensors of a nested model's call in the order of that model's inputs."""
    tensors = dict(zip(map(id, references), given, strict=True))
    value = args[0] if args else kwargs.get("inputs")
    if isinstance(value, dict) and not isinstance(graph.input, dict):
        value = [value[reference.name] for reference in graph.inputs]
    ordered = [tensors[id(leaf)] for leaf in tree.flatten(value) if id(leaf) in tensors]
    return ordered[: len(graph.inputs)]
