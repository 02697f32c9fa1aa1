"""Which garment is in a photo: the shipped int8 classifier on anyone's photos, from the command line.

    python -m utils.classify PHOTO... [--json] [--model FILE.tflite] [--top 3] [--threads 2]

A folder stands for all photos in it and below it; what is skipped there is named. NumPy, Pillow and ai-edge-litert are
all that is imported, so that it starts in a fraction of a second.
"""

import argparse
import json
import os
import pathlib
import sys
import warnings

import numpy as np

from utils._checks import whole

from .interpreter import TFLiteModel
from .photo import ENDINGS, endings, read_photo

SHIPPED = pathlib.Path(__file__).resolve().parents[2] / "models" / "clothing-10-int8.tflite"
UNREAD_PHOTOS = ENDINGS | {".tif", ".tiff", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".jxl", ".jp2"}
LOW_CONFIDENCE = 0.5  # where the model's JSON names no threshold of its own
NOTE = "may show none of these classes"


def load(model=None, num_threads=2):
    """The shipped classifier, or another .tflite with its JSON, as a TFLiteModel whose `labels` are known.

    Args:
        model: path of a .tflite file; None: the shipped one.
        num_threads: of one inference.

    Raises:
        FileNotFoundError: no such file; says how to get one.
        ValueError: a damaged or foreign file, one whose labels nothing tells, or a JSON that cannot be obeyed.
    """
    path = pathlib.Path(model) if model is not None else SHIPPED
    if not path.is_file():
        advice = "check the path" if model is not None else "run notebook 3 to write it, or name another with --model"
        raise FileNotFoundError(f"there is no model {path.name or repr(str(model))}; {advice}")
    opened = TFLiteModel(path, num_threads=num_threads)
    if opened.labels is None:
        raise ValueError(
            f"{path.name} has no class names; put a JSON with its labels beside it ({path.with_suffix('.json').name}), "
            "as quantization.save does"
        )
    if opened.channels not in (1, 3):
        sides = " x ".join(map(str, (*opened.input_size, opened.channels)))
        raise ValueError(
            f"expected a model of RGB or grey photos (height, width, channels), got {sides} in {path.name}; "
            "convert it for such photos"
        )
    threshold(opened)
    _temperature(opened)
    return opened


def classify(model, photo, top=3):
    """The most likely classes of one photo.

    Args:
        model: from :func:`load`.
        photo: path of a photo, or its bytes, as for :func:`read_photo`; the orientation tag is obeyed.
        top: how many classes.

    Returns:
        dict: "classes", a list of {"label", "probability"}, likeliest first; "low_confidence", True where the first
        probability is below the model's threshold. Where the model's JSON names a "temperature" T, probabilities p are
        calibrated: softmax(log(p) / T) (Guo et al. 2017, arXiv:1706.04599).

    Raises:
        FileNotFoundError, ValueError: a photo that is not there, or cannot be decoded; names it. A model whose answers
            are not probabilities.
    """
    if not isinstance(model, TFLiteModel):
        raise TypeError(f"expected a model that load() opened, got {type(model).__name__}")
    top = whole("top", top)
    pixels = read_photo(photo, model.input_size)
    if model.channels == 1:
        pixels = (pixels @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)[..., None]  # as Pillow's "L"
    (probabilities,) = model(pixels[None])
    if not (probabilities.min() >= -0.01 and probabilities.max() <= 1.01):
        raise ValueError(
            f"expected probabilities from {model.name}, got {probabilities.min():.3g}..{probabilities.max():.3g}; "
            "end the model in a softmax or sigmoid and convert it again"
        )
    temperature = _temperature(model)
    if temperature != 1:
        if len(probabilities) == 1 or probabilities.sum() > 1.5:
            raise ValueError(
                f"expected a softmax for the temperature in {model.name}'s JSON, got {len(probabilities)} sigmoids; "
                "take the temperature out"
            )
        powers = np.maximum(probabilities, np.finfo(np.float32).tiny)
        powers = powers / powers.max()  # the largest is 1, so that a small T makes no 0 / 0
        powers = np.power(powers, 1 / temperature, dtype=np.float64)
        probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:top]
    return {
        "classes": [{"label": model.labels[index], "probability": float(probabilities[index])} for index in order],
        "low_confidence": bool(probabilities.max() < threshold(model)),
    }


