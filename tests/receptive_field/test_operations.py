"""Operations of keras.ops in a Lambda, against what really moves their output: never a box that is too small."""

import inspect

import keras
import numpy as np
import pytest
from keras import layers, ops

from utils.receptive_field import receptive_field
from utils.receptive_field.rules import RULES

SIDES = (3, 4)
# The arguments that each operation is tried with; those that it does not take do not count.
PATTERNS = {
    "x": lambda op, x: op(x),
    "x, y": lambda op, x: op(x, ops.flip(x, 1)),
    "condition, x, y": lambda op, x: op(x > 0.5, x, ops.flip(x, 1)),
    "x, 2": lambda op, x: op(x, 2),
    "rows": lambda op, x: op(x, axis=1),
    "columns by 2": lambda op, x: op(x, 2, axis=2),
    "rows and columns": lambda op, x: op(x, axis=(1, 2)),
    "all axes": lambda op, x: op(x, axis=None),
    "list": lambda op, x: op([x, ops.flip(x, 1)]),
    "list along columns": lambda op, x: op([x, ops.flip(x, 2)], axis=2),
    "x, transposed": lambda op, x: op(x, ops.transpose(x, (0, 1, 3, 2))),
    "x, indices": lambda op, x: op(x, np.array([1, 0]), axis=1),
    "x, indices that the image decides": lambda op, x: op(x, ops.cast(x[0, :, 0, 0] * 2, "int32"), axis=1),
    "x, shape": lambda op, x: op(x, (1, *SIDES[::-1], 2)),
    "x, pair": lambda op, x: op(x, (2, 3)),
    "x, kernel": lambda op, x: op(x, np.ones((3, 3, 2, 2), "float32")),
}


def has_a_rule(name, operation):
    return inspect.isfunction(operation) and name.replace("_", "") in {one.lower() for one in RULES}


OPERATIONS = {
    name: getattr(module, name)
    for module in (ops.image, ops)
    for name in dir(module)
    if has_a_rule(name, getattr(module, name))
}


def moved(function):
    """Whether a pixel moves an element of the output: (rows, columns, *output shape)."""
    image = np.random.default_rng(0).uniform(0.2, 0.8, (1, *SIDES, 2)).astype("float32")

    def run(changed):
        output = function(ops.convert_to_tensor(changed))
        return np.asarray(output[0] if isinstance(output, tuple | list) else output)

    before = run(image)
    seen = np.zeros((*SIDES, *before.shape), bool)
    for y, x in np.ndindex(*SIDES):
        changed = image.copy()
        changed[0, y, x] = 0.95, 0.05
        seen[y, x] = run(changed) != before
    return seen


def too_small(function):
    """A feature whose box lacks a pixel that moves it, else None."""
    try:
        model = keras.Sequential([keras.Input((*SIDES, 2)), layers.Lambda(function)])
        seen = moved(function)
    except Exception:
        return None  # the operation does not take these arguments
    try:
        found = receptive_field(model, unsupported="ignore", output=0)
    except ValueError as error:
        return "it sees nothing" if "sees nothing of the image" in str(error) and seen.any() else None
    if found.whole_image:
        return None
    for feature in np.ndindex(*(1 if place is None else seen.shape[2 + place] for place in found.places)):
        index = {place: at for place, at in zip(found.places, feature, strict=True) if place is not None}
        outside = seen[(..., *(index.get(axis, slice(None)) for axis in range(seen.ndim - 2)))]
        outside = outside.reshape(*SIDES, -1).any(-1)
        outside[found.region(*feature, clip=True).slices] = False
        if outside.any():
            return feature
    return None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_operation_has_a_box_that_is_too_small(pattern):
    faults = {
        name: too_small(lambda x, operation=operation: PATTERNS[pattern](operation, x))
        for name, operation in OPERATIONS.items()
        if not name.startswith("adaptive")  # with arguments that do not fit, these end the process
    }
    assert {name: fault for name, fault in faults.items() if fault is not None} == {}


UNKNOWN = {
    "cond": lambda x: ops.cond(ops.mean(x) > 0, lambda: x, lambda: ops.flip(x, 1)),
    "cond on a pixel": lambda x: ops.cond(x[0, 0, 0, 0] > 0, lambda: ops.flip(x, 1), lambda: x),
    "switch": lambda x: ops.switch(0, [lambda y: ops.flip(y, 1), lambda y: y], x),
    "while_loop": lambda x: ops.while_loop(lambda y: True, lambda y: (ops.flip(y, 1),), (x,), 3)[0],
    "fori_loop": lambda x: ops.fori_loop(0, 3, lambda i, y: ops.roll(y, 1, axis=1), x),
    "map": lambda x: ops.map(lambda y: ops.flip(y, 0), x),
    "vectorized_map": lambda x: ops.vectorized_map(lambda y: ops.flip(y, 0), x),
    "scan": lambda x: ops.scan(lambda c, y: (c + y, c), ops.zeros((1, 4, 2)), ops.transpose(x, (1, 0, 2, 3)))[1],
    "a threshold": lambda x: ops.hard_shrink(x, ops.flip(x, 1)),
    "a scale": lambda x: ops.layer_normalization(x, ops.flip(x, 1)),
    "a kernel": lambda x: ops.conv(x, ops.ones((1, 1, 2, 2)) * ops.mean(x), padding="same"),
    "a shift": lambda x: ops.roll(x, ops.cast(x[0, 0, 0, 0], "int32"), axis=1),
    "an index": lambda x: x[:, ops.cast(x[0, 0, 0, 0], "int32")],
    "take_along_axis": lambda x: ops.take_along_axis(x, ops.cast(x[:, :1], "int32"), axis=1),
    "an edge": lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=x[0, 0, 0, 0]),
    "fft2": lambda x: ops.fft2((x, x))[0],
    "a pooling whose shape Keras describes otherwise": lambda x: ops.adaptive_average_pool(x, (2, 3)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_control_flow_and_settings_that_the_image_decides_are_unknown_by_name(name):
    shape = None if name != "while_loop" else (*SIDES, 2)
    model = keras.Sequential([keras.Input((*SIDES, 2)), layers.Lambda(UNKNOWN[name], shape, name="own")])
    found = receptive_field(model, unsupported="ignore", output=0)
    assert found.lost is not None and "layer 'own" in found.lost
