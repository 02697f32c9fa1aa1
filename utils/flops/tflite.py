"""MACs, FLOPs, parameters and bytes of a `.tflite` file, read from its operators and tensor shapes.

Nothing is run, so that float32, float16, dynamic range, int8, int16x8 and weight-only files give the same MACs and
differ in bytes. The convention is that of :mod:`utils.flops.layers`. An operator without a rule is named in
`report.unsupported`, never counted as zero: EfficientNetB0's MEAN operators alone come to 2.37 M operations, which a
profiler that knows no quantized convolution reports for the whole network.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np

from .formulas import CONVENTIONS, Cost, by_name, either, elements, product, repeated, words
from .graph import MOST_STEPS
from .report import CostReport, CostRow, Unsupported, check_choice, tell
from .tflite_file import DAMAGED, File, unreadable

FREE = words("""
    RESHAPE CONCATENATION PAD PADV2 MIRROR_PAD TRANSPOSE SQUEEZE EXPAND_DIMS STRIDED_SLICE SLICE SPLIT SPLIT_V PACK
    UNPACK GATHER GATHER_ND EMBEDDING_LOOKUP SHAPE RANK FILL RANGE TILE CAST BITCAST BROADCAST_TO BROADCAST_ARGS
    REVERSE_V2 DEPTH_TO_SPACE SPACE_TO_DEPTH BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND RESIZE_NEAREST_NEIGHBOR ZEROS_LIKE
    ONE_HOT SPARSE_TO_DENSE SCATTER_ND DYNAMIC_UPDATE_SLICE DENSIFY REVERSE_SEQUENCE MATRIX_DIAG MATRIX_SET_DIAG
    VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE CALL_ONCE TOPK_V2 WHERE UNIQUE SEGMENT_SUM UNSORTED_SEGMENT_SUM
    UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN
""")
EACH = by_name({  # DEQUANTIZE: minus the zero point, times the scale; QUANTIZE: the same back, rounded, clipped twice
    1: """
    ADD SUB MUL DIV FLOOR_DIV FLOOR_MOD POW MAXIMUM MINIMUM SQUARE SQRT RSQRT ABS NEG EXP LOG SIN COS FLOOR CEIL ROUND
    SIGN TANH RELU EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT SELECT
    SELECT_V2 ATAN2 BITWISE_XOR RIGHT_SHIFT""",
    2: "RELU6 RELU_N1_TO_1 RELU_0_TO_1 SQUARED_DIFFERENCE LEAKY_RELU PRELU DEQUANTIZE",
    3: "ELU L2_NORMALIZATION",
    4: "LOGISTIC",
    5: "HARD_SWISH GELU SOFTMAX LOG_SOFTMAX QUANTIZE",
    7: "RESIZE_BILINEAR",
})  # fmt: skip
REDUCE = words("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ALL REDUCE_ANY ARG_MAX ARG_MIN CUMSUM")
FUSED = {0: 0, 1: 1, 2: 2, 3: 2, 4: 1, 5: 1}  # none, relu, relu_n1_to_1, relu6, tanh, sign_bit
# Inputs that say how (shapes, axes, paddings, indices) and hold no weights, by operator; all but the first where a list
# of positions is not given.
ARGUMENTS = {
    **dict.fromkeys([*FREE, *REDUCE, "RESIZE_BILINEAR"], None),
    "CONCATENATION": (),
    "PACK": (),
    "TRANSPOSE_CONV": (0,),
    "CONV_3D_TRANSPOSE": (0,),
    "SPLIT": (0,),
    "ASSIGN_VARIABLE": (0,),
    "EMBEDDING_LOOKUP": (0,),
}
BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT64": 64, "INT64": 64, "UINT64": 64, "INT32": 32, "UINT32": 32,
    "INT16": 16, "UINT16": 16, "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4, "UINT4": 4, "INT2": 2, "COMPLEX64": 64,
    "COMPLEX128": 128, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8,
}  # fmt: skip


class Kernel(NamedTuple):
    """Which axes of an operator's second input are multiplied with each position, slide over it, hold the outputs."""

    taps: slice
    window: slice
    filters: int
    transposed: bool = False  # then the positions are those of the third input

    def cost(self, given, gives, options):
        positions, bias = (given[2], 3) if self.transposed else (gives[0], 2)
        biased = len(given) > bias and given[bias] is not None
        return Cost(elements(positions) * product(given[1][self.taps]), elements(gives[0]) if biased else 0)


