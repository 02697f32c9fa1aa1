"""Every figure is drawn, read back as PNG, and holds the numbers that it was given."""

import importlib
import io
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
from utils.plots import style as plots_style

gradcam = importlib.import_module("utils.evaluation.gradcam")

CLASSES = tuple("abcdefghijklmnopq")  # 17


def png(figure):
    """The figure as an RGB array, after the checks that every figure has to pass."""
    assert isinstance(figure, Figure)
    assert figure.dpi == 100
    assert not plt.get_fignums(), "a figure of pyplot would be shown twice in a notebook"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    assert len(buffer.getvalue()) < 150_000
    assert figure.get_size_inches()[0] <= 11.5
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    assert pixels.std() > 5, "blank"
    return pixels


def words(figure):
    """All text in the figure."""
    return " | ".join(item.get_text() for item in figure.findobj(Text) if item.get_text() and item.get_visible())


@pytest.fixture(scope="module")
def judged():
    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame(
        {
            "label": rng.choice(CLASSES[:-1], n),
            "sender": rng.integers(0, 40, n).astype(str),
            "id": np.arange(n).astype(str),
        }
    )
    probabilities = rng.dirichlet(np.full(17, 0.3), n)
    probabilities[np.arange(n), evaluation.check_labels(frame, CLASSES)] += rng.random(n)
    return evaluation.evaluate(probabilities / probabilities.sum(1, keepdims=True), frame, CLASSES, name="made up")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """60 noisy photos of ten classes: the worst case for the size of a PNG."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(60):
        path = folder / f"{index}.jpg"
        base = np.kron(rng.integers(0, 256, (10, 8, 3)), np.ones((40, 50, 1)))
        Image.fromarray((base * 0.8 + rng.integers(0, 50, base.shape)).astype(np.uint8)).save(path)
        rows.append({"path": str(path), "label": f"class {index % 10}", "split": "train", "sender": str(index % 7)})
    return pd.DataFrame(rows)


def test_dataset_cover(photos):
    classes = sorted(set(photos["label"]))
    page = plots.dataset_cover(photos, [*classes, "sock"][1:], title="Figure 1. Cover", seed=1)
    assert png(page).shape[1] > 800
    assert "class 1 (6)" in words(page)
    assert "sock (no photo here)" in words(page)
    again, other = (plots.dataset_cover(photos, classes, per_class=2, seed=seed) for seed in (1, 2))
    assert not np.array_equal(png(again), png(other))


def test_a_cover_names_the_file_that_is_no_photo(photos, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no photo")
    broken = photos.head(1).assign(path=str(tmp_path / "bad.jpg"))
    with pytest.raises(ValueError, match=r"bad\.jpg cannot be drawn as a photo"):
        plots.dataset_cover(broken, ["class 0"])
    with pytest.raises(ValueError, match="no row"):
        plots.dataset_cover(photos.head(0), ["class 0"])


def test_thumbnails_keep_the_middle_of_the_photo(tmp_path):
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = (200, 30, 30)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    small = plots_style.thumbnail(tmp_path / "wide.png", 20)
    assert small.shape == (20, 20, 3)
    assert np.allclose(small[:, 2:-2], (200, 30, 30), atol=6)


def test_label_distribution(photos):
    both = {"random split": photos, "grouped by sender": photos.assign(split=["train", "validation", "test"] * 20)}
    page = plots.label_distribution(both, title="Figure 2")
    png(page)
    assert "grouped by sender" in words(page)
    assert "validation" in words(page)
    assert " 6 " in f"{words(page)} "
    png(plots.label_distribution(photos.drop(columns="split")))
    with pytest.raises(ValueError, match="no column 'label'"):
        plots.label_distribution(photos.drop(columns="label"))


def test_sender_sizes():
    frame = pd.DataFrame({"sender": ["x"] * 60 + ["y"] * 20 + [str(i) for i in range(20)]})
    page = plots.sender_sizes(frame, title="Figure 3", top=2)
    png(page)
    assert "the 2 busiest of 22" in words(page)
    assert "took 80% of 100 photos" in words(page)
    png(plots.sender_sizes(frame.head(3)))


def test_training_curves():
    epochs = np.arange(1, 6)
    history = pd.DataFrame({"epoch": epochs, "loss": 1 / epochs, "accuracy": 1 - 0.5 / epochs})
    history = history.assign(val_loss=history["loss"] + 0.1, val_accuracy=history["accuracy"] - 0.1)
    run = types.SimpleNamespace(config=types.SimpleNamespace(name="b-lite0"), history=history, best_epoch=4)
    page = plots.training_curves([run, run], title="Figure 5")
    png(page)
    assert "b-lite0" in words(page)
    marks = [line for line in page.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert list(marks[0].get_xdata()) == [4]
    assert marks[0].get_ydata() == pytest.approx([0.775])
    png(plots.training_curves({"one": history.head(1)[["epoch", "loss", "val_loss"]]}))
    with pytest.raises(ValueError, match="no run to draw"):
        plots.training_curves([])


def test_confusion_matrix_holds_every_count_and_hatches_absent_classes(judged):
    page = plots.confusion_matrix(judged, title="Figure 6")
    png(page)
    shown = sorted(text.get_text() for text in page.axes[0].texts if text.get_text())
    assert shown == sorted(str(count) for count in judged.confusion.ravel() if count)
    assert judged.absent == ("q",)
    assert any(patch.get_hatch() for patch in page.axes[0].patches)
    assert [tick.get_text() for tick in page.axes[0].get_yticklabels()] == list(CLASSES)


def test_reliability_diagram(judged):
    page = plots.reliability_diagram(judged, title="Figure 15")
    png(page)
    assert f"calibration error {100 * judged.ece:.1f} %" in words(page)
    assert sum(bar.get_height() for bar in page.axes[1].patches) == judged.n


def test_class_f1_beside_published(judged):
    page = plots.class_f1(judged, published={"a": 0.5, "zebra": 1.0}, title="Figure 12")
    png(page)
    assert "published" in words(page)
    assert "no photo here" in words(page)
    widths = [bar.get_width() for bar in page.axes[0].patches]
    assert widths[1:] == sorted(widths[1:]) == sorted(judged.per_class["f1"].dropna())
    png(plots.class_f1(judged))


def test_sender_accuracy(judged):
    page = plots.sender_accuracy(judged, title="Figure 16", top=10)
    png(page)
    assert "10 of 40 shown" in words(page)
    without = evaluation.evaluate([[0.5, 0.5]], pd.DataFrame({"label": ["a"]}), ("a", "b"))
    with pytest.raises(ValueError, match="no column 'sender'"):
        plots.sender_accuracy(without)


def test_random_against_grouped():
    rows = [("clothing-10", "random", 3781, 0.87, 0.86, 0.88), ("clothing-10", "grouped", 3781, 0.84, 0.82, 0.86)]
    table = pd.DataFrame(rows, columns=["photos", "folds", "n", "accuracy", "low", "high"])
    page = plots.random_against_grouped(table, title="Figure 4")
    png(page)
    assert "87.0%" in words(page)
    assert "84.0%" in words(page)
    assert "3,781 photos" in words(page)
    with pytest.raises(ValueError, match="folds lucky are unknown"):
        plots.random_against_grouped(table.assign(folds="lucky"))
    with pytest.raises(ValueError, match="no column 'low'"):
        plots.random_against_grouped(table.drop(columns="low"))


def test_balancing_order():
    rows = [("split first", 700, 0.76, 0.73, 0.79, 0), ("balance first", 1200, 0.91, 0.89, 0.93, 1050)]
    names = ["protocol", "n", "accuracy", "accuracy_low", "accuracy_high", "shared_photos"]
    page = plots.balancing_order(pd.DataFrame(rows, columns=names), title="Figure 9")
    png(page)
    assert "91.0%\n1,050 of 1,200 test photos also in train" in words(page)
    png(plots.balancing_order(pd.DataFrame(rows[:1], columns=names)))


def test_accuracy_against_cost():
    rows = [("Baseline CNN", 2.1e9, 0.46, 0.42, 0.5), ("Lite0", 3.85e8, 0.93, 0.9, 0.95)]
    table = pd.DataFrame(rows, columns=["model", "macs", "accuracy", "accuracy_low", "accuracy_high"])
    page = plots.accuracy_against_cost(table, title="Figure 17")
    png(page)
    said = words(page)
    assert "93.0%" in said and "2,100" in said
    names = [label.get_text() for label in page.axes[0].get_yticklabels()]
    assert names == ["Lite0", "Baseline CNN"]  # the best on top
    both = pd.concat([table.assign(judged="official test"), table.assign(judged="people never seen")])
    page = plots.accuracy_against_cost(pd.concat([both.assign(group="10 classes"), table.assign(group="17 classes")]))
    png(page)
    assert "17 classes" in words(page)
    with pytest.raises(ValueError, match="stands in the table with two values of macs"):
        plots.accuracy_against_cost(pd.concat([table, table.assign(macs=4e8)]))


def test_mistakes(photos):
    worst = photos.head(7).assign(true="hat", predicted="shirt", confidence=0.987)
    page = plots.mistakes(worst, title="Figure 13")
    png(page)
    assert "→ shirt 99%" in words(page)
    assert "No mistake" in words(plots.mistakes(worst.head(0)))


def test_gradcam_overlay_and_photo_grid():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(image).resize((224, 224))) for image in coarse])
    heat = np.stack([np.asarray(Image.fromarray(image[..., 0]).resize((224, 224))) / 255 for image in coarse])
    cams = gradcam.GradCam(images, heat, np.zeros(4, int), np.ones(4), ("first", "b", "c", "d"), "conv", (7, 7))
    page = plots.gradcam_overlay(cams, title="Figure 14")
    png(page)
    assert "first" in words(page)
    png(plots.photo_grid(images, captions=["one", "two", "three", "four"]))
    with pytest.raises(ValueError, match="no image to draw"):
        plots.photo_grid(images[:0])


def test_a_notebook_shows_a_figure_once_and_without_pyplot(judged):
    page = plots.reliability_diagram(judged)
    assert Image.open(io.BytesIO(page._repr_png_())).format == "PNG"
    assert matplotlib.get_backend().lower() == "agg"


def test_colours_are_apart_for_colour_blind_readers():
    """Machado et al. 2009, full deuteranopia: neighbours in the palette stay apart."""
    machado = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    seen = [machado @ np.array(matplotlib.colors.to_rgb(colour)) for colour in plots_style.COLOURS]
    for index, colour in enumerate(seen):
        for other in seen[index + 1 :]:
            assert np.abs(colour - other).max() > 0.12


def test_runs_of_very_different_lengths_share_a_logarithmic_axis():
    def history(epochs):
        return pd.DataFrame({"epoch": range(1, epochs + 1), "val_loss": 1.0, "val_accuracy": 0.5})

    page = plots.training_curves({"short": history(5), "long": history(200)})
    assert [axis.get_xscale() for axis in page.axes] == ["log", "log"]
    assert page.axes[0].get_xlabel() == "epoch (logarithmic)"
    page = plots.training_curves({"short": history(5), "longer": history(30)})
    assert [axis.get_xscale() for axis in page.axes] == ["linear", "linear"]
