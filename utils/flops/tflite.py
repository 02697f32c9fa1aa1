"""MACs, FLOPs, parameters and bytes of a `.tflite` file, read from its operators and tensor shapes.

:class:`File` reads the flatbuffer, for counting and for `utils.quantization`, which mends and cuts files. Nothing is
run, so that float32, float16, dynamic range, int8, int16x8 and weight-only files give the same MACs and differ in
bytes. The convention is that of :mod:`utils.flops.layers`. An operator without a rule is named in `report.unsupported`,
never counted as zero: EfficientNetB0's MEAN operators alone come to 2.37 M operations, which a profiler that knows no
quantized convolution reports for the whole network.
"""

import collections
import json
import pathlib
import struct
import subprocess
import sys

import numpy as np

from .formulas import Cost, elements, product
from .layers import CONVENTIONS
from .report import CostReport, CostRow, Unsupported, check_choice, tell


def _words(text):
    return text.split()


FREE = _words("""
    RESHAPE CONCATENATION PAD PADV2 MIRROR_PAD TRANSPOSE SQUEEZE EXPAND_DIMS STRIDED_SLICE SLICE SPLIT SPLIT_V PACK
    UNPACK GATHER GATHER_ND EMBEDDING_LOOKUP SHAPE RANK FILL RANGE TILE CAST BITCAST BROADCAST_TO BROADCAST_ARGS
    REVERSE_V2 DEPTH_TO_SPACE SPACE_TO_DEPTH BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND RESIZE_NEAREST_NEIGHBOR ZEROS_LIKE
    ONE_HOT SPARSE_TO_DENSE SCATTER_ND DYNAMIC_UPDATE_SLICE DENSIFY REVERSE_SEQUENCE MATRIX_DIAG MATRIX_SET_DIAG
""")
EACH = {
    **dict.fromkeys(
        _words("""
            ADD SUB MUL DIV FLOOR_DIV FLOOR_MOD POW MAXIMUM MINIMUM SQUARE SQRT RSQRT ABS NEG EXP LOG SIN COS FLOOR
            CEIL ROUND SIGN TANH RELU EQUAL NOT_EQUAL LESS LESS_EQUAL GREATER GREATER_EQUAL LOGICAL_AND LOGICAL_OR
            LOGICAL_NOT SELECT SELECT_V2 ATAN2 BITWISE_XOR RIGHT_SHIFT
        """),
        1,
    ),
    **dict.fromkeys(("RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "SQUARED_DIFFERENCE", "LEAKY_RELU", "PRELU"), 2),
    **dict.fromkeys(("ELU", "L2_NORMALIZATION"), 3),
    "LOGISTIC": 4,
    **dict.fromkeys(("HARD_SWISH", "GELU", "SOFTMAX", "LOG_SOFTMAX"), 5),
    "RESIZE_BILINEAR": 7,
    "DEQUANTIZE": 2,  # minus the zero point, times the scale
    "QUANTIZE": 5,  # times the scale, plus the zero point, rounded, clipped below and above
}
REDUCE = _words("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ALL REDUCE_ANY ARG_MAX ARG_MIN CUMSUM")
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
    "EMBEDDING_LOOKUP": (0,),
}
BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "BFLOAT16": 16, "FLOAT64": 64, "INT64": 64, "UINT64": 64, "INT32": 32, "UINT32": 32,
    "INT16": 16, "UINT16": 16, "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4, "UINT4": 4, "INT2": 2, "COMPLEX64": 64,
    "COMPLEX128": 128, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8,
}  # fmt: skip

# Their int32 and int64 constants are quantized biases; elsewhere such constants are shapes.
WITH_BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D", "CONV_3D_TRANSPOSE", "FULLY_CONNECTED")

PRODUCTS = (*WITH_BIAS, "BATCH_MATMUL", "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN")

_Tensor = collections.namedtuple("_Tensor", "name shape dtype buffer")
_Operator = collections.namedtuple("_Operator", "type inputs outputs options")
DAMAGED = (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError)


def count_tflite(path_or_bytes, unsupported="warn"):
    """Count a `.tflite` file.

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
    """
    check_choice(unsupported)
    name, data = _contents(path_or_bytes)
    graph = File(data, name)
    if any(None in tensor.shape for tensor in graph.tensors):
        graph.tensors = _resolved(graph)
    try:
        rows, problems = _rows(graph)
        problems += _other_signatures(graph)
    except DAMAGED as error:
        raise unreadable(name, error) from error
    tell(name, problems, unsupported)
    return CostReport(name, tuple(rows), _batch(graph), "exact", CONVENTIONS["exact"], tuple(problems))


def _contents(path_or_bytes):
    if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
        return "the model given as bytes", bytes(path_or_bytes)
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
    found.append({detail["index"]: detail["shape"].tolist() for detail in interpreter.get_tensor_details()})