# Their int32 and int64 constants are quantized biases; elsewhere such constants are shapes.
KERNELS = {
    "CONV_2D": Kernel(slice(1, None), slice(1, 3), 0),  # (C_out, k_h, k_w, C_in / groups)
    "DEPTHWISE_CONV_2D": Kernel(slice(1, 3), slice(1, 3), 3),  # (1, k_h, k_w, C_out)
    "TRANSPOSE_CONV": Kernel(slice(0, 3), slice(1, 3), 0, transposed=True),  # (C_out, k_h, k_w, C_in)
    "CONV_3D": Kernel(slice(0, 4), slice(0, 3), 4),  # (k_d, k_h, k_w, C_in, C_out)
    "CONV_3D_TRANSPOSE": Kernel(slice(0, 4), slice(0, 3), 3, transposed=True),  # (k_d, k_h, k_w, C_out, C_in)
    "FULLY_CONNECTED": Kernel(slice(-1, None), slice(0), 0),  # (C_out, C_in)
}
PRODUCTS = (*KERNELS, "BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN")


def count_tflite(path_or_bytes, unsupported="warn"):
    """Count a `.tflite` file.

    A loop costs its body as often as it runs, where that follows from constants of the file; a branch what both ways
    cost alike; a graph that runs once, when the file is loaded, nothing. Loops and branches of which the data decide
    are named.

    Args:
        path_or_bytes: a path, or the file's contents as bytes.
        unsupported: what to do about operators without a rule: "warn", "raise" or "ignore".

    Returns:
        :class:`utils.flops.report.CostReport` with one row an operator. `path` is the name of its output, `params` and
        `weight_bytes` are the constants that it reads (stored size, each constant once), `activation_bytes` what it
        gives. Counted for the batch that the file is made for, or for a batch of 1 where that is open (the converter's
        default): a process of its own then asks LiteRT for every shape, and what it cannot tell is named. Weights that
        a DEQUANTIZE expands when the file is loaded (float16 files) are counted with the operator that uses them.

    Raises:
        ValueError: not a TensorFlow Lite model, damaged, or (with unsupported="raise") an operator without a rule.
        FileNotFoundError: there is no such file.
        TypeError: neither a path nor bytes.
    """
    check_choice(unsupported)
    name, data = _contents(path_or_bytes)
    graph = File(data, name)
    try:
        parts = [graph.inner(number) for number in range(len(graph.model.subgraphs))]
        if any(None in tensor.shape for part in parts for tensor in part.tensors):
            _resolve(graph)
        rows, problems = _rows(graph)
        problems += _other_signatures(graph)
    except DAMAGED as error:
        raise unreadable(name, error) from error
    tell(name, problems, unsupported)
    return CostReport(name, tuple(rows), _batch(graph), "exact", CONVENTIONS["exact"], tuple(problems))


def _contents(path_or_bytes):
    if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
        return "the model given as bytes", bytes(path_or_bytes)
    if not isinstance(path_or_bytes, (str, os.PathLike)):
        raise TypeError(
            f"expected the path or the bytes of a .tflite file, got {type(path_or_bytes).__name__}; "
            "count a Keras model with count, or convert it first"
        )
    path = pathlib.Path(path_or_bytes)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass the path of a .tflite file, or its bytes")
    return path.name, path.read_bytes()


