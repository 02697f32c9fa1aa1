"""utils.plots.deploy: figures show the numbers that they are given."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from utils.plots import deploy as plots


def texts(figure):
    figure.draw_without_rendering()
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    found += [text.get_text() for text in figure.texts]
    for axis in figure.axes:
        found += [label.get_text() for label in axis.get_yticklabels()]
        found += [text.get_text() for text in (axis.get_legend().get_texts() if axis.get_legend() else ())]
    return "\n".join(found)


@pytest.fixture
def schemes():
    table = pd.DataFrame(
        {"scheme": ["float32", "int8"], "size_bytes": [13_500_000, 3_980_000], "accuracy": [0.93, 0.927]}
    )
    return table.assign(accuracy_low=table["accuracy"] - 0.03, accuracy_high=table["accuracy"] + 0.02)


@pytest.fixture
def ratios():
    table = pd.DataFrame({"name": ["LiteRT float32", "Keras predict", "onnxruntime"], "ratio": [1.0, 7.2, np.nan]})
    table = table.assign(
        ratio_low=table["ratio"] * 0.9, ratio_high=table["ratio"] * 1.1, note=["", "", "not installed"]
    )
    table.attrs["baseline"] = "LiteRT float32"
    return table


def test_accuracy_against_size(schemes):
    figure = plots.accuracy_against_size(schemes, reference=0.935)
    assert isinstance(figure, Figure)
    assert figure.dpi == 100
    shown = texts(figure)
    assert "int8: 3.98 MB, 92.7%" in shown
    assert "Keras model: 93.5%" in shown
    points = [container.lines[0].get_xydata()[0].tolist() for container in figure.axes[0].containers]
    assert points == [[13.5, 0.93], [3.98, 0.927]]
    both = pd.concat([schemes.assign(model="A"), schemes.assign(model="B")])
    assert "B, float32: 13.50 MB" in texts(plots.accuracy_against_size(both))


def test_quantization_error_names_the_worst():
    errors = pd.DataFrame({"layer": list("abcdef"), "SQNR (dB)": [30, 12.5, 40, 8.25, 33, 35]})
    shown = texts(plots.quantization_error(errors, worst=2))
    assert "1. d: 8.25" in shown
    assert "2. b: 12.5" in shown
    assert "3. " not in shown
    larger = texts(plots.quantization_error(errors, worst=1, lower_is_worse=False))
    assert "1. c: 40" in larger


def test_latency_ratios(ratios):
    figure = plots.latency_ratios(ratios)
    axis = figure.axes[0]
    shown = texts(figure)
    assert axis.get_xscale() == "log"
    assert "7.2" in shown
    assert "not installed" in shown
    assert "Keras predict" in shown
    assert "relative to LiteRT float32" in axis.get_xlabel()
    low, high = axis.get_ylim()
    assert low < 0
    assert high > 2


def test_pruning_curves():
    table = pd.DataFrame(
        {
            "kind": ["weights", "weights", "channels, int8", "channels, int8"], "removed": [0.0, 0.8] * 2,
            "accuracy": [0.93, 0.9, 0.92, np.nan], "macs_m": [400.0, 400, 400, 120],
        }
    )  # fmt: skip
    figure = plots.pruning_curves(table)
    accuracy, macs = figure.axes
    assert accuracy.containers[1].lines[0].get_xydata().tolist() == [[0.0, 0.92]]  # NaN is left out
    assert macs.containers[1].lines[0].get_ydata().tolist() == [400, 120]
    assert macs.get_ylim()[0] == 0
    assert macs.containers[1].lines[0].get_linestyle() == "--"
    assert texts(figure).count("weights") == 1
    with pytest.raises(ValueError, match="no column to draw"):
        plots.pruning_curves(table[["kind", "removed"]])


def test_calibration_curve():
    table = pd.DataFrame(
        {"photos": [1, 100, 1, 100], "method": ["min-max"] * 2 + ["MSE"] * 2, "accuracy": [0.8, 0.92, 0.85, 0.9]}
    )
    figure = plots.calibration_curve(table, reference=0.93)
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "100"]
    assert axis.containers[0].lines[0].get_ydata().tolist() == [0.8, 0.92]
    assert "float32" in texts(figure)


def test_operator_times():
    frame = pd.DataFrame(
        {"operator": ["CONV_2D", "MEAN"], "name": ["block1", "pool"], "macs": [2_000_000, 0], "time_ms": [0.5, 1.5]}
    )
    figure = plots.operator_times(frame)
    points = {line.get_label(): line.get_xydata()[0].tolist() for line in figure.axes[0].lines[:2]}
    assert points["conv_2d"] == [2.0, 0.5]
    assert points["mean"][0] < 2.0  # in the strip at the left
    assert "1. pool\n2. block1" in texts(figure)


@pytest.mark.parametrize(
    ("function", "table"),
    [
        (plots.accuracy_against_size, "schemes"), (plots.latency_ratios, "ratios"),
        (plots.operator_times, "schemes"), (plots.quantization_error, "schemes"), (plots.calibration_curve, "schemes"),
        (plots.pruning_curves, "schemes"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_named(function, table, request):
    frame = request.getfixturevalue(table)
    with pytest.raises(ValueError, match=r"has no column|has no row"):
        function(frame.drop(columns=frame.columns[-2]) if "low" in frame.columns[-2] else frame.iloc[:, :1])


def test_an_empty_table_is_refused(schemes):
    with pytest.raises(ValueError, match="has no row"):
        plots.accuracy_against_size(schemes.iloc[:0])
