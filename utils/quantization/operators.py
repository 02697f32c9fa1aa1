"""Time by operator of a .tflite file, beside its multiply-accumulates: which layers are slow for their arithmetic.

The file is cut: every operator becomes a file of its own, with its weights and the same delegate, fed with what a run
of the whole file gives it, and all of them are timed in interleaved rounds.
"""

import copy
import dataclasses

import numpy as np
import pandas as pd

from utils import latency
from utils.classify import checked_threads, open_interpreter, read_model, try_apart
from utils.environment import quiet

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
        content: bytes (or path) of a .tflite file with one subgraph, by this project, the converter or others.
        threads: of the interpreter.
        kernels: "xnnpack", "builtin" or "reference".
        rounds, calls, budget_s, seed: as for `latency.measure`.

    Returns:
        OperatorTimes.

    Raises:
        ValueError: damaged file, several subgraphs, variables, unknown kernels, threads that are no positive integer.
    """
    from utils import flops

    checked_threads(threads)
    content = bytes(read_model(content)[1])
    try_apart([(content, None)], ["the file"], kernels)
    pieces = Pieces(content, seed)
    cut = {place: pieces.cut(place) for place in pieces.places}
    try_apart(list(cut.values()), [f"operator {at}, {pieces.file.operators[at].type}," for at in cut], kernels)
    rows = {str(place): _Runner(*piece, threads, kernels) for place, piece in cut.items()}
    rows["whole"] = _Runner(content, [pieces.computed[at] for at in pieces.file.inputs], threads, kernels)
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
    """One interpreter with its inputs set; a call is one invocation."""

    def __init__(self, content, values, threads, kernels):
        self.threads = threads
        self.interpreter = open_interpreter(content, threads, kernels)
        for detail, value in zip(self.interpreter.get_input_details(), values, strict=True):
            self.interpreter.set_tensor(detail["index"], value)

    def __call__(self):
        self.interpreter.invoke()


class Pieces:
    """A .tflite file, to be cut into one file for each operator that works on photos."""

    def __init__(self, content, seed=0):
        with quiet():  # the interpreter warns that keeping tensors is for debugging
            interpreter = open_interpreter(content, kernels="builtin", keep_tensors=True)  # refuses damaged bytes
        self.file = open_file(content)
        if len(self.file.model.subgraphs) != 1:
            raise ValueError(
                f"expected a file with one subgraph (no loops or branches), got {len(self.file.model.subgraphs)}; "
                "convert the model without them"
            )
        if any(tensor.dtype in ("RESOURCE", "VARIANT") for tensor in self.file.tensors):
            raise ValueError("expected a file without variables that outlive a call, which no piece of it would have")
        self.maker = {at: place for place, op in enumerate(self.file.operators) for at in op.outputs}
        # Known before a photo comes: stored, made of such, or a state that starts at 0.
        self.constant = {
            at for at, tensor in enumerate(self.file.graph.tensors) if self.file.data(at).size or tensor.isVariable
        }
        for op in self.file.operators:
            if self.constant.issuperset(at for at in op.inputs if at is not None):
                self.constant.update(op.outputs)
        self.places = [
            place for place, op in enumerate(self.file.operators) if not self.constant.issuperset(op.outputs)
        ]
        _feed_noise(interpreter, np.random.default_rng(seed))
        read = {at for op in self.file.operators for at in (*op.inputs, *op.outputs) if at is not None}
        self.computed = {at: interpreter.get_tensor(at) for at in read - self.constant}

    def cut(self, place):
        """(bytes of a file that holds this operator and those that prepare its constants, values of its inputs)."""
        wanted, todo = {place}, [place]
        while todo:
            for at in self.file.operators[todo.pop()].inputs:
                maker = self.maker.get(at)
                if maker is not None and maker not in wanted and at in self.constant:
                    wanted.add(maker)
                    todo.append(maker)
        operators = [self.file.operators[place] for place in sorted(wanted)]
        made = {at for op in operators for at in op.outputs}
        read = [at for op in operators for at in op.inputs if at is not None]
        inputs = list(dict.fromkeys(at for at in read if at not in made | self.constant))
        content = self._pack(sorted(wanted), inputs, self.file.operators[place].outputs, made | set(read))
        return content, [self.computed[at] for at in inputs]

    def _pack(self, places, inputs, outputs, used):
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        beside = [at for place in places for at in _list(self.file.graph.operators[place].intermediates) if at >= 0]
        beside += [at for key in used for at in _block_scales(self.file.graph.tensors[key]) if at >= 0]
        used = sorted({*used, *beside})
        renumber = {at: number for number, at in enumerate(used)} | {-1: -1}
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, model.buffers = [], [], [schema.BufferT()]
        for at in used:
            tensor = copy.copy(self.file.graph.tensors[at])
            if at in self.computed:  # as it was, where the file leaves dimensions open
                tensor.shape, tensor.shapeSignature = self.computed[at].shape, None
            if _block_scales(tensor):
                tensor.quantization = copy.copy(tensor.quantization)
                tensor.quantization.details = details = copy.copy(tensor.quantization.details)
                details.scales, details.zeroPoints = renumber[details.scales], renumber[details.zeroPoints]
            tensor.buffer = 0
            if self.file.data(at).size:
                tensor.buffer = len(model.buffers)
                model.buffers.append(schema.BufferT(data=self.file.data(at)))
            graph.tensors.append(tensor)
        for place in places:
            operator = copy.copy(self.file.graph.operators[place])
            for key in ("inputs", "outputs", "intermediates"):
                setattr(operator, key, [renumber[at] for at in _list(getattr(operator, key))])
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
            "output_shape": "x".join(map(str, self.computed[operator.outputs[0]].shape)),
        }


def _feed_noise(interpreter, rng):
    for top in (100, 1):  # where 100 is no index of a table, 0 is
        for detail in interpreter.get_input_details():
            dtype = np.dtype(detail["dtype"])
            noise = rng.uniform(0, 1 if dtype.kind == "f" else top, detail["shape"])
            interpreter.set_tensor(detail["index"], noise.astype(dtype))
        try:
            return interpreter.invoke()
        except RuntimeError as error:
            failed = error
    raise ValueError(f"the file cannot run on noise ({' '.join(str(failed).split())[:120]})") from failed


def _list(values):
    return [] if values is None else [int(at) for at in values]


def _block_scales(tensor):
    """Tensors that hold the scales and zero points of another one's blocks."""
    details = getattr(tensor.quantization, "details", None)
    return [details.scales, details.zeroPoints] if hasattr(details, "blockSize") else []
