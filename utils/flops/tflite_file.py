"""A `.tflite` file taken apart: its graphs, operators, tensors and stored bytes, read from the flatbuffer."""

import collections
import copy
import struct

import numpy as np

_Tensor = collections.namedtuple("_Tensor", "name shape dtype buffer")
_Operator = collections.namedtuple("_Operator", "type inputs outputs options")
DAMAGED = (
    struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


class File:
    """A `.tflite` file taken apart; every index is checked.

    Args:
        content: bytes, or a bytearray whose weights may then be changed in place.

    Attributes:
        model: the schema's object (`ModelT`); graph: its main graph, the first one.
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
        self._names, self._types = _names(schema.BuiltinOperator), _names(schema.TensorType)
        self.buffers, self.known = [self._contents(buffer) for buffer in self.model.buffers], {}
        self.enter(0)
        if not (self.operators and self.inputs):
            raise ValueError("it has no operators")

    def enter(self, number):
        """Make another graph of the file the main one."""
        self.graph = self.model.subgraphs[_within(number, self.model.subgraphs, "graph")]
        self.tensors = [self._tensor(tensor, (number, at)) for at, tensor in enumerate(self.graph.tensors)]
        self.operators = [self._operator(operator) for operator in self.graph.operators or ()]
        self.inputs, self.outputs = self._indices(_list(self.graph.inputs)), self._indices(_list(self.graph.outputs))

    def inner(self, number):
        """The same file with another main graph."""
        other = copy.copy(self)
        other.enter(number)
        return other

    def _contents(self, buffer):
        if buffer.offset > 1:  # behind the flatbuffer: large files, and all of ai-edge-quantizer's
            if buffer.offset + buffer.size > len(self.content):
                raise ValueError("it is cut short: a buffer ends after the file")
            return np.frombuffer(self.content, np.uint8, buffer.size, buffer.offset)
        return np.empty(0, np.uint8) if buffer.data is None else buffer.data

    def _tensor(self, tensor, place):
        shape = tuple(dim if dim >= 0 else None for dim in _list(tensor.shapeSignature) or _list(tensor.shape))
        shape = self.known.get(place, shape) if None in shape else shape
        _within(tensor.buffer, self.buffers, "buffer")
        dtype = self._types.get(tensor.type, f"TYPE {tensor.type}")
        return _Tensor((tensor.name or b"").decode("utf-8", "replace"), shape, dtype, tensor.buffer)

    def _operator(self, operator):
        code = self.model.operatorCodes[_within(operator.opcodeIndex, self.model.operatorCodes, "operator code")]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        kind = self._names.get(number, f"OPERATOR {number}")  # of a newer schema than ours
        if kind == "CUSTOM":
            kind = f"CUSTOM {(code.customCode or b'').decode('utf-8', 'replace')}".strip()
        inputs = [None if at < 0 else at for at in _list(operator.inputs)]
        self._indices(at for at in inputs if at is not None)
        return _Operator(
            kind,
            tuple(inputs),
            self._indices(_list(operator.outputs)),
            operator.builtinOptions or operator.builtinOptions2,
        )

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