def threshold(model):
    """The probability below which the first class is not to be trusted: from the model's JSON, else 0.5."""
    return _number(model, "low_confidence", LOW_CONFIDENCE, "a probability from 0 to 1", lambda value: 0 <= value <= 1)


def _temperature(model):
    return _number(model, "temperature", 1, "a positive number", lambda value: 0 < value < np.inf)


def _number(model, key, default, what, fits):
    value = model.description.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ValueError(f"{key} in {model.name}'s JSON must be {what}, got {value!r}")
    return value


def find_photos(names):
    """(photos, with those in and below folders; sentences about what cannot be classified, and about the rest)."""
    found, problems, notes = [], [], []
    for name in names:
        if not name.strip():
            problems.append("expected a photo or a folder, got an empty name; is a variable unset?")
        elif "://" in name:
            problems.append(f"expected a photo or a folder on this machine, got the address {name}; download it first")
        elif not os.path.isdir(name):  # noqa: PTH112 (pathlib's raises for a name that is too long)
            found.append(pathlib.Path("/dev/stdin" if name == "-" else name))
        else:
            every, links = [], []
            for base, folders, files in os.walk(name, onerror=lambda error: problems.append(_unread(error))):
                every += [pathlib.Path(base, file) for file in files if not file.startswith(".")]
                links += [path for path in (pathlib.Path(base, folder) for folder in folders) if path.is_symlink()]
            every = sorted(path for path in every if path.is_file() or not path.exists())  # a pipe may never end
            inside = [path for path in every if path.suffix.lower() in endings()]
            unread = [path for path in every if path.suffix.lower() in UNREAD_PHOTOS - endings()]
            rest = [path for path in every if path.suffix.lower() not in UNREAD_PHOTOS]
            found += inside
            if not inside:
                problems.append(
                    f"there is no photo ({', '.join(sorted(endings()))}) in the folder {name}; name another"
                )
            if unread:
                problems.append(f"{_skipped(name, unread)}: save them as JPEG")
            if rest:
                notes.append(f"{_skipped(name, rest)}: not photos by their names")
            if links:
                notes.append(f"{_skipped(name, sorted(links), 'linked folder')}: name it too for the photos in it")
    return found, problems, notes


def _unread(error):
    return f"{error.filename} cannot be read ({error.strerror}); check the folder and its rights"


def _skipped(folder, paths, kind="file"):
    names = [str(path.relative_to(folder)) for path in paths]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"skipped {len(names)} {kind}{'s'[: len(names) != 1]} in {folder} ({', '.join(names[:5])}{more})"


def main(arguments=None):
    """The command; returns its exit code: 0 all classified, 1 some photos not, 2 nothing could be done."""
    parser = argparse.ArgumentParser(prog="python -m utils.classify", description="Which garment is in a photo?")
    parser.add_argument(
        "photos", nargs="+", metavar="PHOTO", help="a photo (JPEG, PNG, WebP, GIF, BMP, AVIF, HEIC) or a folder"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list instead of text")
    parser.add_argument("--model", metavar="FILE.tflite", help="another classifier, with its JSON beside it")
    parser.add_argument("--top", type=_positive, default=3, metavar="N", help="how many classes to name (3)")
    parser.add_argument("--threads", type=_positive, default=2, metavar="N", help="threads of one inference (2)")
    options = parser.parse_args(arguments)
    try:
        model = load(options.model, options.threads)
    except (OSError, ValueError) as error:
        print(f"classify: {error}", file=sys.stderr)
        return 2
    photos, problems, notes = find_photos(options.photos)
    for problem in (*notes, *problems):
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
        print(json.dumps(results, indent=1))  # ASCII, as any terminal or pipe can encode it
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
    """Entry point: a closed pipe (`| head`) and Ctrl-C end the command quietly, names of any characters are printed."""
    sys.stdout = sys.stdout or pathlib.Path(os.devnull).open("w")  # noqa: SIM115 (None where the caller closed it)
    sys.stdout.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore")  # Pillow's about large photos and damaged EXIF, beside our sentence or none
    try:
        code = main()
        sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        if not isinstance(error, BrokenPipeError):
            print(f"classify: the answers cannot be written ({error.strerror or error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