print(json.dumps({at: shape for at, shape in found[0].items() if shape == found[1][at]}))
"""


def _resolved(graph):
    """The tensors with their open dimensions as they are at a batch of 1; what LiteRT cannot tell stays open."""
    given = [graph.tensors[at].shape for at in graph.inputs]
    if any(None in shape[1:] for shape in given):
        return graph.tensors
    sides = json.dumps([[dim or 1 for dim in shape] for shape in given])
    asked = subprocess.run(
        [sys.executable, "-c", _ASK, sides], input=bytes(graph.content), capture_output=True, check=False
    )
    if asked.returncode:
        return graph.tensors
    shapes = json.loads(asked.stdout)
    return [
        tensor._replace(shape=tuple(shapes.get(str(at), tensor.shape))) if None in tensor.shape else tensor
        for at, tensor in enumerate(graph.tensors)
    ]


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


class File:
    """A `.tflite` file taken apart; every index is checked.

    Args:
        content: bytes, or a bytearray whose weights may then be changed in place.

    Attributes:
        model: the schema's object (`ModelT`); graph: its main graph.
        tensors: of the main graph: name, shape (None where a dimension is open), dtype ("INT8"), buffer.
        operators: of the main graph, in order: type ("CONV_2D"), inputs and outputs (positions of tensors, None for an
            input that is left out), options (the schema's object, or None).
        inputs, outputs: positions of the main graph's tensors.

    Raises:
        ValueError: not a TensorFlow Lite model, or damaged.

    Source of the format: tensorflow/compiler/mlir/lite/schema/schema.fbs, read with `ai_edge_litert`'s classes.
    """

    def __init__(self, content, name="the model"):
        try:
            self._read(content)
        except DAMAGED as error:
            raise unreadable(name, error) from error

    def _read(self, content):
        from ai_edge_litert import schema_py_generated as schema

        if content[4:8] != b"TFL3":
            raise ValueError("it does not begin as one: the mark TFL3 is missing")
        self.content = content
        self.model = schema.ModelT.InitFromPackedBuf(content, 0)
        if self.model.version != 3 or not self.model.subgraphs:
            raise ValueError(f"version {self.model.version} with {len(self.model.subgraphs or ())} graphs")
        self.graph = self.model.subgraphs[0]
        self._names, types = _names(schema.BuiltinOperator), _names(schema.TensorType)
        self.buffers = [self._contents(buffer) for buffer in self.model.buffers]
        self.tensors = [self._tensor(tensor, types) for tensor in self.graph.tensors]
        self.operators = [self._operator(operator) for operator in self.graph.operators]
        self.inputs, self.outputs = self._indices(self.graph.inputs), self._indices(self.graph.outputs)
        if not (self.operators and self.inputs):
            raise ValueError("it has no operators")

    def _contents(self, buffer):
        if buffer.offset > 1:  # behind the flatbuffer: large files, and all of ai-edge-quantizer's
            if buffer.offset + buffer.size > len(self.content):
                raise ValueError("it is cut short: a buffer ends after the file")
            return np.frombuffer(self.content, np.uint8, buffer.size, buffer.offset)
        return np.empty(0, np.uint8) if buffer.data is None else buffer.data

    def _tensor(self, tensor, types):
        shape = tuple(dim if dim >= 0 else None for dim in _list(tensor.shapeSignature) or _list(tensor.shape))
        _within(tensor.buffer, self.buffers, "buffer")
        return _Tensor((tensor.name or b"").decode("utf-8", "replace"), shape, types[tensor.type], tensor.buffer)

    def _operator(self, operator):
        code = self.model.operatorCodes[_within(operator.opcodeIndex, self.model.operatorCodes, "operator code")]
        kind = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind == "CUSTOM":
            kind = f"CUSTOM {(code.customCode or b'').decode('utf-8', 'replace')}".strip()
        inputs = [None if at < 0 else at for at in _list(operator.inputs)]
        self._indices(at for at in inputs if at is not None)
        return _Operator(kind, tuple(inputs), self._indices(_list(operator.outputs)), operator.builtinOptions)

    def _indices(self, positions):
        return tuple(_within(int(at), self.tensors, "tensor") for at in positions)

    def data(self, at):
        """Stored bytes of a tensor (uint8, in the file's own memory); of size 0 where the file holds none."""
        return self.buffers[self.tensors[at].buffer]

    def floats(self, at):
        """A stored float32 tensor as an array in the file's own memory, or None."""
        if self.tensors[at].dtype != "FLOAT32" or not self.data(at).size:
            return None
        return self.data(at).view(np.float32).reshape(self.tensors[at].shape)

    @property
    def stored_bytes(self):
        """Bytes of the constant tensors (weights, biases, small constants), without names and structure."""
        return sum(self.buffers[at].size for at in {t.buffer for graph in self.model.subgraphs for t in graph.tensors})


def unreadable(name, error):
    """The one sentence for a file that cannot be read."""
    return ValueError(
        f"{name} is not a TensorFlow Lite model that can be read ({error}); convert it again, or fetch it again"
    )


def _names(enumeration):
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _list(values):
    return [] if values is None else values.tolist()


def _within(at, of, what):
    if not 0 <= at < len(of):
        raise ValueError(f"{what} {at} of {len(of)} is named")
    return at


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(graph):
    expanded = {  # tensors that are weights of the file in another dtype or layout, made once when it is loaded
        operator.outputs[0]: operator.inputs[0]
        for operator in graph.operators
        if operator.type in ("DEQUANTIZE", "DENSIFY") and operator.inputs and graph.data(operator.inputs[0]).size
    }
    rows, problems, seen = [], [], set()
    for index, operator in enumerate(graph.operators):
        at_load = operator.outputs and operator.outputs[0] in expanded
        name = graph.tensors[operator.outputs[0]].name.split(";")[0] if operator.outputs else ""
        path = name or f"{operator.type}_{index}"
        cost, problem = (Cost(), None) if at_load else _cost(graph, operator)
        if problem:
            problems.append(Unsupported(path, operator.type, problem))
        weights = [] if at_load else [expanded.get(at, at) for at in _parameters(graph, operator, expanded)]
        fresh = [at for at in dict.fromkeys(weights) if graph.tensors[at].buffer not in seen]
        seen.update(graph.tensors[at].buffer for at in fresh)
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
                params=sum(elements(graph.tensors[at].shape) for at in fresh),
                macs=cost.macs if cost else None,
                elementwise_ops=cost.elementwise if cost else None,
                activation_bytes=0 if at_load else _bytes(graph, operator.outputs),
                weight_bytes=sum(graph.data(at).size for at in fresh),
            )
        )
    return rows, problems


