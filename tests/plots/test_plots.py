"""Figures: each is drawn and read back as an image, and holds the numbers that it was given."""

import functools
import inspect
import io
import subprocess
import sys
import types

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from utils import evaluation, plots
from utils.plots import style

CLASSES = tuple("abcdefghijklmnopq")  # 17


def words(figure):
    """All text in the figure."""
    return " | ".join(item.get_text() for item in figure.findobj(Text) if item.get_text() and item.get_visible())


@functools.cache
def judge(seed=0, strength=1.0):
    rng = np.random.default_rng(seed)
    n = 400
    senders = rng.integers(0, 40, n).astype(str)
    frame = pd.DataFrame({"label": rng.choice(CLASSES[:-1], n), "sender": senders, "id": np.arange(n).astype(str)})
    probabilities = rng.dirichlet(np.full(17, 0.3), n)
    probabilities[np.arange(n), evaluation.check_labels(frame, CLASSES)] += strength * rng.random(n)
    return evaluation.evaluate(probabilities / probabilities.sum(1, keepdims=True), frame, CLASSES, name=f"net {seed}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 noisy photos of ten classes by seven photographers: the worst case for the size of an image."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(60):
        path = folder / f"{index}.jpg"
        base = np.kron(rng.integers(0, 256, (10, 8, 3)), np.ones((40, 50, 1)))
        Image.fromarray((base * 0.8 + rng.integers(0, 50, base.shape)).astype(np.uint8)).save(path)
        rows.append({"path": str(path), "label": f"class {index % 10}", "split": "train", "sender": str(index % 7)})
    return pd.DataFrame(rows)


def run(mode, epochs=5, best=4):
    steps = np.arange(1, epochs + 1)
    history = pd.DataFrame({"epoch": steps, "loss": 1 / steps, "accuracy": 1 - 0.5 / steps})
    history = history.assign(val_loss=history["loss"] + 0.1, val_accuracy=history["accuracy"] - 0.1)
    return types.SimpleNamespace(config=types.SimpleNamespace(mode=mode), history=history, best_epoch=best)


SPLITS = pd.DataFrame(
    [("10 classes", "random", 3781, 0.87, 0.86, 0.88), ("10 classes", "grouped", 3781, 0.84, 0.82, 0.86)],
    columns=["photos", "folds", "n", "accuracy", "low", "high"],
)
ORDER = pd.DataFrame(
    [("split first", 700, 0.76, 0.73, 0.79, 0), ("balance first", 1200, 0.91, 0.89, 0.93, 1050)],
    columns=["protocol", "n", "macro_recall", "recall_low", "recall_high", "shared_photos"],
)
PRICES = pd.DataFrame(
    [("Plain CNN", 2.1e9, 0.46, "from scratch"), ("Lite0", 3.85e8, 0.93, "fine-tuned"), ("Net", 3e8, 0.9, "frozen")],
    columns=["model", "macs", "accuracy", "trained"],
)
LAYERS = pd.DataFrame(
    {
        "path": ["a", "b", "c"], "kind": ["convolution", "convolution", "depthwise"],
        "macs": [1_000_000, 20_000_000, 300_000], "median_ms": [0.1, 1.0, 0.2],
    }
)  # fmt: skip
STAGES = pd.DataFrame({"side": [32, 16], "channels": [8, 640], "layers": [1, 2], "macs": [300, 100]})
REGIONS = {"inside": ((4, 6), (14, 20), (8.5, 12.5)), "outside": ((-20, -10), (40, 60), (9.5, 24.5))}
MAPS = {"layer": (np.eye(24, 32), (2, 3), (20, 30), (11.0, 16.0), (8.0, 12.0))}
PHOTO = np.full((24, 32, 3), 120, "uint8")
SCHEMES = pd.DataFrame(
    {"size_bytes": [13_500_000, 3_980_000], "accuracy": [0.93, 0.927], "agreement": [1.0, 0.981]},
    index=pd.Index(["float32", "int8"], name="scheme"),
)
TIMES = pd.DataFrame(
    {"name": ["LiteRT int8", "Keras predict", "onnxruntime"], "median_ms": [11.2, 66.0, np.nan]}
).assign(lower_quartile_ms=lambda t: t["median_ms"] - 1, upper_quartile_ms=lambda t: t["median_ms"] + 1)
OLD = pd.DataFrame({"float32": [71.9, 16.4], "int8": [794.4, 9.4]}, index=["TensorFlow 2.3", "LiteRT"])
PRUNED = pd.DataFrame(
    {
        "kind": ["weights", "weights", "channels, int8", "channels, int8"], "removed": [0.0, 0.8] * 2,
        "accuracy": [0.93, 0.9, 0.92, np.nan], "gzip_mb": [12.5, 3.9, 3.2, 1.4],
    }
)  # fmt: skip
ERRORS = pd.DataFrame({"layer": ["stem", "block1_a", "block1_b", "block2_a"], "SQNR (dB)": [30, 12.5, 40, 8.25]})
CAMS = evaluation.GradCam(
    np.stack([PHOTO] * 4), np.random.default_rng(0).random((4, 24, 32)), np.zeros(4, int), np.ones(4),
    ("first", "b", "c", "d"), "conv", (7, 7),
)  # fmt: skip

FIGURES = {
    "dataset_cover": lambda photos: plots.dataset_cover(photos, [*sorted(set(photos["label"])), "sock"][1:], seed=1),
    "predictions": lambda photos: plots.predictions(photos.head(7).assign(true="hat", predicted="hat", confidence=0.9)),
    "wardrobe": lambda photos: plots.wardrobe(photos, "3"),
    "augmentation_sheet": lambda _: plots.augmentation_sheet({"A": [PHOTO] * 8, "B": [PHOTO] * 6}),
    "label_distribution": lambda photos: plots.label_distribution(photos.assign(split=["test", "held out"] * 30)),
    "training_curves": lambda _: plots.training_curves({"plain": run("scratch"), "frozen net": run("frozen", 60)}),
    "confusion_matrix": lambda _: plots.confusion_matrix(judge()),
    "confusion_matrices": lambda _: plots.confusion_matrices([judge(), judge(1), judge(2)]),
    "reliability_diagram": lambda _: plots.reliability_diagram({"before": judge(), "after": judge(1)}),
    "class_f1": lambda _: plots.class_f1(judge(), published={"a": 0.5, "zebra": 1.0}),
    "random_against_grouped": lambda _: plots.random_against_grouped(SPLITS),
    "balancing_order": lambda _: plots.balancing_order(ORDER),
    "accuracy_against_cost": lambda _: plots.accuracy_against_cost(PRICES),
    "gradcam_overlay": lambda _: plots.gradcam_overlay(CAMS),
    "macs_by_resolution": lambda _: plots.macs_by_resolution({"One": STAGES}),
    "macs_against_time": lambda _: plots.macs_against_time(LAYERS),
    "field_by_depth": lambda _: plots.field_by_depth({"One": [1, 3, 11, 43], "Two": [1, 3, 4, 8, 10, 22]}),
    "regions_on_photo": lambda _: plots.regions_on_photo(PHOTO, REGIONS),
    "effective_maps": lambda _: plots.effective_maps(MAPS, PHOTO),
    "file_bars": lambda _: plots.file_bars(SCHEMES),
    "changed_answers": lambda photos: plots.changed_answers(
        photos.head(4).assign(true="hat", float32=[{"hat": 0.6, "shirt": 0.4}] * 4, int8=[{"hat": 0.4}] * 4)
    ),
    "quantization_error": lambda _: plots.quantization_error(ERRORS, worst=2),
    "latency_bars": lambda _: plots.latency_bars(TIMES, {"published": 3200}),
    "old_runtimes": lambda _: plots.old_runtimes(OLD, 3200),
    "pruning_curves": lambda _: plots.pruning_curves(PRUNED),
    "top_predictions": lambda _: plots.top_predictions(PHOTO, {"hat": 0.9, "shirt": 0.06, "shoes": 0.02}, true="shirt"),
    "convolution_by_hand": lambda _: plots.convolution_by_hand(np.eye(5, dtype=int), -np.ones((3, 3), int), (0, 1)),
    "kinds_of_convolution": lambda _: plots.kinds_of_convolution(14, (64, 32)),
    "receptive_field_steps": lambda _: plots.receptive_field_steps([("conv 3, stride 2", 3, 2), ("conv 3", 3, 1)]),
    "splits_drawing": lambda _: plots.splits_drawing(),
    "transfer_drawing": lambda _: plots.transfer_drawing(),
    "int8_levels": lambda _: plots.int8_levels(np.random.default_rng(0).normal(size=300)),
    "pruning_drawing": lambda _: plots.pruning_drawing(),
    "clipped_bias": lambda _: plots.clipped_bias(4.0, 5e-10),
}  # fmt: skip
SAYS = {
    "dataset_cover": ("class 1 (6)", "sock (no photo here)"),
    "predictions": ("hat\ncorrect, 90%",),
    "label_distribution": ("6", "held out", "test"),
    "confusion_matrices": ("net 0", "net 2"),
    "class_f1": ("published", "no photo here"),
    "random_against_grouped": ("87.0%", "84.0%", "−3.0 points", "3,781 photos"),
    "balancing_order": ("91.0%\n1,050 of 1,200 test photos were also trained on",),
    "accuracy_against_cost": ("Lite0, 93.0%", "from scratch"),
    "gradcam_overlay": ("first",),
    "field_by_depth": ("One, 43", "side of the photo, 224"),
    "file_bars": ("13.5 MB, 93.0% accurate", "4.0 MB, 92.7% accurate, 98.1% as float32"),
    "quantization_error": ("block2_a: 8.2", "block1_a: 12.5"),
    "latency_bars": ("11 ms", "66 ms", "published: 3.2 s"),
    "old_runtimes": ("int8, 794 ms", "16 ms", "published: 3.2 s"),
    "top_predictions": ("90.0%",),
    "convolution_by_hand": ("= −2",),
    "kinds_of_convolution": ("3,612,672 MACs", "112,896 MACs", "401,408 MACs"),
    "receptive_field_steps": ("r = 3, j = 2", "r = 7, j = 2"),
}


def test_every_figure_of_the_face_is_drawn_here():
    offered = {name for name, item in vars(plots).items() if inspect.isfunction(item)}
    assert offered == set(FIGURES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_legible_says_its_numbers_and_is_not_left_open(name, photos):
    figure = FIGURES[name](photos)
    assert isinstance(figure, Figure) and figure.dpi == 100
    assert not plt.get_fignums(), "a figure of pyplot would be shown twice in a notebook"
    data = figure.encoded("jpeg" if figure.photos else "png")
    assert len(data) < 260_000
    assert np.asarray(Image.open(io.BytesIO(data)).convert("L")).std() > 5, "blank"
    assert figure.get_size_inches()[0] <= (16 if name == "confusion_matrices" else 11.7)
    assert all(text.get_fontsize() >= 9 for text in figure.findobj(Text) if text.get_text())
    said = words(figure)
    assert "Figure" not in said
    for part in SAYS.get(name, ()):
        assert part in said, said


def test_no_mistake_no_changed_answer_and_a_file_that_is_no_photo_are_said(photos, tmp_path):
    assert "no mistake" in words(plots.predictions(photos.head(0)))
    assert "No answer changed" in words(plots.changed_answers(photos.head(0)))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no photo")
    broken = photos.head(1).assign(path=str(tmp_path / "bad.jpg"))
    with pytest.raises(ValueError, match=r"bad\.jpg cannot be read as a photo"):
        plots.dataset_cover(broken, ["class 0"])


@pytest.mark.parametrize("name", ["dataset_cover", "augmentation_sheet", "predictions", "gradcam_overlay"])
def test_words_of_a_sheet_lie_on_no_photo(name, photos):
    figure = FIGURES[name](photos)
    figure.canvas.draw()
    pictures = [axis.get_window_extent() for axis in figure.axes]
    for axis in figure.axes:
        for text in axis.texts:
            box = text.get_window_extent()
            assert not text.get_text() or not any(box.shrunk(1, 0.8).overlaps(picture) for picture in pictures)


def test_points_of_one_cost_and_nearly_one_accuracy_do_not_cover_each_other():
    near = PRICES.assign(macs=3e8, accuracy=[0.84, 0.855, 0.92])
    points = [line for line in plots.accuracy_against_cost(near).axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in points] == [300, pytest.approx(321), 300]
    assert [line.get_ydata()[0] for line in points] == [0.84, 0.855, 0.92]


def test_photos_keep_their_colours_and_their_middle(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = np.random.default_rng(0).integers(0, 256, (40, 40, 3))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    small = style.thumbnail(tmp_path / "wide.png", 40)
    assert np.abs(small[:, 2:-2].astype(int) - wide[:, 42:78]).max() <= 1  # 1,440 colours, none merged


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.label_distribution(pd.DataFrame({"x": [1]})), "label is missing"),
        (lambda: plots.file_bars(SCHEMES.iloc[:0]), "at least one row"),
        (lambda: plots.training_curves({}), "at least one run"),
        (lambda: plots.random_against_grouped(SPLITS.assign(folds="lucky")), "random or grouped, got lucky"),
        (lambda: plots.accuracy_against_cost(PRICES.assign(trained="slowly")), "trained must be one of"),
        (lambda: plots.wardrobe(pd.DataFrame({"path": ["x"], "label": ["y"], "sender": ["z"]}), "w"), "got 'w'"),
    ],
)
def test_what_cannot_be_drawn_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_class_name_is_text_and_no_formula():
    photos = pd.DataFrame({"label": ["$5_$", "$x$"]})
    figure = plots.confusion_matrix(evaluation.evaluate(np.eye(2), photos, ["$5_$", "$x$"]))
    assert figure.encoded("png") and "$5_$ (1)" in words(figure)


