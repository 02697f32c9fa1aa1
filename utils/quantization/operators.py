"""Time by operator of a .tflite file, beside its multiply-accumulates: which layers are slow for their arithmetic.

ai-edge-litert's Python interpreter has no profiler to switch on. So the file is cut: every operator becomes a file of
its own, with its own weights and the same delegate, and all of them are timed in interleaved rounds ("alone"); or the
file is cut after the 1st, 2nd, 3rd ... operator and the time of an operator is the difference of two neighbours
("difference"), which includes what neighbours do to each other's caches and sums to the whole, but is noisy.
"""

import dataclasses

import numpy as np
import pandas as pd
from ai_edge_litert import schema_py_generated as schema

from utils import latency
from utils.classify.interpreter import open_interpreter

METHODS = ("alone", "difference")
_BUILTIN = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
_BEHIND_FILE = 1  # offsets above this say that a buffer's bytes lie behind the flatbuffer


@dataclasses.dataclass(frozen=True, repr=False)
class OperatorTimes:
    """Time and arithmetic of every operator.

    Attributes:
        frame: DataFrame, one row an operator in execution order: index, operator (BuiltinOperator's name), name (the
            Keras layer, where the tensor's name tells), output_shape, macs, time_ms (median), lower_quartile_ms,
            upper_quartile_ms, share (of the sum), gmacs_per_s (NaN without MACs).
        whole_ms: median of the whole file in the same rounds; sum_ms: sum of the operators' medians.
        method, threads, kernels: how it was measured.
        machine: the machine's description.
    """

    frame: pd.DataFrame
    whole_ms: float
    sum_ms: float
    method: str
    threads: int
    kernels: str
    machine: str

    def to_frame(self):
        """The table of operators."""
        return self.frame

    def slow_for_arithmetic(self, n=10):
        """The `n` operators that lose most time against the network's median speed, in ms; largest loss first.

        Operators without MACs (pooling, addition, padding) are measured against zero: all their time is lost.
        """
        frame = self.frame.copy()
        pace = frame["gmacs_per_s"].median()
        frame["lost_ms"] = frame["time_ms"] - frame["macs"] / (pace * 1e6)
        return frame.sort_values("lost_ms", ascending=False).head(n).reset_index(drop=True)

    def by_operator(self):
        """Time, MACs and speed by kind of operator, the dearest first."""
        frame = self.frame.groupby("operator", as_index=False).agg(
            operators=("index", "size"), time_ms=("time_ms", "sum"), macs=("macs", "sum")
        )
        frame["share"] = frame["time_ms"] / frame["time_ms"].sum()
        frame["gmacs_per_s"] = (frame["macs"] / (frame["time_ms"] * 1e6)).where(frame["macs"] > 0)
        return frame.sort_values("time_ms", ascending=False).reset_index(drop=True)

    def __repr__(self):
        return (
            f"{len(self.frame)} operators ({self.method}, {self.kernels}, {self.threads} threads): together "
            f"{self.sum_ms:.3f} ms, the whole file {self.whole_ms:.3f} ms; {self.machine}"
        )

    def _repr_html_(self):
        return f"{self.by_operator().round(3).to_html(index=False)}<p>{self!r}</p>"


