"""Which garment is in a photo: the shipped int8 classifier on anyone's photos, from the command line.

    python -m utils.classify PHOTO... [--json] [--model FILE.tflite] [--top 3] [--threads 2]

A folder stands for all photos in it and below it. Starts in a fraction of a second: NumPy, Pillow and ai-edge-litert
are all that is imported, never TensorFlow.
"""

import argparse
import json
import os
import pathlib
import sys

import numpy as np

from .interpreter import TFLiteModel
from .photo import read_photo

SHIPPED = pathlib.Path(__file__).resolve().parents[2] / "models" / "clothing-10-int8.tflite"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LOW_CONFIDENCE = 0.5  # where the model's JSON names no threshold of its own
NOTE = "may show none of these classes"


def load(model=None, num_threads=2):
    """The shipped classifier, or another .tflite with its JSON.

    Args:
        model: path of a .tflite file; None: the shipped one.
        num_threads: of one inference.

    Returns:
        TFLiteModel whose `labels` are known.

    Raises:
        FileNotFoundError: no such file; says how to get one.
        ValueError: a damaged or foreign file, or one whose labels nothing tells.
    """
    path = pathlib.Path(model) if model is not None else SHIPPED
    if not path.is_file():
        advice = "check the path" if model is not None else "run notebook 3 to write it, or name another with --model"
        raise FileNotFoundError(f"there is no model {path.name}; {advice}")
    opened = TFLiteModel(path, num_threads=num_threads)
    if opened.labels is None:
        raise ValueError(
            f"{path.name} has no class names; put a JSON with its labels beside it ({path.with_suffix('.json').name}), "
            "as quantization.save does"
        )
    if opened.input_size[0] != opened.input_size[1]:
        raise ValueError(f"expected a model of square photos, got {opened.input_size} in {path.name}; use another")
    return opened


def classify(model, photo, top=3):
    """The most likely classes of one photo.

    Args:
        model: from :func:`load`.
        photo: path of a JPEG, PNG or WebP, or its bytes; the orientation tag is obeyed.
        top: how many classes.

    Returns:
        dict: "classes", a list of {"label", "probability"}, likeliest first; "low_confidence", True where the first
        probability is below the model's threshold: the photo may show none of its classes.

    Raises:
        FileNotFoundError, ValueError: a photo that is not there, or cannot be decoded; names it.
    """
    (probabilities,) = model(read_photo(photo, model.input_size[0])[None])
    order = np.argsort(-probabilities, kind="stable")[:top]
    return {
        "classes": [{"label": model.labels[index], "probability": float(probabilities[index])} for index in order],
        "low_confidence": bool(probabilities.max() < threshold(model)),
    }


def threshold(model):
    """The probability below which the first class is not to be trusted: from the model's JSON, else 0.5."""
    value = model.description.get("low_confidence", LOW_CONFIDENCE)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"low_confidence in {model.name}'s JSON must be a probability from 0 to 1, got {value!r}")
    return value


def find_photos(names):
    """Paths as given, folders replaced by the photos in and below them, in order of name.

    Args:
        names: paths of photos and folders.

    Returns:
        (list of paths, list of sentences about folders without photos).
    """
    found, empty = [], []
    for name in map(pathlib.Path, names):
        if not name.is_dir():
            found.append(name)
            continue
        inside = sorted(path for path in name.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        found += inside
        if not inside:
            empty.append(f"there is no photo ({', '.join(ENDINGS)}) in the folder {name}; name another")
    return found, empty


def main(arguments=None):
    """The command; returns its exit code: 0 all classified, 1 some photos not, 2 nothing could be done."""
    parser = argparse.ArgumentParser(prog="python -m utils.classify", description="Which garment is in a photo?")
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="a JPEG, PNG or WebP file, or a folder of them")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of text")
    parser.add_argument("--model", metavar="FILE.tflite", help="another classifier, with its JSON beside it")
    parser.add_argument("--top", type=_positive, default=3, metavar="N", help="how many classes to name (3)")
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="threads of one inference (2)")
    options = parser.parse_args(arguments)
    try:
        model = load(options.model, options.threads)
        threshold(model)
    except (OSError, ValueError) as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    photos, problems = find_photos(options.photos)
    for problem in problems:
        print(f"classify: {problem}", file=sys.stderr)
    results, failed = [], len(problems)
    for path in photos:
        try:
            result = {"photo": str(path), **classify(model, path, options.top)}
        except (OSError, ValueError) as error:
            failed += 1
            result = {"photo": str(path), "error": str(error)}
            print(f"classify: {error}", file=sys.stderr)
        results.append(result)
        if not options.json and "error" not in result:
            print(_line(result))
    if options.json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    done = sum("error" not in result for result in results)
    return 0 if not failed else 1 if done else 2


def _line(result):
    classes = ", ".join(f"{entry['label']} {entry['probability']:.1%}" for entry in result["classes"])
    return f"{result['photo']}: {classes}" + (f"  ({NOTE})" if result["low_confidence"] else "")


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def run():
    """Entry point: a closed pipe (`| head`) and Ctrl-C end the command quietly."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        return 1
    except KeyboardInterrupt:
        return 130
