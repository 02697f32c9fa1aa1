"""The report of what a model costs: rows of calls, their sums, and how they are shown."""

import dataclasses
import re
import typing
import warnings

import pandas as pd

COUNTED = ["params", "macs", "flops", "elementwise_ops", "activation_bytes", "weight_bytes"]


class CostRow(typing.NamedTuple):
    """What one call costs. None stands for "not known", never for zero.

    Attributes:
        index: position in execution order.
        path: name of the call ("block_1_expand", "backbone/conv", "dense:1"; for a file the operator's output tensor).
        type: class name of the layer, or the operator's name in a `.tflite` file.
        input_shapes, output_shapes: full shapes, batch included.
        kernel, strides: tuples, or None.
        filters: output channels or units, or None.
        params: weights counted at their first use; the second call of a shared layer has 0.
        macs: multiply-accumulates; FLOPs are 2 * macs.
        elementwise_ops: additions, multiplications, comparisons and function calls outside the linear algebra.
        activation_bytes: bytes of what it gives; 0 where it hands on what the rows before it gave.
        weight_bytes: bytes of its weights as they are stored.
        way: how it was counted: "rule"; "inside" for a layer whose rows before it say what it does; "graph" for one
            that was counted, or counted in part, from the graph of the backend; "" where it was not.
        channels_first: whether axis 1 of its output holds the channels.
    """

    index: int
    path: str
    type: str
    input_shapes: tuple
    output_shapes: tuple
    kernel: tuple | None = None
    strides: tuple | None = None
    filters: int | None = None
    params: int = 0
    macs: int | None = 0
    elementwise_ops: int | None = 0
    activation_bytes: int | None = 0
    weight_bytes: int = 0
    way: str = "rule"
    channels_first: bool = False

    @property
    def flops(self):
        """2 * MACs; None where they are unknown."""
        return None if self.macs is None else 2 * self.macs


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """A call that could not be counted, or not in full.

    Attributes:
        path: name of the call.
        type: its class or operator name.
        reason: what is not known of it, and why.
    """

    path: str
    type: str
    reason: str

    def __str__(self):
        return f"{self.path} ({self.type}): {self.reason}"


def check_choice(unsupported):
    """ValueError where `unsupported` is none of the three things to do."""
    if unsupported not in ("warn", "raise", "ignore"):
        raise ValueError(f'unsupported must be "warn", "raise" or "ignore", got {unsupported!r}')


def tell(name, problems, unsupported):
    """Warn about what could not be counted, or raise, or neither."""
    if problems and unsupported != "ignore":
        shown = "; ".join(map(str, problems[:5])) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        sentence = f"{name}: not counted, so that the totals are lower bounds: {shown}"
        if unsupported == "raise":
            raise ValueError(sentence)
        warnings.warn(sentence, stacklevel=3)


def _total(field, what):
    return property(lambda report: sum(getattr(row, field) or 0 for row in report.rows), doc=what)


