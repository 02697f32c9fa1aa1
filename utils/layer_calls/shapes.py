"""Input shapes as callers give them, checked against a model and completed with the batch."""

from . import keras_graph as internals


def first_line(error):
    """The first line of an error's message, for a sentence of our own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def input_shapes(model, inputs, given, batch_size):
    """One full shape for each symbolic input of a model.

    Args:
        model: the model, for messages.
        inputs: its symbolic inputs.
        given: what the caller gave: None, one shape, a list of shapes, or a dict by input name.
        batch_size: what stands in for an unknown batch, or None.

    Raises:
        ValueError: number, names, ranks or dimensions do not fit.
    """
    if given is None:
        shapes = [tuple(reference.shape) for reference in inputs]
    else:
        if isinstance(given, dict):
            names = [reference.name for reference in inputs]
            if sorted(given) != sorted(names):
                raise ValueError(
                    f"input_shape names {sorted(given)}, but the inputs of {model.name!r} are {sorted(names)}"
                )
            given = [given[name] for name in names]
        elif _is_shape(given):
            given = [given]
        if len(given) != len(inputs):
            raise ValueError(
                f"{model.name!r} has {len(inputs)} inputs and input_shape gives {len(given)} shapes; give a list with "
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
        f"give {rank - 1} (without the batch) or {rank}"
    )


def _checked_shape(model, shape):
    if not _is_shape(shape) or any(dim is not None and (isinstance(dim, bool) or int(dim) < 1) for dim in shape):
        raise ValueError(
            f"{shape!r} is no input shape for {model.name!r}; give positive whole numbers, None if unknown"
        )
    return tuple(None if dim is None else int(dim) for dim in shape)


def _is_shape(value):
    return isinstance(value, (tuple, list)) and all(dim is None or hasattr(dim, "__index__") for dim in value)


def _with_batch(shape, batch_size):
    return (batch_size, *shape[1:]) if shape and shape[0] is None else tuple(shape)


class Dims:
    """A shape as one leaf of a nested structure (a bare tuple would be taken apart)."""

    def __init__(self, dims):
        self.dims = dims


def subclassed_shapes(model, given, batch_size):
    """The input structure of a subclassed model, with :class:`Dims` at each leaf.

    Args: as :func:`input_shapes`; None stands for the shapes that the model was built with.
    """
    known = internals.built_shapes(model)
    if given is None:
        given = known
    if given is None:
        raise ValueError(
            f"{model.name!r} ({type(model).__name__}) has no graph to read its input shape from; "
            "give input_shape, for example (224, 224, 3)"
        )

    def leaf(shape, reference):
        if reference is not None and _is_shape(reference):
            return Dims(_with_batch(_full_shape(model, shape, len(reference), "input"), batch_size))
        shape = _checked_shape(model, shape)
        return Dims(_with_batch(shape if shape[:1] == (None,) else (None, *shape), batch_size))

    def structure(shape, reference):
        if isinstance(shape, dict):
            return {
                name: structure(part, reference.get(name) if isinstance(reference, dict) else None)
                for name, part in shape.items()
            }
        if _is_shape(shape):
            return leaf(shape, reference)
        references = reference if isinstance(reference, (list, tuple)) and len(reference) == len(shape) else None
        return [structure(part, references[at] if references else None) for at, part in enumerate(shape)]

    return structure(given, known)


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