# Runs where native code may end the process: twice, on other inputs, so that shapes which depend on the data differ.
_ASK = """
import json, sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
interpreter = Interpreter(
    model_content=sys.stdin.buffer.read(), experimental_op_resolver_type=kernels, experimental_preserve_all_tensors=True
)
for detail, shape in zip(interpreter.get_input_details(), json.loads(sys.argv[1])):
    interpreter.resize_tensor_input(detail["index"], shape)
interpreter.allocate_tensors()
found = []
for high in (0, 2):
    for detail in interpreter.get_input_details():
        values = np.random.default_rng(0).uniform(0, high, detail["shape"]).astype(detail["dtype"])
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    found.append([
        [(detail["index"], detail["shape"].tolist()) for detail in interpreter.get_tensor_details(graph)]
        for graph in range(interpreter.num_subgraphs())
    ])
print(json.dumps([[one for one in graph if one in again] for graph, again in zip(*found)]))
"""


def _resolve(graph):
    """Fill open dimensions as they are at a batch of 1, in all graphs of the file; what LiteRT cannot tell stays."""
    given = [graph.tensors[at].shape for at in graph.inputs]
    if any(None in shape[1:] for shape in given):
        return
    sides = json.dumps([[dim or 1 for dim in shape] for shape in given])
    asked = subprocess.run(
        [sys.executable, "-c", _ASK, sides], input=bytes(graph.content), capture_output=True, check=False
    )
    for number, shapes in enumerate(json.loads(asked.stdout) if not asked.returncode else ()):
        for at, shape in shapes:
            graph.known[number, at] = tuple(shape)
    graph.enter(0)


def _other_signatures(graph):
    """Signatures of the file that begin in another graph than the one that is counted."""
    return [
        Unsupported(signature.signatureKey.decode("utf-8", "replace"), "signature", "only the first graph is counted")
        for signature in graph.model.signatureDefs or ()
        if signature.subgraphIndex
    ]


def _batch(graph):
    shape = graph.tensors[graph.inputs[0]].shape
    return (shape[0] if shape else None) or 1


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(graph):
    expanded = _expanded(graph)
    rows, problems, seen = [], [], set()
    for index, operator in enumerate(graph.operators):
        at_load = operator.outputs and operator.outputs[0] in expanded
        name = graph.tensors[operator.outputs[0]].name.split(";")[0] if operator.outputs else ""
        path = name or f"{operator.type}_{index}"
        cost, problem = (Cost(), None) if at_load else _cost(graph, operator)
        if problem:
            problems.append(Unsupported(path, operator.type, problem))
        weights = [] if at_load else [expanded.get(at, at) for at in _parameters(graph, operator, expanded)]
        weights = [(graph, at) for at in weights] + _inner_weights(graph, operator)
        fresh = {of.tensors[at].buffer: (elements(of.tensors[at].shape), of.data(at).size) for of, at in weights}
        fresh = {buffer: sizes for buffer, sizes in fresh.items() if buffer not in seen}
        seen.update(fresh)
        kernel, strides, filters = _geometry(graph, operator)
        read = [at for at in operator.inputs if at is not None and not graph.data(at).size and at not in expanded]
        rows.append(
            CostRow(
                index=index,
                path=path,
                type=operator.type,
                input_shapes=tuple(graph.tensors[at].shape for at in read),
                output_shapes=tuple(graph.tensors[at].shape for at in operator.outputs),
                kernel=kernel,
                strides=strides,
                filters=filters,
                params=sum(size for size, _ in fresh.values()),
                macs=cost.macs if cost else None,
                elementwise_ops=cost.elementwise if cost else None,
                activation_bytes=0 if at_load else _bytes(graph, operator.outputs),
                weight_bytes=sum(stored for _, stored in fresh.values()),
            )
        )
    return rows, problems


def _expanded(graph):
    """{tensor: the constant behind it}: weights of the file in another dtype or layout, made once when it is loaded."""
    return {
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if operator.type in ("DEQUANTIZE", "DENSIFY") and operator.inputs and graph.data(operator.inputs[0]).size
    }


def _inner_weights(graph, operator):
    """(graph, tensor) of the constants in the graphs that an operator runs."""
    found = []
    for part in _inner_graphs(graph, operator):
        expanded = _expanded(part)
        for one in part.operators:
            found += [(part, expanded.get(at, at)) for at in _parameters(part, one, expanded)]
            found += _inner_weights(part, one)
    return found