@dataclasses.dataclass(frozen=True)
class CostReport:
    """What every call of a model costs, and what they come to.

    Prints itself as a summary, in notebooks as a summary with the dearest calls. The totals are sums over the rows.

    Attributes:
        name: the model or file.
        rows: tuple of :class:`CostRow`, in execution order.
        batch_size: the number of inputs that was counted (a tuple where the inputs differ in it).
        convention: name of the convention.
        convention_text: what it says.
        unsupported: tuple of :class:`Unsupported`. With anything in it the totals are lower bounds.
    """

    name: str
    rows: tuple
    batch_size: int = 1
    convention: str = "exact"
    convention_text: str = ""
    unsupported: tuple = ()

    total_macs = _total("macs", "Multiply-accumulates of the whole batch.")
    total_flops = _total("flops", "2 * total_macs.")
    total_elementwise_ops = _total(
        "elementwise_ops", "Element-wise operations of the whole batch; neither in MACs nor in FLOPs."
    )
    total_params = _total("params", "Weights, each counted once.")
    total_weight_bytes = _total("weight_bytes", "Bytes of the weights as stored.")
    total_activation_bytes = _total(
        "activation_bytes", "Bytes of all outputs together (not the peak: memory is reused)."
    )

    # --- tables -------------------------------------------------------------------------------------------------------

    def to_frame(self):
        """One row a call, in execution order.

        Returns:
            DataFrame with path, type, input_shape, output_shape, kernel, strides, filters, params, macs, flops,
            elementwise_ops, activation_bytes, weight_bytes, way (how it was counted), share (of all MACs) and
            cumulative_share. What is not known is <NA>.
        """
        frame = pd.DataFrame(
            {
                "path": [row.path for row in self.rows],
                "type": [row.type for row in self.rows],
                "input_shape": [_single(row.input_shapes) for row in self.rows],
                "output_shape": [_single(row.output_shapes) for row in self.rows],
                "kernel": [row.kernel for row in self.rows],
                "strides": [row.strides for row in self.rows],
                "filters": pd.array([row.filters for row in self.rows], dtype="Int64"),
                **{name: pd.array([getattr(row, name) for row in self.rows], dtype="Int64") for name in COUNTED},
                "way": [row.way for row in self.rows],
            },
            index=pd.Index([row.index for row in self.rows], name="call"),
        )
        return _with_shares(frame, self.total_macs)

    def top(self, n=10):
        """The dearest calls by MACs, at least `n` of them: calls that tie with the last one are all there.

        Returns:
            DataFrame as :meth:`to_frame`, dearest first, with `rank` in front: "1", or "4=" for every call of a tie.

        Raises:
            ValueError: `n` is less than 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        frame = self.to_frame()
        frame = frame[frame["macs"].notna() & (frame["macs"] > 0)]
        frame = frame.sort_values("macs", ascending=False, kind="stable")
        if len(frame) > n:
            frame = frame[frame["macs"] >= frame["macs"].iloc[n - 1]]
        ranks = frame["macs"].rank(method="min", ascending=False).astype(int)
        tied = frame["macs"].duplicated(keep=False)
        frame.insert(0, "rank", [f"{rank}=" if tie else str(rank) for rank, tie in zip(ranks, tied, strict=True)])
        return _with_shares(frame, self.total_macs)

    def by_type(self):
        """Sums by layer or operator type, dearest first: calls, params, macs, flops, elementwise_ops, bytes, share."""
        return self._grouped("type", self.to_frame()["type"])

    def by_block(self, depth=1):
        """Sums by block of the network, in execution order.

        A block is the first `depth` parts of a path. Parts end at "/" and at "_", where a bare number belongs to the
        word before it: "block_1_expand" is block_1 / expand, "conv2_block1_1_conv" is conv2 / block1 / 1 / conv.

        Args:
            depth: how many parts make a block, from 1.

        Raises:
            ValueError: `depth` is less than 1.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        return self._grouped("block", [block_of(row.path, depth) for row in self.rows], sort=False)

    def by_resolution(self):
        """Sums by size of the grid, from the photo to the last one: what stands between two halvings.

        Calls on a grid of one cell (squeeze-and-excitation) belong to the row before them; calls whose output has no
        grid (dense layers) are not in it.

        Returns:
            DataFrame, one row a run of calls with outputs of the same height and width: side (height, px), channels
            (of the last of them), layers (calls that multiply), macs, share (of all MACs of the model).

        Example:
            >>> import keras
            >>> from utils import flops
            >>> image = keras.Input((8, 8, 3))
            >>> model = keras.Model(image, keras.layers.Conv2D(4, 2, strides=2)(image))
            >>> flops.count(model).by_resolution()["macs"].tolist()
            [0, 768]
        """
        stages = []
        for row in self.rows:
            if len(row.output_shapes) != 1 or len(row.output_shapes[0]) != 4:
                continue
            shape = row.output_shapes[0]
            grid, channels = (shape[2:], shape[1]) if row.channels_first else (shape[1:3], shape[3])
            if not stages or grid not in (stages[-1]["grid"], (1, 1)):
                stages.append({"grid": grid, "side": grid[0], "channels": 0, "layers": 0, "macs": 0})
            if grid == stages[-1]["grid"]:
                stages[-1]["channels"] = channels
            stages[-1]["layers"] += bool(row.macs)
            stages[-1]["macs"] += row.macs or 0
        frame = pd.DataFrame(stages, columns=["grid", "side", "channels", "layers", "macs"])
        return _with_shares(frame.drop(columns="grid"), self.total_macs)

    def _grouped(self, name, keys, sort=True):
        frame = self.to_frame()
        groups = frame.groupby(pd.Series(list(keys), index=frame.index, name=name), sort=False)
        sums = groups[COUNTED].sum()
        sums.insert(0, "calls", groups.size())
        if sort:
            sums = sums.sort_values(["macs", "elementwise_ops"], ascending=False, kind="stable")
        return _with_shares(sums, self.total_macs)

    # --- text ---------------------------------------------------------------------------------------------------------

    def summary(self):
        """The totals in a few lines."""
        least = "at least " if self.unsupported else ""
        elementwise = human(self.total_elementwise_ops).strip()
        lines = [
            f"{self.name}: {least}{self.total_macs:,} MACs ({human(self.total_macs).strip()}) = "
            f"{self.total_flops:,} FLOPs, batch {self.batch_size}",
            f"{least}{elementwise} element-wise operations, {self.total_params:,} parameters "
            f"({human(self.total_weight_bytes)}B), {human(self.total_activation_bytes)}B of activations, "
            f"{len(self.rows)} calls",
            f"convention {self.convention!r}: {self.convention_text}",
        ]
        return lines + [f"not counted: {one}" for one in self.unsupported]

    def __repr__(self):
        return "\n".join(self.summary())

    def _repr_html_(self):
        import html

        lines = "<br>".join(html.escape(line) for line in self.summary())
        return f"<p>{lines}</p>{_readable(self.top(10)).to_html(index=False, border=0)}" if self.total_macs else lines


