"""What strangers hand in: damaged and tricky photos, tables, models and records are read or refused in one sentence."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
import quantization_models
from conftest import ROOT
from PIL import Image

from utils import flops
from utils.classify import interpreter, photo
from utils.datasets import audit

INDEX = "image,sender_id,label,kids\n" + "".join(f"a-{i},{i % 7},{('Hat', 'Dress')[i % 2]},False\n" for i in range(40))


def mutate(data, rng):
    """`data` with bits flipped, cut off, or a part overwritten, doubled or made of zeros; never as it was."""
    changed = data
    while changed == data:
        kind, copy = rng.integers(0, 6), bytearray(data)
        start, length = int(rng.integers(0, len(data))), int(rng.integers(1, 65))
        if kind == 0:
            del copy[start:]
        elif kind in (1, 2):
            for place in rng.integers(0, len(data), rng.integers(1, 9)):
                copy[place] ^= 1 << rng.integers(0, 8)
        elif kind == 3:
            copy[start : start + length] = rng.bytes(length)
        elif kind == 4:
            copy[start:start] = copy[start : start + length]
        else:
            copy[start : start + length] = bytes(length)
        changed = bytes(copy)
    return changed


def picture(kind):
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(stream, kind, quality=80)
    return stream.getvalue()


KINDS = {  # what arrives: (its name, whole bytes, who reads it)
    "jpeg": ("input.jpg", lambda: picture("JPEG"), lambda path: photo.read_photo(path, 32)),
    "png under another name": ("input.jpg", lambda: picture("PNG"), lambda path: photo.read_photo(path, 32)),
    "webp": ("input.webp", lambda: picture("WEBP"), lambda path: photo.read_photo(path, 32)),
    "csv": ("images.csv", INDEX.encode, audit.read_index),
    "labels": ("input.json", (ROOT / "models" / "clothing-10-int8.json").read_bytes, interpreter.read_description),
    "tflite": ("input.tflite", lambda: quantization_models.files()["int8"], flops.count_tflite),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_by_one_sentence_that_names_them(kind, tmp_path):
    name, whole, read = KINDS[kind]
    path, refused = tmp_path / name, 0
    path.write_bytes(whole())
    read(path)
    for number in range(60):
        path.write_bytes(mutate(whole(), np.random.default_rng([number, len(kind)])))
        try:
            read(path)  # a bit that flips inside pixels or words leaves a valid file
        except ValueError as error:
            assert path.stem in str(error), error
            refused += 1
    assert refused > 3


@pytest.mark.parametrize(
    "text",
    [
        INDEX.replace("label", "class"), INDEX.replace(",", ";"), INDEX + "../../etc/passwd,3,Hat,False\n", "", "\n\n",
        INDEX + "/etc/passwd,3,Hat,False\n",
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_or_climbs_is_refused_by_name(tmp_path, text):
    (tmp_path / "images.csv").write_text(text)
    with pytest.raises(ValueError, match=r"images\.csv"):
        audit.read_index(tmp_path / "images.csv")


def test_a_changed_model_never_reaches_native_code(tmp_path, monkeypatch):
    whole = (ROOT / "models" / "clothing-10-int8.tflite").read_bytes()
    path = tmp_path / "model.tflite"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    path.with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(whole).hexdigest()}))
    monkeypatch.setattr(interpreter, "open_interpreter", lambda *_: pytest.fail("native code saw it"))
    with pytest.raises(ValueError, match=r"model\.tflite"):
        interpreter.TFLiteModel(path)


def test_a_keras_file_that_wants_to_run_code_does_not(tmp_path):
    import keras

    mark = str(tmp_path / "ran")
    layer = keras.layers.Lambda(lambda x, mark=mark: __import__("pathlib").Path(mark).touch() or x)
    model = keras.Sequential([keras.Input((2,)), layer])
    (tmp_path / "ran").unlink(missing_ok=True)
    model.save(tmp_path / "trap.keras")
    assert zipfile.is_zipfile(tmp_path / "trap.keras")
    with pytest.raises(ValueError, match="unsafe"):  # how this repository says to load models: safe_mode is the default
        keras.saving.load_model(tmp_path / "trap.keras")
    assert not (tmp_path / "ran").exists()
