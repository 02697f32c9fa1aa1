"""utils.plots.cost: every figure shows the data that it is given, at 100 dpi, without a display."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from utils.plots import cost as plots_cost

BLOCKS = {
    "One": pd.DataFrame({"1×1": [3.0, 5.0], "depthwise": [1.0, 0.0]}, index=["a", "b"]),
    "Two": pd.DataFrame({"1×1": [2.0]}, index=["only"]),
    "Three": pd.DataFrame({"1×1": [2.0, 1.0, 4.0]}, index=["x", "y", "z"]),
}
SHARES = pd.DataFrame({"1×1": [0.9, 0.2], "depthwise": [0.1, 0.8]}, index=["One", "Two"])
LAYERS = pd.DataFrame(
    {
        "path": ["a", "b", "c"], "kind": ["conv", "conv", "depthwise"], "macs": [1_000_000, 20_000_000, 300_000],
        "median_ms": [0.1, 1.0, 0.2],
    }
)  # fmt: skip
CURVES = {"One": [1, 3, 11, 43], "Two": [1, 3, 4, 8, 10, 22]}
REGIONS = {"inside": ((4, 6), (14, 20), (8.5, 12.5)), "outside": ((-20, -10), (40, 60), (9.5, 24.5))}
MAPS = {"layer": (np.eye(24, 32), (2, 3), (20, 30), (11.0, 16.0), (8.0, 12.0))}
ZOO = pd.DataFrame(
    {
        "model": ["Small", "Large", "Twin"], "params": [3_000_000, 90_000_000, 90_000_000],
        "macs": [300_000_000, 9_000_000_000, 9_000_000_000], "receptive_field_px": [491, 1311, 1311],
        "whole_image": [False, True, False],
    }
)  # fmt: skip
STAGES = pd.DataFrame({"side": [32, 16], "channels": [8, 640], "layers": [1, 2], "macs": [300, 100]})
PHOTO = np.full((24, 32, 3), 120, "uint8")

FIGURES = {
    "macs_by_block": lambda: plots_cost.macs_by_block(BLOCKS),
    "macs_by_type": lambda: plots_cost.macs_by_type(SHARES),
    "macs_against_time": lambda: plots_cost.macs_against_time(LAYERS),
    "field_by_depth": lambda: plots_cost.field_by_depth(CURVES),
    "regions_on_photo": lambda: plots_cost.regions_on_photo(PHOTO, REGIONS),
    "effective_maps": lambda: plots_cost.effective_maps(MAPS),
    "zoo": lambda: plots_cost.zoo(ZOO, highlight=["Small"]),
    "model_drawings": lambda: plots_cost.model_drawings({"One": STAGES, "Two": STAGES.head(1)}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_at_100_dpi_and_is_not_left_open(name):
    from matplotlib import pyplot as plt

    figure = FIGURES[name]()
    assert isinstance(figure, Figure) and figure.dpi == 100
    assert plt.get_fignums() == []
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert 3_000 < len(picture.getvalue()) < 300_000
    small = [text for axis in figure.axes for text in axis.texts if text.get_fontsize() < 9]
    assert not small


def test_bars_stack_to_the_blocks_totals_and_unused_panels_are_hidden():
    figure = FIGURES["macs_by_block"]()
    one, _, _, unused = figure.axes
    tops = [
        max(bar.get_y() + bar.get_height() for bar in one.patches if abs(bar.get_x() + bar.get_width() / 2 - x) < 0.1)
        for x in (0, 1)
    ]
    assert tops == [4, 5] and not unused.get_visible()
    assert [label.get_text() for label in one.get_xticklabels()] == ["a", "b"]


def test_shares_fill_the_whole_bar():
    axis = FIGURES["macs_by_type"]().axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axis.patches]
    assert max(ends) == pytest.approx(1) and len(axis.patches) == 4
    assert {"90%", "80%"} <= {text.get_text() for text in axis.texts}


def test_layers_stand_at_their_macs_and_times():
    axis = FIGURES["macs_against_time"]().axes[0]
    points = np.vstack([collection.get_offsets() for collection in axis.collections])
    assert sorted(map(tuple, points.tolist())) == [(0.3, 0.2), (1.0, 0.1), (20.0, 1.0)]
    assert axis.get_xscale() == axis.get_yscale() == "log"


def test_curves_end_at_their_sizes():
    axis = FIGURES["field_by_depth"]().axes[0]
    assert {"43", "22"} <= {text.get_text() for text in axis.texts}
    assert any("224" in text.get_text() for text in axis.texts)


def test_a_region_outside_the_photo_stays_in_view_and_axes_are_not_mixed_up():
    inside, outside = FIGURES["regions_on_photo"]().axes
    box = inside.patches[-1]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (6, 4, 14, 10)
    low, high = outside.get_xlim()
    assert low <= -10 and high >= 60 and outside.get_ylim()[0] >= 40 and outside.get_ylim()[1] <= -20


def test_names_of_models_at_one_place_are_written_apart():
    figure = FIGURES["zoo"]()
    figure.canvas.draw()
    texts = figure.axes[0].texts
    assert sorted(text.get_text() for text in texts) == ["Large", "Small", "Twin"]
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    assert not boxes["Large"].overlaps(boxes["Twin"])
    point = figure.axes[0].transData.transform((3, 0.3))
    assert abs(boxes["Small"].x0 - point[0]) < 40 and abs(boxes["Small"].y0 - point[1]) < 40


def test_drawn_networks_have_a_box_a_resolution_whose_share_stands_above_it():
    figure = plots_cost.model_drawings({"One": STAGES, "Two": STAGES.head(1)})
    first, second = figure.axes
    assert [len(axis.patches) for axis in (first, second)] == [2, 1]
    texts = [text.get_text() for text in first.texts]
    assert texts == ["75%", "32 × 32\n× 8\n1 layer", "25%", "16 × 16\n× 640\n2 layers"]
    tall, low = first.patches
    assert tall.get_height() == pytest.approx(2**0.5 * low.get_height())
    assert low.get_width() == pytest.approx((640 / 8) ** 0.5 * tall.get_width())
