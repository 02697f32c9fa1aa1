"""Time by operator of a .tflite file, beside its multiply-accumulates: which layers are slow for their arithmetic.

ai-edge-litert's Python interpreter has no profiler to switch on. So the file is cut: every operator becomes a file of
its own, with its own weights and the same delegate, and all of them are timed in interleaved rounds.
"""

import copy
import dataclasses

import numpy as np
import pandas as pd

from utils import latency
from utils.classify import open_interpreter

from .convert import layer_name, open_file


@dataclasses.dataclass(frozen=True, repr=False)
class OperatorTimes:
    """Time and arithmetic of every operator.

    Attributes:
        frame: DataFrame, one row an operator in execution order: index, operator (BuiltinOperator's name), name (the
            Keras layer, where the tensor's name tells), output_shape, macs, time_ms (median), lower_quartile_ms,
            upper_quartile_ms, share (of the sum), gmacs_per_s (NaN without MACs).
        whole_ms: median of the whole file in the same rounds; sum_ms: sum of the operators' medians.
        threads, kernels: how it was measured.
        machine: the machine's description.
    """

    frame: pd.DataFrame
    whole_ms: float
    sum_ms: float
    threads: int
    kernels: str
    machine: str

    def slow_for_arithmetic(self, n=10):
        """The `n` operators that lose most time against the network's median speed, in ms; largest loss first.

        Operators without MACs (pooling, addition, padding) are measured against zero: all their time is lost.
        """
        frame = self.frame.copy()
        pace = frame["gmacs_per_s"].median()
        frame["lost_ms"] = frame["time_ms"] - frame["macs"] / (pace * 1e6)
        return frame.sort_values("lost_ms", ascending=False).head(n).reset_index(drop=True)

    def by_operator(self):
        """Time, MACs and speed by kind of operator, the slowest first."""
        frame = self.frame.groupby("operator", as_index=False).agg(
            operators=("index", "size"), time_ms=("time_ms", "sum"), macs=("macs", "sum")
        )
        frame["share"] = frame["time_ms"] / frame["time_ms"].sum()
        frame["gmacs_per_s"] = (frame["macs"] / (frame["time_ms"] * 1e6)).where(frame["macs"] > 0)
        return frame.sort_values("time_ms", ascending=False).reset_index(drop=True)

    def __repr__(self):
        return (
            f"{len(self.frame)} operators ({self.kernels}, {self.threads} threads): together "
            f"{self.sum_ms:.3f} ms, the whole file {self.whole_ms:.3f} ms; {self.machine}"
        )

    def _repr_html_(self):
        return f"{self.by_operator().round(3).to_html(index=False)}<p>{self!r}</p>"


def per_operator_times(content, threads=1, kernels="xnnpack", rounds=10, calls=5, budget_s=60.0, seed=0):
    """Time every operator of a .tflite file, beside the MACs counted from the same file.

    Args:
        content: bytes of a .tflite file with one subgraph.
        threads: of the interpreter.
        kernels: "xnnpack", "builtin" or "reference".
        rounds, calls, budget_s, seed: as for `latency.measure`.

    Returns:
        OperatorTimes.

    Raises:
        ValueError: damaged file, several subgraphs, unknown kernels, a thread count that is not a positive integer.
    """
    from utils import flops

    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a positive integer, got {threads!r}")
    pieces = Pieces(content)
    rows = {str(place): _Runner(pieces.cut(place), threads, kernels, seed) for place in pieces.places}
    rows["whole"] = _Runner(content, threads, kernels, seed)
    timings = latency.measure(rows, rounds=rounds, calls=calls, budget_s=budget_s, baseline="whole", seed=seed)
    times = timings.absolute()
    counted = flops.count_tflite(content, unsupported="ignore").rows
    frame = pd.DataFrame([pieces.describe(place) | {"macs": int(counted[place].macs or 0)} for place in pieces.places])
    frame[["time_ms", "lower_quartile_ms", "upper_quartile_ms"]] = times.drop(index="whole").to_numpy()
    frame["share"] = frame["time_ms"] / frame["time_ms"].sum()
    frame["gmacs_per_s"] = (frame["macs"] / (frame["time_ms"] * 1e6)).where(
        (frame["macs"] > 0) & (frame["time_ms"] > 0)
    )
    whole, total = float(times.loc["whole", "median_ms"]), float(frame["time_ms"].sum())
    return OperatorTimes(frame, whole, total, threads, kernels, timings.machine)


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


class Pieces:
    """A .tflite file, to be cut into one file for each operator that works on photos."""

    def __init__(self, content):
        open_interpreter(content, kernels="builtin")  # refuses damaged and foreign bytes by name
        self.file = open_file(content)
        if len(self.file.model.subgraphs) != 1:
            raise ValueError(
                f"expected a file with one subgraph (no loops or branches), got {len(self.file.model.subgraphs)}; "
                "convert the model without them"
            )
        self.maker = {at: place for place, op in enumerate(self.file.operators) for at in op.outputs}
        self.constant = {}
        self.places = [
            place for place, op in enumerate(self.file.operators) if not all(self._is_constant(at) for at in op.outputs)
        ]

    def _is_constant(self, at):
        """Whether a tensor is known before any photo comes: stored, or made of stored ones (dequantized weights)."""
        if at not in self.constant:
            self.constant[at] = bool(self.file.data(at).size) or (
                at in self.maker
                and all(self._is_constant(i) for i in self.file.operators[self.maker[at]].inputs if i is not None)
            )
        return self.constant[at]

    def cut(self, place):
        """Bytes of a file that holds this operator, and those that prepare its constants."""
        wanted, todo = {place}, [place]
        while todo:
            for at in self.file.operators[todo.pop()].inputs:
                maker = self.maker.get(at)
                if maker is not None and maker not in wanted and self._is_constant(at):
                    wanted.add(maker)
                    todo.append(maker)
        operators = [self.file.operators[place] for place in sorted(wanted)]
        made = {at for op in operators for at in op.outputs}
        read = [at for op in operators for at in op.inputs if at is not None]
        inputs = list(dict.fromkeys(at for at in read if at not in made and not self._is_constant(at)))
        return self._pack(sorted(wanted), inputs, self.file.operators[place].outputs, sorted(made | set(read)))

    def _pack(self, places, inputs, outputs, used):
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        renumber = {at: number for number, at in enumerate(used)} | {-1: -1}
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, model.buffers = [], [], [schema.BufferT()]
        for at in used:
            tensor = copy.copy(self.file.graph.tensors[at])
            tensor.buffer = 0
            if self.file.data(at).size:
                tensor.buffer = len(model.buffers)
                model.buffers.append(schema.BufferT(data=self.file.data(at)))
            graph.tensors.append(tensor)
        for place in places:
            operator = copy.copy(self.file.graph.operators[place])
            operator.inputs = [renumber[int(at)] for at in operator.inputs]
            operator.outputs = [renumber[int(at)] for at in operator.outputs]
            graph.operators.append(operator)
        graph.inputs, graph.outputs = [renumber[at] for at in inputs], [renumber[at] for at in outputs]
        model.version, model.operatorCodes = self.file.model.version, self.file.model.operatorCodes
        model.subgraphs = [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def describe(self, place):
        """Kind, layer and output shape of an operator."""
        operator = self.file.operators[place]
        output = self.file.tensors[operator.outputs[0]]
        converts = operator.type in ("QUANTIZE", "DEQUANTIZE")
        return {
            "index": place,
            "operator": operator.type,
            "name": output.name if converts else layer_name(output.name, operator.type),
            "output_shape": "x".join(map(str, output.shape)),
        }
