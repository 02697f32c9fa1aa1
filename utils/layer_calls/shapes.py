"""Input shapes as callers give them, checked against a model and completed with the batch."""

import inspect

import keras

from . import keras_graph as internals


def first_line(error):
    """The first line of an error's message, for a sentence of our own; of one that Keras quotes, the quoted one's."""
    lines = [line.strip() for line in str(error).split("Error encountered:\n")[-1].splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def input_shapes(model, inputs, given, batch_size):
    """One full shape for each symbolic input, as the caller gave them: None, a shape, a list, or a dict by name."""
    if given is None:
        shapes = [tuple(reference.shape) for reference in inputs]
        if batch_size and len({shape[0] for shape in shapes if shape}) == 1:
            shapes = [(None, *shape[1:]) for shape in shapes]
    else:
        if isinstance(given, dict):
            names = [reference.name for reference in inputs]
            if sorted(given) != sorted(names):
                raise ValueError(
                    f"input_shape names {sorted(given)}, but the inputs of {model.name!r} are {sorted(names)}"
                )
            given = [given[name] for name in names]
        elif not isinstance(given, (list, tuple)) or not any(isinstance(part, (list, tuple)) for part in given):
            given = [given]
        if len(given) != len(inputs):
            raise ValueError(
                f"{model.name!r} has {len(inputs)} inputs and input_shape has {len(given)} shapes; pass a list with "
                "one shape for each input"
            )
        shapes = [
            _full_shape(model, shape, len(reference.shape), reference.name)
            for shape, reference in zip(given, inputs, strict=True)
        ]
    return [_with_batch(shape, batch_size) for shape in shapes]


def _full_shape(model, shape, rank, name):
    shape = _checked_shape(model, shape)
    if len(shape) == rank - 1:
        return (None, *shape)
    if len(shape) == rank:
        return shape
    raise ValueError(
        f"input {name!r} of {model.name!r} has {rank} dimensions with the batch, and {shape} has {len(shape)}; "
        f"pass {rank - 1} (without the batch) or {rank}"
    )


def _checked_shape(model, shape):
    if not _is_shape(shape) or any(dim is not None and (isinstance(dim, bool) or int(dim) < 1) for dim in shape):
        raise ValueError(
            f"input_shape for {model.name!r} must be a tuple of positive integers (None where unknown), got {shape!r}"
        )
    return tuple(None if dim is None else int(dim) for dim in shape)


def _is_shape(value):
    return isinstance(value, (tuple, list)) and all(dim is None or hasattr(dim, "__index__") for dim in value)


def _with_batch(shape, batch_size):
    return (batch_size, *shape[1:]) if shape and shape[0] is None else tuple(shape)


def call_shapes(model, given, batch_size):
    """The (args, kwargs) of a call of a layer or subclassed model, with symbolic tensors of the shapes in them."""
    known = internals.built_shapes(model)
    if isinstance(known, dict) and all(name.endswith("_shape") for name in known):  # one entry for each argument
        known = {name.removesuffix("_shape"): shape for name, shape in known.items()}
    if given is None:
        if known is None:
            raise ValueError(
                f"{model.name!r} ({type(model).__name__}) has no graph to read its input shape from; "
                "pass input_shape, for example (224, 224, 3)"
            )
        given = _without_batch(known) if batch_size else known
    parameters = [
        one for name, one in inspect.signature(model.call).parameters.items()
        if name != "training" and "mask" not in name and one.kind is one.POSITIONAL_OR_KEYWORD
    ]  # fmt: skip
    required = [one.name for one in parameters if one.default is one.empty]
    names = [one.name for one in parameters]
    if isinstance(given, dict) and set(given) <= set(names):
        filled = {name: _structure(model, shape, _part(known, name), batch_size) for name, shape in given.items()}
        return (), filled
    if len(required) > 1:
        if not isinstance(given, (list, tuple)) or _is_shape(given) or len(given) > len(names):
            raise ValueError(
                f"{type(model).__name__}.call takes {', '.join(required)}; pass a list with one input_shape for each"
            )
        known = [_part(known, name) for name in names[: len(given)]]
        return tuple(_structure(model, *pair, batch_size) for pair in zip(given, known, strict=True)), {}
    return (_structure(model, given, known, batch_size),), {}


def _part(known, name):
    return known.get(name) if isinstance(known, dict) else None


def _without_batch(known):
    if isinstance(known, dict):
        return {name: _without_batch(part) for name, part in known.items()}
    return (None, *known[1:]) if _is_shape(known) else [_without_batch(part) for part in known]


def _structure(model, shape, known, batch_size):
    if isinstance(shape, dict):
        return {name: _structure(model, part, _part(known, name), batch_size) for name, part in shape.items()}
    if isinstance(shape, (list, tuple)) and not _is_shape(shape):
        parts = known if isinstance(known, (list, tuple)) and len(known) == len(shape) else [None] * len(shape)
        return [_structure(model, *pair, batch_size) for pair in zip(shape, parts, strict=True)]
    if known is not None and _is_shape(known):
        return keras.KerasTensor(_with_batch(_full_shape(model, shape, len(known), "input"), batch_size))
    shape = _checked_shape(model, shape)
    return keras.KerasTensor(_with_batch(shape if shape[:1] == (None,) else (None, *shape), batch_size))


def build_sequential(model, input_shape):
    """Build a Sequential model without an Input for a shape, as its first call would."""
    shape = _checked_shape(model, input_shape)
    first = model.layers[0]
    try:
        model.build(shape if shape[:1] == (None,) else (None, *shape))
    except Exception as error:
        raise ValueError(
            f"{model.name!r} cannot be built for {shape} (its first layer is {first.name!r}): {first_line(error)}"
        ) from error
