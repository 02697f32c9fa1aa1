"""A slice of tests/hostile.py: damaged files are refused by name or are valid files; nothing crashes, hangs or runs."""

import json
import subprocess
import sys
import zipfile

import hostile
import numpy as np
import pytest
from PIL import Image

from utils.classify import interpreter as tflite_model
from utils.classify import photo
from utils.classify.interpreter import TFLiteModel
from utils.datasets import audit


@pytest.mark.parametrize("kinds", [["jpeg", "png", "webp", "csv", "results", "labels"], ["shipped"]])
def test_a_slice_of_the_mutations(kinds):
    command = [sys.executable, hostile.__file__, "--count", "120", "--seed", "1", "--kinds", *kinds]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"crashes": 0, "hangs": 0, "other": 0' in done.stdout
    if kinds == ["shipped"]:
        assert '"accepted": 0' in done.stdout  # the digest tells every change


def test_a_reader_that_raises_something_else_or_dies_is_told(tmp_path, monkeypatch, capsys):
    def falls(path):
        raise KeyError(path)

    monkeypatch.setattr(hostile, "reader", lambda kind: (".jpg", falls))
    hostile.work("jpeg", 0, 0, 2, tmp_path)
    assert capsys.readouterr().out.count("verdict wrong KeyError") == 2
    monkeypatch.setattr(hostile, "reader", lambda kind: (".jpg", lambda path: (_ for _ in ()).throw(ValueError("no"))))
    hostile.work("jpeg", 0, 0, 1, tmp_path)
    assert "verdict unnamed ValueError: no" in capsys.readouterr().out


def test_every_mutation_changes_or_shortens():
    whole = bytes(range(256)) * 4
    rng = np.random.default_rng(0)
    made = [hostile.mutate(whole, rng) for _ in range(200)]
    assert whole not in made
    assert {len(one) < len(whole) for one in made} == {True, False}


def test_a_changed_model_never_reaches_native_code(tmp_path, monkeypatch):
    whole = hostile.seeds("shipped")
    path = tmp_path / "model.tflite"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    digest = hostile.hashlib.sha256(whole).hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
    monkeypatch.setattr(tflite_model, "open_interpreter", lambda *_: pytest.fail("native code saw it"))
    with pytest.raises(ValueError, match=r"model\.tflite is not the file that the JSON beside it describes"):
        TFLiteModel(path)


def test_a_model_whose_weights_are_gone_is_a_sentence():
    model = TFLiteModel(hostile.seeds("shipped"), num_threads=1)

    class Broken:
        def set_tensor(self, *_):
            """Takes anything."""

        def invoke(self):
            raise RuntimeError("Input tensor 7 lacks data")

    model._interpreter = Broken()
    with pytest.raises(ValueError, match=r"the model is damaged \(Input tensor 7 lacks data\)"):
        model(np.zeros((1, 224, 224, 3), np.uint8))


@pytest.mark.parametrize("mode", ["CMYK", "P", "I;16", "LA", "1", "RGBA", "L"])
def test_unusual_photos_are_read(tmp_path, mode):
    path = tmp_path / "photo.png"
    ending = "JPEG" if mode == "CMYK" else "PNG"
    Image.new(mode, (5, 3)).save(path, ending)
    assert photo.read_photo(path, 8).shape == (8, 8, 3)


def test_a_single_pixel_and_a_bomb(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    assert photo.read_photo(tmp_path / "one.png", 8).shape == (8, 8, 3)
    Image.new("1", (30_000, 30_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb\.png.*megapixels"):
        photo.read_photo(tmp_path / "bomb.png", 8)


def test_an_animation_gives_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert photo.read_photo(tmp_path / "moving.webp", 8)[0, 0].tolist() == [255, 0, 0]


def test_a_name_that_climbs_is_refused(tmp_path):
    path = tmp_path / "images.csv"
    path.write_text(hostile.INDEX + "../../etc/passwd,3,Hat,False\n")
    with pytest.raises(ValueError, match=r"images\.csv"):
        audit.read_index(path)


def test_a_keras_file_that_wants_to_run_code_does_not(tmp_path):
    import keras

    from utils.models import saved_models

    mark = str(tmp_path / "ran")
    layer = keras.layers.Lambda(lambda x, mark=mark: __import__("pathlib").Path(mark).touch() or x)
    model = keras.Sequential([keras.Input((2,)), layer])
    (tmp_path / "ran").unlink(missing_ok=True)
    model.save(tmp_path / "trap.keras")
    assert zipfile.is_zipfile(tmp_path / "trap.keras")
    with pytest.raises(ValueError, match=r"trap\.keras is refused"):
        saved_models.load(tmp_path / "trap.keras")
    assert not (tmp_path / "ran").exists()
