"""A second test set of ten classes: further photos of the five people of the official one, from the full set.

The full set holds photos of these people that the ten-class set left out. No model of ten classes was trained on them
or chosen by them.
"""

from study import records
from utils import evaluation, files
from utils.classify import TFLiteModel
from utils.datasets import pipeline

ROWS = ("b-lite0-fine", "b-mobilenet-fine", "b-lite0-frozen", "b-mobilenet-frozen")
FILE = "clothing-10-int8"  # what b-lite0-fine ships as


def photos(ten, seventeen):
    """The rows of the 17-class frame by testers of ten classes, whose picture the ten-class set does not hold.

    Their labels are those of ten classes; photos of other garments are left out.
    """
    known, full = ten.frame, seventeen.frame
    further = full["sender"].isin(set(ten.part("test")["sender"])) & ~full["sha256"].isin(set(known["sha256"]))
    further &= ~full["id"].isin(set(known["id"]))
    chosen = full[further].assign(label=full["label"].str.lower(), split="test")
    return chosen[chosen["label"].isin(ten.classes)].reset_index(drop=True)


def measure(found, ten, seventeen):
    """A line for each row (id -> (Row, Run, Dataset)) and for the int8 file that ships."""
    frame = photos(ten, seventeen)
    judged = {name: (row.title, run.predict(frame)) for name, (row, run, _) in found.items()}
    shipped = TFLiteModel(files.PROJECT / "models" / f"{FILE}.tflite")
    images = pipeline.load_images(frame, shipped.input_size[0])
    judged[FILE] = ("EfficientNet-Lite0, fine-tuned, the int8 file that ships", shipped(images))
    lines = []
    for name, (title, probabilities) in judged.items():
        result = evaluation.evaluate(probabilities, frame, ten.classes, name=title).to_dict()
        kept = ("n", "accuracy", "accuracy_low", "accuracy_high", "macro_recall", "per_sender")
        lines.append({"row": name, "title": title} | {key: result[key] for key in kept})
    return lines


def record(found, ten, seventeen):
    """Measure, and write `results/further.json`; returns its path."""
    return records.write("further", {}, {"further": measure(found, ten, seventeen)}, records.PHOTOS, records.RESULTS)