def per_operator_times(
    content, threads=1, kernels="xnnpack", method="alone", rounds=10, calls=5, budget_s=60.0, macs=None, seed=0
):
    """Time every operator of a .tflite file, beside the MACs counted from the same file.

    Args:
        content: bytes of a .tflite file with one subgraph.
        threads: of the interpreter.
        kernels: "xnnpack", "builtin" or "reference".
        method: "alone" or "difference", see the module's head.
        rounds, calls, budget_s, seed: as for `latency.measure`.
        macs: {operator index: MACs}; counted by `flops.count_tflite` unless given.

    Returns:
        OperatorTimes.

    Raises:
        ValueError: damaged file, several subgraphs, unknown method or kernels, zero threads.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"{threads!r} threads cannot compute; give a whole number from 1 up")
    graph = _Graph(content)
    pieces = graph.pieces(method)
    rows = {f"{place}": _Runner(piece, threads, kernels, seed) for place, piece in pieces.items()}
    rows["whole"] = _Runner(content, threads, kernels, seed)
    timings = latency.measure(rows, rounds=rounds, calls=calls, budget_s=budget_s, baseline="whole", seed=seed)
    times = timings.absolute()
    whole = float(times.loc["whole", "median_ms"])
    columns = ["time_ms", "lower_quartile_ms", "upper_quartile_ms"]
    measured = times.drop(index="whole").set_axis(columns, axis="columns")
    if method == "difference":
        table = timings.samples.pivot_table(index="round", columns="name", values="time_ms", aggfunc="first")
        table = table[[str(place) for place in pieces]].interpolate(limit_direction="both")
        steps = table.diff(axis="columns")
        steps.iloc[:, 0] = table.iloc[:, 0]
        measured = steps.quantile([0.5, 0.25, 0.75]).T.set_axis(columns, axis="columns")
    frame = graph.table(pieces, _macs(content) if macs is None else macs)
    frame[columns] = measured.to_numpy()
    frame["share"] = frame["time_ms"] / frame["time_ms"].sum()
    frame["gmacs_per_s"] = (frame["macs"] / (frame["time_ms"] * 1e6)).where(
        (frame["macs"] > 0) & (frame["time_ms"] > 0)
    )
    total = float(frame["time_ms"].sum())
    return OperatorTimes(frame, whole, total, method, threads, kernels, timings.machine)


def _macs(content):
    """{operator index: MACs} as counted from the file."""
    from utils import flops

    return {row.index: row.macs or 0 for row in flops.count_tflite(content, unsupported="ignore").rows}


class _Runner:
    """One interpreter with noise at its inputs; a call is one invocation."""

    def __init__(self, content, threads, kernels, seed):
        self.threads = threads
        self.interpreter = open_interpreter(content, threads, kernels)
        rng = np.random.default_rng(seed)
        for detail in self.interpreter.get_input_details():
            dtype = np.dtype(detail["dtype"])
            noise = rng.uniform(0, 1 if dtype.kind == "f" else 100, detail["shape"])
            self.interpreter.set_tensor(detail["index"], noise.astype(dtype))

    def __call__(self):
        self.interpreter.invoke()


class _Graph:
    """A .tflite file taken apart."""

    def __init__(self, content):
        open_interpreter(content, kernels="builtin")  # refuses damaged and foreign bytes by name
        self.content = bytes(content)
        self.model = schema.ModelT.InitFromPackedBuf(bytearray(self.content), 0)
        if len(self.model.subgraphs) != 1:
            raise ValueError(
                f"the file has {len(self.model.subgraphs)} subgraphs; operators are timed in files with one "
                "(no loops or branches)"
            )
        self.graph = self.model.subgraphs[0]
        self.data = [self._bytes(buffer) for buffer in self.model.buffers]
        self.maker = {int(key): place for place, op in enumerate(self.graph.operators) for key in op.outputs}
        self.constant = {}

    def _bytes(self, buffer):
        if buffer.offset and buffer.offset > _BEHIND_FILE:  # large files and ai-edge-quantizer's
            start, size = buffer.offset, buffer.size
            return np.frombuffer(self.content, np.uint8, size, start)
        return buffer.data

    def is_constant(self, key):
        """Whether a tensor is known before any photo comes: stored, or made of stored ones (dequantized weights)."""
        key = int(key)
        if key < 0:
            return True
        if key not in self.constant:
            data = self.data[self.graph.tensors[key].buffer]
            stored = data is not None and len(data) > 0
            computed = key in self.maker and all(
                self.is_constant(other) for other in self.graph.operators[self.maker[key]].inputs
            )
            self.constant[key] = stored or computed
        return self.constant[key]

    def pieces(self, method):
        """{place: bytes} of the operators that work on photos, each alone or with everything before it."""
        places = [
            place
            for place, op in enumerate(self.graph.operators)
            if not all(self.is_constant(key) for key in op.outputs)
        ]
        found = {}
        for number, place in enumerate(places):
            found[place] = self.cut([place] if method == "alone" else places[: number + 1])
        return found

    def cut(self, places):
        """Bytes of a file that holds these operators, and those that prepare their constants."""
        wanted, todo = set(places), list(places)
        while todo:
            for key in self.graph.operators[todo.pop()].inputs:
                maker = self.maker.get(int(key))
                if maker is not None and maker not in wanted and self.is_constant(key):
                    wanted.add(maker)
                    todo.append(maker)
        operators = [self.graph.operators[place] for place in sorted(wanted)]
        made = {int(key) for op in operators for key in op.outputs}
        read = [int(key) for op in operators for key in op.inputs if key >= 0]
        inputs = list(dict.fromkeys(key for key in read if key not in made and not self.is_constant(key)))
        outputs = [int(key) for key in self.graph.operators[places[-1]].outputs]
        return self._pack(operators, inputs, outputs, made | set(read))

    def _pack(self, operators, inputs, outputs, used):
        import flatbuffers

        keys = sorted(used)
        renumber = {key: number for number, key in enumerate(keys)} | {-1: -1}
        buffers, tensors = [schema.BufferT()], []
        for key in keys:
            tensor = _shallow(self.graph.tensors[key])
            data = self.data[tensor.buffer]
            tensor.buffer = 0
            if data is not None and len(data):
                buffer = schema.BufferT()
                buffer.data = np.asarray(data, np.uint8)
                tensor.buffer = len(buffers)
                buffers.append(buffer)
            tensors.append(tensor)
        cut = []
        for op in operators:
            op = _shallow(op)
            op.inputs = [renumber[int(key)] for key in op.inputs]
            op.outputs = [renumber[int(key)] for key in op.outputs]
            cut.append(op)
        graph = schema.SubGraphT()
        graph.tensors, graph.operators = tensors, cut
        graph.inputs = [renumber[key] for key in inputs]
        graph.outputs = [renumber[key] for key in outputs]
        model = schema.ModelT()
        model.version, model.operatorCodes = self.model.version, self.model.operatorCodes
        model.subgraphs, model.buffers = [graph], buffers
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def table(self, places, macs):
        """Names, shapes and MACs of the operators at these places."""
        from utils.quantization.error import tensor_layers

        layers, rows = tensor_layers(self.content), []
        for place in places:
            op = self.graph.operators[place]
            code = self.model.operatorCodes[op.opcodeIndex]
            output = self.graph.tensors[int(op.outputs[0])]
            name = output.name.decode() if isinstance(output.name, bytes) else output.name
            rows.append(
                {
                    "index": place,
                    "operator": _BUILTIN[max(code.builtinCode, code.deprecatedBuiltinCode)],
                    "name": layers.get(name, name),
                    "output_shape": "x".join(str(int(side)) for side in output.shape),
                    "macs": int(macs.get(place, 0)),
                }
            )
        return pd.DataFrame(rows)


def _shallow(record):
    copy = type(record).__new__(type(record))
    copy.__dict__.update(record.__dict__)
    return copy
