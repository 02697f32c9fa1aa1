"""How often the int8 files that ship say "may show none of these classes", on photos that they were not made for.

The pictures are samples that packages ship. Those that are not installed come with
``pip install --no-deps --target build/pictures scikit-image==0.26.0 imgaug==0.4.0 ultralytics==8.4.190 gradio==6.31.0``
and ``PYTHONPATH=build/pictures``; without them the measurement stops and says so.
"""

import importlib.metadata
import importlib.util
import pathlib

import pandas as pd

from study import records
from utils import classify, files
from utils.evaluation.intervals import wilson

MODELS = {"clothing-10-int8": "clothing-10", "clothing-17-int8": "clothing-17"}
SETS = {
    "photos without a garment": {
        "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
        "skimage": "data/brick.png data/chelsea.png data/coffee.png data/coins.png data/grass.png data/gravel.png "
                   "data/hubble_deep_field.jpg data/moon.png data/motorcycle_left.png data/rocket.jpg",
        "imgaug": "quokka.jpg",
        "gradio": "media_assets/images/cheetah.jpg media_assets/images/cheetah1.jpg media_assets/images/groot.jpeg "
                  "media_assets/images/lion.jpg media_assets/images/tower.jpg test_data/cheetah2.jpg",
    },
    "drawings and scans": {
        "matplotlib": "mpl-data/sample_data/Minduka_Present_Blue_Pack.png mpl-data/sample_data/logo2.png",
        "skimage": "data/cell.png data/chessboard_RGB.png data/clock_motion.png data/color.png data/horse.png "
                   "data/ihc.png data/logo.png data/microaneurysms.png data/page.png data/phantom.png data/retina.jpg "
                   "data/text.png",
        "gradio": "media_assets/images/bus.png media_assets/images/hf-logo_transpng.png media_assets/images/logo.png",
    },
    "worn garments": {
        "matplotlib": "mpl-data/sample_data/grace_hopper.jpg",
        "skimage": "data/astronaut.png data/camera.png",
        "ultralytics": "assets/bus.jpg assets/zidane.jpg",
    },
}  # fmt: skip
DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}  # where the name differs


def pictures():
    """The sample pictures: DataFrame with `set`, `package`, `version`, `picture` and `path`."""
    rows = []
    for kind, packages in SETS.items():
        for package, names in packages.items():
            found = importlib.util.find_spec(package)  # finds it, imports nothing
            for name in names.split():
                path = found and pathlib.Path(found.submodule_search_locations[0]) / name
                if not path or not path.is_file():
                    raise LookupError(f"{name} of the package {package} is missing; study/elsewhere.py says how")
                version = importlib.metadata.version(DISTRIBUTIONS.get(package, package))
                rows.append((kind, package, version, path.name, path))
    return pd.DataFrame(rows, columns=["set", "package", "version", "picture", "path"])


def measure(shown, loaded):
    """The record's metrics: what each model says of the `shown` pictures ("answers"), and how often it doubts ("said").

    "said" has a line for each model and set of photos, also of its own validation and test photos (`loaded` by name).
    """
    said, answers = [], []
    for name, photos in MODELS.items():
        model, dataset = classify.load(files.PROJECT / "models" / f"{name}.tflite"), loaded(photos)

        def answer(path, model=model):
            found = classify.classify(model, path, top=1)
            return found["classes"][0] | {"said": found["low_confidence"]}

        known = shown.drop(columns="path").to_dict("records")
        given = [{"model": name} | row | answer(path) for row, path in zip(known, shown["path"], strict=True)]
        doubted = {kind: [row["said"] for row in given if row["set"] == kind] for kind in shown["set"].unique()}
        for part in ("validation", "test"):
            frame = dataset.part(part)
            own = pd.DataFrame([answer(path) for path in frame["path"]])
            right = own["label"] == frame["label"]
            for judged, rows in (("right", own[right]), ("wrong", own[~right])):
                doubted[f"{part} photos, {judged} answer"] = rows["said"].tolist()
        for kind, values in doubted.items():
            low, high = wilson(sum(values), len(values))
            said.append({
                "model": name, "threshold": classify.threshold(model), "set": kind, "n": len(values),
                "said": sum(values), "share": sum(values) / len(values), "low": low, "high": high,
            })  # fmt: skip
        answers += given
    return {"said": said, "answers": answers}


def record(loaded):
    """Measure, and write `results/elsewhere.json`; returns its path."""
    return records.write("elsewhere", {}, measure(pictures(), loaded), records.PHOTOS, records.RESULTS)