def _parameters(graph, operator, expanded):
    """Tensors of an operator that are weights: constants, but for those that only say how."""
    positions = ARGUMENTS.get(operator.type, ())
    inputs = list(enumerate(operator.inputs))
    kept = inputs[:1] if positions is None else [(at, tensor) for at, tensor in inputs if at not in positions]
    stored = [tensor for _, tensor in kept if tensor is not None and (graph.data(tensor).size or tensor in expanded)]
    if operator.type in WITH_BIAS:
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
    kind, options = operator.type, operator.options
    shapes = [graph.tensors[at].shape if at is not None else () for at in operator.inputs]
    strides = (options.strideH, options.strideW) if hasattr(options, "strideH") else None
    if kind in ("CONV_2D", "TRANSPOSE_CONV"):
        return shapes[1][1:3], strides, shapes[1][0]
    if kind == "DEPTHWISE_CONV_2D":
        return shapes[1][1:3], strides, shapes[1][3]
    if kind in ("CONV_3D", "CONV_3D_TRANSPOSE"):
        filters = shapes[1][4 if kind == "CONV_3D" else 3]
        return shapes[1][:3], (options.strideD, *strides) if strides else None, filters
    if kind == "FULLY_CONNECTED":
        return None, None, shapes[1][0]
    if hasattr(options, "filterHeight"):
        return (options.filterHeight, options.filterWidth), strides, None
    return None, None, None


def _cost(graph, operator):
    """(Cost or None, what is not known or None) of an operator."""
    kind, options = operator.type, operator.options
    if kind not in RULES:
        return None, "there is no rule for this operator"
    if kind in FREE:
        return Cost(), None
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


def _with_bias(macs, given, gives, at=2):
    biased = len(given) > at and given[at] is not None
    return Cost(macs, elements(gives[0]) if biased else 0)


def _conv_2d(given, gives, options):
    return _with_bias(elements(gives[0]) * product(given[1][1:]), given, gives)  # (C_out, k_h, k_w, C_in / groups)


def _depthwise(given, gives, options):
    return _with_bias(elements(gives[0]) * product(given[1][1:3]), given, gives)  # (1, k_h, k_w, C_out)


def _transpose_conv(given, gives, options):
    return _with_bias(elements(given[2]) * product(given[1][:3]), given, gives, 3)  # (C_out, k_h, k_w, C_in)


def _conv_3d(given, gives, options):
    return _with_bias(elements(gives[0]) * product(given[1][:4]), given, gives)  # (k_d, k_h, k_w, C_in, C_out)


def _conv_3d_transpose(given, gives, options):
    return _with_bias(elements(given[2]) * product(given[1][:4]), given, gives, 3)  # (k_d, k_h, k_w, C_out, C_in)


def _fully_connected(given, gives, options):
    return _with_bias(elements(gives[0]) * given[1][-1], given, gives)


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
    **dict.fromkeys(FREE),
    **{kind: lambda given, gives, options, n=n: Cost(0, n * elements(gives[0])) for kind, n in EACH.items()},
    **{kind: lambda given, gives, options: Cost(0, elements(given[0])) for kind in REDUCE},
    "ADD_N": lambda given, gives, options: Cost(0, (len(given) - 1) * elements(gives[0])),
    "CONV_2D": _conv_2d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "CONV_3D": _conv_3d,
    "CONV_3D_TRANSPOSE": _conv_3d_transpose,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "L2_POOL_2D": _pool,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _sequence_lstm,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _sequence_rnn,
}