def _parameters(graph, operator, expanded):
    """Tensors of an operator that are weights: constants, but for those that only say how, or begin a loop."""
    positions = ARGUMENTS.get(operator.type, ())
    if operator.type == "WHILE":
        body = graph.inner(operator.options.bodySubgraphIndex)
        positions = [at for at, pair in enumerate(zip(body.inputs, body.outputs, strict=True)) if len(set(pair)) > 1]
    inputs = list(enumerate(operator.inputs))
    kept = inputs[:1] if positions is None else [(at, tensor) for at, tensor in inputs if at not in positions]
    stored = [tensor for _, tensor in kept if tensor is not None and (graph.data(tensor).size or tensor in expanded)]
    if operator.type in KERNELS:
        return stored
    return [tensor for tensor in stored if graph.tensors[tensor].dtype not in ("INT32", "INT64", "BOOL", "STRING")]


def _bytes(graph, indices):
    sizes = []
    for at in indices:
        tensor = graph.tensors[at]
        if None in tensor.shape or tensor.dtype not in BITS:
            return None
        sizes.append(-(-elements(tensor.shape) * BITS[tensor.dtype] // 8))
    return sum(sizes)


def _geometry(graph, operator):
    """(kernel, strides, filters) of an operator for the table; None where it has none."""
    options = operator.options
    strides = tuple(getattr(options, name) for name in ("strideD", "strideH", "strideW") if hasattr(options, name))
    if operator.type in KERNELS:
        kernel, shape = KERNELS[operator.type], graph.tensors[operator.inputs[1]].shape
        return shape[kernel.window] or None, strides or None, shape[kernel.filters]
    if hasattr(options, "filterHeight"):
        return (options.filterHeight, options.filterWidth), strides, None
    return None, None, None


def _cost(graph, operator):
    """(Cost or None, what is not known or None) of an operator."""
    kind, options = operator.type, operator.options
    if kind in FREE:
        return Cost(), None
    if kind in INNER:
        cost = _inner_cost(graph, operator)
        if cost.unknown and not (cost.macs or cost.elementwise):
            return None, cost.unknown
        return cost, cost.unknown and f"{cost.unknown}; the rest of it is counted"
    if kind not in RULES:
        return None, "there is no rule for this operator"
    given = [graph.tensors[at].shape if at is not None else None for at in operator.inputs]
    gives = [graph.tensors[at].shape for at in operator.outputs]
    unknown = [shape for shape in (*given, *gives) if shape is not None and None in shape]
    if unknown:
        return None, f"its shape {unknown[0]} is open or depends on the data; convert the model for a fixed input shape"
    if kind in PRODUCTS and () in (given[0], gives[0]):
        return None, "its shape is not in the file; convert the model for a fixed input shape"
    cost = RULES[kind](given, gives, options)
    if hasattr(options, "fusedActivationFunction"):
        cost += Cost(0, FUSED[options.fusedActivationFunction] * elements(gives[0]))
    return cost, None


# Operators that run other graphs of the file: the fields of their options that name them.
INNER = {
    "WHILE": ("condSubgraphIndex", "bodySubgraphIndex"),
    "IF": ("thenSubgraphIndex", "elseSubgraphIndex"),
    "CALL": ("subgraph",),
    "STABLEHLO_COMPOSITE": ("decompositionSubgraphIndex",),
    "CALL_ONCE": ("initSubgraphIndex",),
}


def _inner_graphs(graph, operator):
    return [graph.inner(getattr(operator.options, field)) for field in INNER.get(operator.type, ())]


def _inner_cost(graph, operator):
    """Cost of an operator that runs other graphs."""
    parts = _inner_graphs(graph, operator)
    costs = [_graph_cost(part) for part in parts]
    if operator.type == "IF":
        chosen = _number(graph, operator.inputs[0])
        return either(costs) if chosen is None else costs[0 if chosen else 1]
    if operator.type != "WHILE":
        return costs[0]
    condition, body = costs
    times = _times(graph, operator, *parts)
    return repeated(body, times) if times is None else repeated(condition, times + 1) + repeated(body, times)


def _graph_cost(graph):
    """Cost of all operators of a graph, without those that are done when the file is loaded."""
    total, expanded = Cost(), _expanded(graph)
    for operator in graph.operators:
        if not operator.outputs or operator.outputs[0] not in expanded:
            cost, problem = _cost(graph, operator)
            unknown = problem and f"{operator.type} inside it: {problem}"
            total += dataclasses.replace(cost or Cost(), unknown=unknown)
    return total


NUMBERS = {
    "ADD": np.add, "SUB": np.subtract, "MUL": np.multiply, "MINIMUM": np.minimum, "MAXIMUM": np.maximum,
    "FLOOR_DIV": np.floor_divide, "FLOOR_MOD": np.mod, "LESS": np.less, "LESS_EQUAL": np.less_equal,
    "GREATER": np.greater, "GREATER_EQUAL": np.greater_equal, "EQUAL": np.equal, "NOT_EQUAL": np.not_equal,
    "LOGICAL_AND": np.logical_and, "LOGICAL_OR": np.logical_or, "LOGICAL_NOT": np.logical_not,
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST"), lambda value, *how: value),
}  # fmt: skip
DTYPES = {"INT32": "<i4", "INT64": "<i8", "BOOL": "?"}


def _number(graph, at, known=None):
    """The one whole number or truth value that a tensor holds whatever the input is, or None."""
    if known and at in known:
        return known[at]
    tensor = graph.tensors[at]
    if tensor.dtype not in DTYPES or None in tensor.shape or elements(tensor.shape) != 1:
        return None
    if graph.data(at).size:
        return graph.data(at).view(DTYPES[tensor.dtype])[0]
    operator = next((one for one in graph.operators if at in one.outputs), None)
    if operator is None or operator.type not in NUMBERS or getattr(operator.options, "fusedActivationFunction", 0):
        return None
    read = operator.inputs[:1] if operator.type in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "CAST") else operator.inputs
    values = [_number(graph, one, known) for one in read]
    if any(value is None for value in values):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(NUMBERS[operator.type](*values)).astype(DTYPES[tensor.dtype])[()]


def _times(graph, operator, condition, body):
    """How often a WHILE runs, by running its counters alone; None where they depend on the data."""
    values = [None if at is None else _number(graph, at) for at in operator.inputs]
    for count in range(MOST_STEPS):
        going = _number(condition, condition.outputs[0], dict(zip(condition.inputs, values, strict=True)))
        if going is None or not going:
            return None if going is None else count
        known = dict(zip(body.inputs, values, strict=True))
        values = [_number(body, at, known) for at in body.outputs]
    return None


def _batch_matmul(given, gives, options):
    return Cost(elements(gives[0]) * given[0][-2 if options is not None and options.adjX else -1])


def _pool(given, gives, options):
    return Cost(0, elements(gives[0]) * options.filterHeight * options.filterWidth)


def _sequence_lstm(given, gives, options):
    """Input and recurrent weights of up to four gates (1..8) and the projection (16), at every step."""
    weights = [shape for shape in (*given[1:9], *given[16:17]) if shape is not None and len(shape) == 2]
    units = given[3][0]
    steps = elements(given[0]) // given[0][-1]
    return Cost(steps * sum(map(product, weights)), steps * units * (4 + 4 + 4 + 3 * 4 + 2))


def _sequence_rnn(given, gives, options):
    steps = elements(given[0]) // given[0][-1]
    return Cost(steps * (product(given[1]) + product(given[2])), steps * given[1][0] * 2)


RULES = {
    **{kind: lambda given, gives, options, n=n: Cost(0, n * elements(gives[0])) for kind, n in EACH.items()},
    **{kind: lambda given, gives, options: Cost(0, elements(given[0])) for kind in REDUCE},
    "ADD_N": lambda given, gives, options: Cost(0, (len(given) - 1) * elements(gives[0])),
    **{kind: kernel.cost for kind, kernel in KERNELS.items()},
    "BATCH_MATMUL": _batch_matmul,
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"), _pool),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _sequence_lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _sequence_rnn,
}