def test_matrices_hold_every_count_or_large_share_order_classes_and_hatch_absent_ones():
    judged = judge()
    axis = plots.confusion_matrix(judged).axes[0]
    written = sorted(text.get_text() for text in axis.texts if text.get_text())
    assert written == sorted(str(count) for count in judged.confusion.ravel() if count)
    assert judged.absent == ("q",) and any(patch.get_hatch() for patch in axis.patches)
    assert axis.get_yticklabels()[0].get_text() == f"a ({judged.per_class['support'].iloc[0]})"
    axis = plots.confusion_matrices([judged]).axes[0]
    supports = [int(label.get_text().split("(")[1][:-1]) for label in axis.get_yticklabels()]
    assert supports == sorted(supports, reverse=True)
    assert sum(text.get_text() != "" for text in axis.texts) == (judged.confusion_normalised > 0.05).sum()


def test_curves_mark_the_epoch_that_is_kept_and_bins_of_a_few_photos_are_left_out():
    judged = judge()
    axis = plots.training_curves({"net": run("fine_tune")}).axes[0]
    (mark,) = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert list(mark.get_xdata()) == [4] and mark.get_ydata() == pytest.approx([0.775])
    assert mark.get_color() == style.FINE_TUNED
    dots = plots.reliability_diagram({"": judged}, least=20).axes[0].collections[-1].get_offsets()
    assert len(dots) == (judged.reliability["n"] >= 20).sum() < len(judged.reliability)


