"""The independent oracle of the counts: what JAX is about to compute, read from the jaxpr of a model's call.

It counts `dot_general` and `conv_general_dilated` with their shapes, the bodies of scans times their length, and knows
nothing of layers, of Keras' operations, or of the rules. As a program it needs the JAX backend:

    KERAS_BACKEND=jax python tests/flops/jaxpr_oracle.py hub BERT GPT-2

and prints one line of JSON, {name: {"oracle": MACs, "count": MACs, "unsupported": [...]}}.
"""

import json
import math
import os
import pathlib
import sys


def equation_macs(equation):
    """Multiply-accumulates of one equation of a jaxpr, those of the jaxprs inside it included."""
    name, out = equation.primitive.name, equation.outvars[0].aval if equation.outvars else None
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(out.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, order = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
        taps = math.prod(kernel[axis] for axis in order[2:]) * kernel[order[1]]
        holes = math.prod(equation.params["lhs_dilation"])  # a transposed convolution multiplies no inserted zeros
        if holes > 1:
            given = equation.invars[0].aval.shape
            return math.prod(given) * math.prod(kernel[axis] for axis in order[2:]) * kernel[order[0]]
        return math.prod(out.shape) * taps
    if equation.params.get("name") in ("_resize", "_scale_and_translate"):
        return 0  # JAX writes interpolation as products with matrices of weights; it is element-wise in this project
    if name == "cond":
        return max(jaxpr_macs(branch.jaxpr) for branch in equation.params["branches"])
    times = equation.params["length"] if name == "scan" else 1
    inner = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
    macs = sum(jaxpr_macs(getattr(part, "jaxpr", part)) for part in inner)
    if name == "while" and macs:
        raise ValueError("a while loop says nothing of its length")
    return times * macs


def jaxpr_macs(jaxpr):
    return sum(map(equation_macs, jaxpr.eqns))


def model_macs(model, shapes, batch=1):
    """Multiply-accumulates of `model` on inputs of these shapes ({name: shape without the batch})."""
    import jax

    given = {tensor.name: jax.ShapeDtypeStruct((batch, *shapes[tensor.name]), tensor.dtype) for tensor in model.inputs}
    structure = given if isinstance(model.input, dict) else [given[tensor.name] for tensor in model.inputs]
    structure = structure[0] if isinstance(structure, list) and len(structure) == 1 else structure
    return jaxpr_macs(jax.make_jaxpr(lambda x: model(x, training=False))(structure).jaxpr)


def zeros(shape, *_, dtype=None, **__):
    import numpy as np

    return np.zeros(shape, dtype or "float32")


def main(kind, names):
    import keras
    import keras.src.backend.jax.random as random

    for name in ("normal", "uniform", "truncated_normal"):  # JAX would compile each for each shape; no value is read
        setattr(random, name, zeros)
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2]), str(pathlib.Path(__file__).resolve().parent)]
    from utils import flops

    answers = {}
    for name in names:
        if kind == "hub":
            import hub_models

            model = hub_models.MODELS[name]()
            shapes = hub_models.input_shapes(model)
        else:  # a model that the other process has saved
            model = keras.saving.load_model(name)
            shapes = {tensor.name: tensor.shape[1:] for tensor in model.inputs}
        report = flops.count(model, shapes, unsupported="ignore")
        answers[name] = {
            "oracle": model_macs(model, shapes),
            "count": report.total_macs,
            "unsupported": list(map(str, report.unsupported)),
        }
    print(json.dumps(answers))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(sys.argv[1], sys.argv[2:])