def block_of(path, depth):
    """The first `depth` parts of a path, see :meth:`CostReport.by_block`.

    Example:
        >>> block_of("block_1_expand", 1), block_of("conv2_block1_1_conv", 2), block_of("backbone/block2a_dwconv", 2)
        ('block_1', 'conv2_block1', 'backbone/block2a')
    """
    taken, left = [], depth
    for level in path.split("/"):
        parts = []
        for word in level.split("_"):
            if parts and word.isdigit() and not re.search(r"\d", parts[-1]):
                parts[-1] += f"_{word}"
            else:
                parts.append(word)
        taken.append("_".join(parts[:left]))
        left -= len(parts)
        if left <= 0:
            break
    return "/".join(taken)


def human(value):
    """A number with a metric prefix: 300774272 -> "300.8 M"; small numbers as they are.

    Example:
        >>> human(300774272), human(980), human(None)
        ('300.8 M', '980 ', '?')
    """
    if value is None or value is pd.NA:
        return "?"
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.{2 if value < 10 * factor else 1}f} {prefix}"
    return f"{value} "


def _readable(frame):
    """A frame for reading: fewer columns, human units."""
    shown = pd.DataFrame(index=frame.index)
    if "rank" in frame:
        shown["rank"] = frame["rank"]
    shown["layer"], shown["type"] = frame["path"], frame["type"]
    shown["input"], shown["output"] = frame["input_shape"].map(_shape_text), frame["output_shape"].map(_shape_text)
    shown["kernel"] = [_shape_text(kernel) if kernel else "" for kernel in frame["kernel"]]
    for title, column in (("params", "params"), ("MACs", "macs"), ("FLOPs", "flops"), ("el.-wise", "elementwise_ops")):
        shown[title] = [human(value).strip() for value in frame[column]]
    shown["share"] = [f"{share:.1%}" if pd.notna(share) else "?" for share in frame["share"]]
    return shown


def _shape_text(shape):
    if shape and isinstance(shape[0], tuple):
        return " + ".join(map(_shape_text, shape))
    return "×".join("?" if dim is None else str(dim) for dim in shape)


def _single(shapes):
    return shapes[0] if len(shapes) == 1 else shapes


def _with_shares(frame, total):
    macs = frame["macs"].astype("Float64")
    frame = frame.drop(columns=["share", "cumulative_share"], errors="ignore")
    frame["share"] = macs / total if total else macs * 0
    frame["cumulative_share"] = frame["share"].fillna(0).cumsum()
    return frame