def test_bars_and_points_stand_at_their_numbers():
    sizes = plots.macs_by_resolution({"One": STAGES}).axes[0]
    assert [1e6 * bar.get_width() for bar in sizes.patches] == pytest.approx([300, 100])
    times = plots.latency_bars(TIMES).axes[0]
    assert [round(bar.get_x() + bar.get_width(), 6) for bar in times.patches] == [66.0, 11.2]  # the fastest on top
    layers = plots.macs_against_time(LAYERS).axes[0]
    points = np.vstack([collection.get_offsets() for collection in layers.collections])
    assert sorted(map(tuple, points.tolist())) == [(0.3, 0.2), (1.0, 0.1), (20.0, 1.0)]


def test_a_region_outside_the_photo_stays_in_view_and_axes_are_not_mixed_up():
    inside, outside = plots.regions_on_photo(PHOTO, REGIONS).axes[:2]
    box = inside.patches[-1]
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (6, 4, 14, 10)
    assert outside.get_xlim()[0] <= -10 and outside.get_xlim()[1] >= 60
    assert outside.get_ylim()[0] >= 40 and outside.get_ylim()[1] <= -20


def test_every_meaning_has_a_colour_of_its_own_and_colours_of_one_figure_are_apart_for_colour_blind_readers():
    names = [
        "NEW_PHOTOGRAPHERS", "SEEN_PHOTOGRAPHERS", "FROZEN", "FINE_TUNED", "SCRATCH", "CONV", "POINTWISE", "DEPTHWISE",
        "DENSE", "FLOAT", "INT8", "WRONG", "TRAIN", "VALIDATION", "TEST",
    ]  # fmt: skip
    colours = {name: np.array(matplotlib.colors.to_rgb(getattr(style, name))) for name in names}
    assert len({tuple(colour) for colour in colours.values()}) == len(names)
    # Machado et al. 2009, full deuteranopia
    machado = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    together = (names[:2], names[2:5], names[5:9], names[9:12], names[12:], ("TRAIN", *names[:2]))
    for group in together:
        seen = [machado @ colours[name] for name in group]
        for place, colour in enumerate(seen):
            assert all(np.abs(colour - other).max() > 0.12 for other in seen[:place]), group


SHELL = """
import numpy as np
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
from utils import plots
shown = []
shell.display_pub.publish = lambda data, *args, **kwargs: shown.append(sorted(data)[0])
shell.user_ns.update(plots=plots, photo=np.zeros((8, 8, 3)), one={"hat": 1.0})
for cell in ("plots.splits_drawing()", "plots.splits_drawing();", "kept = plots.top_predictions(photo, one)", "kept"):
    shown.clear()
    shell.run_cell(cell)
    print("shown", *shown)
"""


def test_a_notebook_shows_each_figure_once_and_photos_as_jpeg():
    done = subprocess.run([sys.executable, "-c", SHELL], capture_output=True, text=True, check=True)
    shown = [line.split("shown ")[1] for line in done.stdout.splitlines() if "shown " in line]
    assert shown == ["image/png", "image/png", "image/jpeg", "image/jpeg"]
