"""The command: what it prints, what it imports, how it fails."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import quantization_models as small
from PIL import Image

from utils import quantization
from utils.classify import command as classify
from utils.classify.photo import read_photo

ROOT = pathlib.Path(classify.__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.tflite"
    return quantization.save(path, small.files()["int8"], small.CLASSES, scheme="int8", low_confidence=0.0)


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
    assert (code, err) == (0, "")
    assert out.startswith(f"{photo}: ")
    assert out.count("%") == 3
    code, out, _ = run(capsys, photo, "--model", model_path, "--top", 9, "--json")
    (entry,) = json.loads(out)
    expected = small.plain_loop(small.files()["int8"], read_photo(photo, small.SIZE)[None])[0]
    order = np.argsort(-expected, kind="stable")
    assert [c["label"] for c in entry["classes"]] == [small.CLASSES[i] for i in order]
    assert [c["probability"] for c in entry["classes"]] == pytest.approx(list(expected[order]), abs=1e-6)
    assert entry["low_confidence"] is False


@pytest.mark.parametrize("ending, options", [("png", {}), ("webp", {"lossless": True}), ("JPG", {"quality": 95})])
def test_formats(capsys, model_path, tmp_path, ending, options):
    path = tmp_path / f"p.{ending}"
    Image.fromarray(small.photos(1)[0]).save(path, **options)
    assert run(capsys, path, "--model", model_path)[0] == 0


def test_orientation_tag_is_obeyed(model_path, tmp_path):
    picture = Image.fromarray(small.photos(3)[2])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    turned.save(tmp_path / "lying.png")
    picture.save(tmp_path / "plain.png")
    model = classify.load(model_path)
    answers = [classify.classify(model, tmp_path / f"{name}.png") for name in ("plain", "turned", "lying")]
    assert answers[0] == answers[1] != answers[2]


def test_photos_can_be_bytes(model_path, photo):
    model = classify.load(model_path)
    assert classify.classify(model, photo.read_bytes()) == classify.classify(model, photo)


def test_low_confidence_is_said(capsys, tmp_path, photo):
    path = quantization.save(tmp_path / "m.tflite", small.files()["int8"], small.CLASSES, low_confidence=1.0)
    code, out, _ = run(capsys, photo, "--model", path)
    assert code == 0
    assert "may show none of these classes" in out
    assert json.loads(run(capsys, photo, "--model", path, "--json")[1])[0]["low_confidence"] is True
    quantization.save(path, small.files()["int8"], small.CLASSES)
    assert classify.threshold(classify.load(path)) == classify.LOW_CONFIDENCE
    quantization.save(path, small.files()["int8"], small.CLASSES, low_confidence="high")
    code, _, err = run(capsys, photo, "--model", path)
    assert code == 2
    assert "from 0 to 1, got 'high'" in err


def test_folders_are_walked_and_bad_photos_do_not_stop_the_rest(capsys, model_path, tmp_path, photo):
    below = tmp_path / "below" / "deeper"
    below.mkdir(parents=True)
    (below / "good.JPG").write_bytes(photo.read_bytes())
    (below / "cut.jpg").write_bytes(photo.read_bytes()[:200])
    (below / "notes.txt").write_text("not a photo")
    code, out, err = run(capsys, tmp_path, tmp_path / "missing.jpg", "--model", model_path)
    assert code == 1
    assert out.count("%") == 6
    assert err.count("\n") == 3
    assert f"skipped 1 file in {tmp_path} (below/deeper/notes.txt): not photos" in err
    assert "cut.jpg" in err
    assert "missing.jpg" in err
    entries = json.loads(run(capsys, below, "--json", "--model", model_path)[1])
    assert [sorted(entry) for entry in entries] == [["error", "photo"], ["classes", "low_confidence", "photo"]]


def test_photos_that_cannot_be_read_are_counted_and_named(capsys, model_path, tmp_path, photo):
    folder = tmp_path / "phone"
    folder.mkdir()
    (folder / "IMG_1.JPG").write_bytes(photo.read_bytes())
    for ending in ("gif", "bmp"):
        Image.open(photo).save(folder / f"a.{ending}")
    for number in range(2, 9):
        (folder / f"IMG_{number}.HEIC").write_bytes(b"heic")
    (folder / "IMG_9.avif").write_bytes(b"avif")
    (folder / ".DS_Store").write_bytes(b"")
    code, out, err = run(capsys, folder, "--model", model_path)
    assert (code, out.count("\n"), err.count("\n")) == (1, 3, 1)
    assert f"skipped 8 files in {folder} (IMG_2.HEIC, IMG_3.HEIC" in err and "and 3 more): save them as JPEG" in err


@pytest.mark.parametrize(
    "name, message",
    [("", "an empty name; is a variable unset"), ("https://x.org/p.jpg", "the address https://x.org/p.jpg; download")],
)
def test_what_is_no_path_is_said(capsys, model_path, name, message):
    code, _, err = run(capsys, name, "--model", model_path)
    assert code == 2 and message in err and err.count("\n") == 1


def test_a_temperature_in_the_json_calibrates_the_probabilities(model_path, tmp_path, photo, capsys):
    plain = classify.classify(classify.load(model_path), photo, top=4)["classes"]
    path = quantization.save(tmp_path / "m.tflite", small.files()["int8"], small.CLASSES, temperature=2.0)
    softer = classify.classify(classify.load(path), photo, top=4)["classes"]
    p = np.array([entry["probability"] for entry in plain])
    logits = np.log(p) / 2
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [entry["label"] for entry in softer] == [entry["label"] for entry in plain]
    assert [entry["probability"] for entry in softer] == pytest.approx(list(expected), abs=1e-6)
    quantization.save(path, small.files()["int8"], small.CLASSES, temperature=0)
    code, _, err = run(capsys, photo, "--model", path)
    assert code == 2 and "temperature in m.tflite's JSON must be a positive number, got 0" in err


def test_from_any_folder(model_path, photo, tmp_path):
    command = [sys.executable, ROOT / "utils" / "classify", photo, "--model", model_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("%") == 3


def test_nothing_done_is_exit_code_two(capsys, model_path, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    assert run(capsys, tmp_path / "bad.jpg", "--model", model_path)[0] == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = run(capsys, empty, "--model", model_path)
    assert code == 2
    assert f"no photo (.jpg, .jpeg, .png, .webp, .gif, .bmp) in the folder {empty}" in err


def test_missing_foreign_and_unlabelled_models(capsys, tmp_path, photo, monkeypatch):
    monkeypatch.setattr(classify, "SHIPPED", tmp_path / "clothing-10-int8.tflite")
    code, out, err = run(capsys, photo)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "no model clothing-10-int8.tflite; run notebook 3" in err
    for content, message in ((b"nonsense" * 9, "not a .tflite model"), (small.files()["int8"], "no class names")):
        (tmp_path / "m.tflite").write_bytes(content)
        code, _, err = run(capsys, photo, "--model", tmp_path / "m.tflite")
        assert code == 2
        assert message in err
        assert "Traceback" not in err


@pytest.mark.parametrize("options", [["--top", "0"], ["--top", "x"], ["--threads", "0"], []])
def test_bad_options(capsys, options):
    with pytest.raises(SystemExit) as stop:
        classify.main(["p.jpg", *options] if options else [])
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_tensorflow_and_no_noise(model_path, photo):
    """In a process of its own: the modules it loads, and nothing but the answer on both streams."""
    code = (
        "import sys; from utils import classify; code = classify.main(sys.argv[1:])\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'torch', 'matplotlib', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "print(sorted(heavy), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(photo), "--model", str(model_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr == ""
    assert done.stdout.endswith("[] 0\n")


def test_under_a_second_of_processor_time(model_path, photo):
    """Cold start to answer, in processor time so that a busy machine does not matter."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "utils.classify", str(photo), "--model", str(model_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_closed_pipe_is_no_traceback(model_path, photo):
    command = [sys.executable, "-m", "utils.classify", *[str(photo)] * 400, "--model", str(model_path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), error) == (1, b"")
