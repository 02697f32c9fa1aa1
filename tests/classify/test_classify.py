"""The command: what it prints, what it imports, how it fails."""

import importlib.util
import json
import os
import pathlib
import resource
import subprocess
import sys

import keras
import numpy as np
import pytest
import quantization_models as small
from PIL import Image

from utils import quantization
from utils.classify import command as classify
from utils.classify import photo as photos
from utils.classify.photo import read_photo

ROOT = pathlib.Path(classify.__file__).resolve().parents[2]


def saved(folder, name="small.tflite", labels=small.CLASSES, **facts):
    return quantization.save(folder / name, small.files()["int8"], labels, **facts)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"), scheme="int8", low_confidence=0.0)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.kron(small.photos(1)[0], np.ones((3, 3, 1), np.uint8))).save(path, quality=95)
    return path


def run(capsys, *arguments):
    code = classify.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_top_three_with_probabilities(capsys, model_path, photo):
    code, out, err = run(capsys, photo, "--model", model_path)
    assert (code, err) == (0, "") and out.startswith(f"{photo}: ") and out.count("%") == 3
    (entry,) = json.loads(run(capsys, photo, "--model", model_path, "--top", 9, "--json")[1])
    expected = small.plain_loop(small.files()["int8"], read_photo(photo, small.SIZE)[None])[0]
    order = np.argsort(-expected, kind="stable")
    assert [c["label"] for c in entry["classes"]] == [small.CLASSES[i] for i in order]
    assert [c["probability"] for c in entry["classes"]] == pytest.approx(list(expected[order]), abs=1e-6)
    assert entry["low_confidence"] is False
    model = classify.load(model_path)
    assert classify.classify(model, photo.read_bytes()) == classify.classify(model, photo)


def test_a_top_that_names_no_class_and_a_model_that_is_a_path_are_refused(model_path, photo):
    for top in (0, -1, 2.0, "3"):
        with pytest.raises(ValueError, match="top must be a positive integer, got"):
            classify.classify(classify.load(model_path), photo, top)
    with pytest.raises(TypeError, match=r"a model that load\(\) opened, got str"):
        classify.classify(str(model_path), photo)


def test_low_confidence_is_said(capsys, tmp_path, photo):
    path = saved(tmp_path, low_confidence=np.float32(1))
    code, out, _ = run(capsys, photo, "--model", path)
    assert code == 0 and "may show none of these classes" in out
    assert json.loads(run(capsys, photo, "--model", path, "--json")[1])[0]["low_confidence"] is True
    assert classify.threshold(classify.load(saved(tmp_path))) == classify.LOW_CONFIDENCE


def test_a_temperature_in_the_json_calibrates_the_probabilities(model_path, tmp_path, photo):
    plain = classify.classify(classify.load(model_path), photo, top=4)["classes"]
    softer = classify.classify(classify.load(saved(tmp_path, temperature=2.0)), photo, top=4)["classes"]
    powers = np.exp(np.log([entry["probability"] for entry in plain]) / 2)
    assert [entry["label"] for entry in softer] == [entry["label"] for entry in plain]
    assert [entry["probability"] for entry in softer] == pytest.approx(list(powers / powers.sum()), abs=1e-6)


def test_folders_are_walked_and_bad_photos_do_not_stop_the_rest(capsys, model_path, tmp_path, photo):
    below = tmp_path / "below" / "deeper"
    below.mkdir(parents=True)
    (below / "good.JPG").write_bytes(photo.read_bytes())
    (below / "cut.jpg").write_bytes(photo.read_bytes()[:200])
    (below / "notes.txt").write_text("not a photo")
    code, out, err = run(capsys, tmp_path, tmp_path / "missing.jpg", "--model", model_path)
    assert (code, out.count("%"), err.count("\n")) == (1, 6, 3)
    assert f"skipped 1 file in {tmp_path} (below/deeper/notes.txt): not photos" in err
    assert "cut.jpg" in err and "missing.jpg" in err
    entries = json.loads(run(capsys, below, "--json", "--model", model_path)[1])
    assert [sorted(entry) for entry in entries] == [["error", "photo"], ["classes", "low_confidence", "photo"]]


def test_links_and_pipes_in_a_folder_are_told_or_left_and_never_waited_for(capsys, model_path, tmp_path, photo):
    """Before, linked folders and links to nothing were left out without a word."""
    (folder := tmp_path / "album").mkdir()
    (folder / "own.jpe").write_bytes(photo.read_bytes())
    (folder / "photo.jpg").symlink_to(photo)
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "more").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    code, out, err = run(capsys, folder, "--model", model_path)
    assert (code, out.count("\n"), err.count("\n")) == (1, 2, 2)
    assert f"there is no photo {folder / 'gone.jpg'}" in err
    assert f"skipped 2 linked folders in {folder} (loop, more): name" in err


def test_a_folder_below_that_cannot_be_read_is_told(capsys, model_path, tmp_path, photo, monkeypatch):
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def closed(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    code, out, err = run(capsys, tmp_path, "--model", model_path)
    assert (code, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert f"{tmp_path / 'closed'} cannot be read (Permission denied); check" in err


KINDS = {".jfif": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP", ".avif": "AVIF", ".HEIC": "HEIF"}


@pytest.fixture
def phone(tmp_path, photo):
    pytest.importorskip("pillow_heif").register_heif_opener()
    folder = tmp_path / "phone"
    folder.mkdir()
    for ending, kind in KINDS.items():
        Image.open(photo).save(folder / f"a{ending}", kind)
    (folder / "._a.jpg").write_bytes(b"of a Mac")
    return folder


def test_a_phones_folder_is_classified_whole(capsys, model_path, phone):
    """Before, HEIC, AVIF and JFIF files were skipped although Pillow reads them."""
    code, out, err = run(capsys, phone, "--model", model_path)
    assert (code, out.count("\n"), err) == (0, len(KINDS), "")


def test_photos_that_cannot_be_read_here_are_counted_and_named(capsys, model_path, phone, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no pillow-heif
    photos.endings.cache_clear()
    for number in range(8):
        (phone / f"IMG_{number}.heic").write_bytes(b"heic")
    code, out, err = run(capsys, phone, "--model", model_path)
    photos.endings.cache_clear()
    assert (code, out.count("\n"), err.count("\n")) == (1, len(KINDS) - 1, 1)
    assert f"skipped 9 files in {phone} (IMG_0.heic, IMG_1.heic" in err and "and 4 more): save them as JPEG" in err


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "an empty name; is a variable unset"),
        ("https://x.org/p.jpg", "the address https://x.org/p.jpg; download"),
        ("x" * 300, "cannot be read (File name too long)"),
    ],
)
def test_what_is_no_path_is_said(capsys, model_path, name, message):
    code, _, err = run(capsys, name, "--model", model_path)
    assert code == 2 and message in err and err.count("\n") == 1


def test_nothing_done_is_exit_code_two(capsys, model_path, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    assert run(capsys, tmp_path / "bad.jpg", "--model", model_path)[0] == 2
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, tmp_path / "empty", "--model", model_path)
    assert code == 2 and "there is no photo (.apng, .avif, .bmp, .gif" in err and str(tmp_path / "empty") in err
    for arguments in ([], ["p.jpg", "--top", "0"], ["p.jpg", "--top", "x"], ["p.jpg", "--threads", "0"]):
        with pytest.raises(SystemExit) as stop:
            classify.main(arguments)
        assert stop.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_models_that_cannot_serve_are_refused_in_one_line(capsys, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(classify, "SHIPPED", tmp_path / "clothing-10-int8.tflite")
    (tmp_path / "n.tflite").write_bytes(b"nonsense" * 9)
    image = keras.Input((8, 8, 3))
    head = keras.layers.Dense(2, kernel_initializer="ones")(keras.layers.GlobalAveragePooling2D()(image))
    logits = quantization.save(tmp_path / "l.tflite", quantization.convert(keras.Model(image, head), "float32"), "ab")
    cases = {
        "no model clothing-10-int8.tflite; run notebook 3": [],
        "not a .tflite model": [tmp_path / "n.tflite"],
        "no class names": [saved(tmp_path, "u.tflite", None)],
        "from 0 to 1, got 'high'": [saved(tmp_path, "h.tflite", low_confidence="high")],
        "temperature in t.tflite's JSON must be a positive number, got 0": [saved(tmp_path, "t.tflite", temperature=0)],
        "expected probabilities from l.tflite, got": [logits],  # before: "boot 730.0%", exit 0
    }
    for message, path in cases.items():
        code, out, err = run(capsys, photo, *(["--model", *path] if path else []))
        assert (code, out, err.count("\n")) == (2, "", 1) and message in err


def test_from_any_folder_whatever_the_photo_is_called(model_path, photo, tmp_path):
    name = tmp_path / "\udcff é.jpg"  # a name that is no UTF-8
    name.write_bytes(photo.read_bytes())
    command = [sys.executable, ROOT / "utils" / "classify", name, "--model", model_path]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("%") == 3


def test_cold_it_loads_little_says_nothing_more_and_takes_under_a_second_of_processor_time(model_path, photo):
    code = (
        "import sys; from utils import classify; code = classify.main(sys.argv[1:])\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'torch', 'matplotlib', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "print(sorted(heavy), code)"
    )
    command = [sys.executable, "-c", code, str(photo), "--model", str(model_path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == "" and done.stdout.endswith("[] 0\n")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_closed_pipe_is_no_traceback(model_path, photo):
    command = [sys.executable, "-m", "utils.classify", *[str(photo)] * 400, "--model", str(model_path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), error) == (1, b"")


@pytest.mark.parametrize("sink, code, said", [("/dev/full", 1, "cannot be written (No space left"), (None, 0, "")])
def test_a_full_disk_is_one_sentence_and_a_closed_output_none_and_a_dash_is_what_comes_in(
    model_path, photo, sink, code, said
):
    """Before: two tracebacks, and "there is no photo -"."""
    command = f'exec "$0" -m utils.classify - --model "$1" < "$2" >{sink or "&-"}'
    shell = ["sh", "-c", command, sys.executable, model_path, photo]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (code, bool(said)) and said in done.stderr


def test_json_is_json_in_any_encoding_and_pillow_adds_no_lines_of_its_own(model_path, tmp_path, photo):
    """Before, the backslashes of names that the pipe's encoding lacks made no JSON; Pillow warned in two more lines."""
    (name := tmp_path / "\u00e9 \U0001f600.jpg").write_bytes(photo.read_bytes())
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    command = [sys.executable, ROOT / "utils" / "classify", "--json", "--model", model_path]
    environment = {"PYTHONIOENCODING": "cp1252", "PATH": ""}
    photos = [name, tmp_path / "large.png"]
    done = subprocess.run([*command, *photos], capture_output=True, cwd=tmp_path, check=False, env=environment)
    assert json.loads(done.stdout)[0]["photo"] == str(name)
    assert done.stderr.count(b"\n") == 1 and b"10000 x 10000 pixels" in done.stderr


def test_a_temperature_of_sigmoids_is_refused(tmp_path, photo):
    """Before, one sigmoid became 100 % whatever it said, and several were made to sum to 1."""
    for units in (1, 3):
        image = keras.Input((8, 8, 3))
        head = keras.layers.Dense(units, activation="sigmoid", kernel_initializer="zeros", bias_initializer="ones")
        content = quantization.convert(keras.Model(image, head(keras.layers.Flatten()(image))), "float32")
        path = quantization.save(tmp_path / "s.tflite", content, "abc"[:units], temperature=0.9)
        with pytest.raises(ValueError, match=rf"expected a softmax for the temperature .*, got {units}"):
            classify.classify(classify.load(path), photo)


def test_a_very_small_temperature_is_certain_and_never_nan(tmp_path, photo):
    first, *others = classify.classify(classify.load(saved(tmp_path, temperature=1e-5)), photo)["classes"]
    assert first["probability"] == 1 and all(entry["probability"] == 0 for entry in others)
