"""`python -m utils.training my_photos --out my_model`: from a folder of photos to a model that classifies."""

import errno
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from utils import classify, datasets, evaluation, training
from utils.datasets import sketches
from utils.plots import style
from utils.training import __main__ as command
from utils.training import loop

SMALL = ("--size", "64", "--epochs", "6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes with names of any language, a text file, a broken photo, a copy of another one."""
    mine = tmp_path_factory.mktemp("own") / "my photos"
    for label, name in (("dress", "Hüte ü"), ("hat", "帽子"), ("shoes", "old shoes")):
        (target := mine / name).mkdir(parents=True)
        for number in range(20):
            sketches.draw(label, f"style-{number % 5}", 64, number).save(target / f"{label} {number} photo.PNG")
    (mine / "notes.txt").write_text("about my photos")
    (target / "broken.jpg").write_bytes(b"\xff\xd8\xff half")
    shutil.copy(next(target.glob("*.PNG")), target / "again.png")
    return mine


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


def test_a_folder_becomes_a_model_and_ctrl_c_loses_nothing(folder, tmp_path, capsys, monkeypatch):
    out, real = tmp_path / "my model", loop._Keeper.on_epoch_begin

    def stop(self, epoch, logs=None):
        if epoch == 3:
            raise KeyboardInterrupt
        real(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Keeper, "on_epoch_begin", stop)
        assert command.main([str(folder), "--out", str(out), *SMALL]) == 130
    assert capsys.readouterr().out.rstrip().endswith("goes on where this one was; finished epochs are kept.")
    assert command.main([str(folder), "--out", str(out), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "broken.jpg" in said and "notes.txt" in said and "6/6" in said
    assert "Note: the accuracy may lie anywhere from" in said  # nine test photos
    assert "same answer as the float network" in said
    assert said.splitlines()[-1] == f"python -m utils.classify PHOTO.jpg --model '{out}/model.tflite'"
    before, real = (out / "confusion_matrix.png").read_bytes(), style.Picture.savefig

    def fill(self, path, **options):
        real(self, path, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(style.Picture, "savefig", fill)
        assert command.main([str(folder), "--out", str(out), *SMALL]) == 2
    assert re.search(r"cannot write .*confusion_matrix\.png: No space left", capsys.readouterr().err)
    assert (out / "confusion_matrix.png").read_bytes() == before
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "confusion_matrix.png", "model.json", "model.tflite", "training"}
    card = (out / "README.md").read_text()
    assert "EfficientNet-Lite0, frozen below a new head, on photos of 3 classes: Hüte ü, old shoes, 帽子." in card
    assert "| multiply-accumulates per photo | " in card and "95% Wilson interval" in card
    model = classify.load(out / "model.tflite")
    assert sorted(model.labels) == ["Hüte ü", "old shoes", "帽子"]
    photos = sorted((folder / "帽子").glob("*.PNG"))
    answers = model(datasets.load_images(pd.DataFrame({"path": photos}), 64)).argmax(1)
    assert (answers == model.labels.index("帽子")).mean() > 0.6


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder, tmp: ["nowhere", "--out", str(tmp / "x")], "there is no folder nowhere"),
        (lambda folder, tmp: ["n" * 300, "--out", str(tmp / "x")], "there is no folder nnn"),
        (lambda folder, tmp: [str(folder), "--out", str(tmp / "x"), "--epochs", "0"], "--epochs must be a positive"),
        (lambda folder, tmp: [str(folder), "--out", str(tmp / "x"), "--size", "9"], "--size must be from 32 to 1024"),
        (lambda folder, tmp: [str(folder), "--out", str(folder / "model")], "--out must lie outside the photos"),
        (lambda folder, tmp: [str(folder), "--out", __file__], "cannot write to .*: .*; pass another folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(folder, tmp_path, capsys, change, says):
    with pytest.raises(SystemExit):
        command.main(change(folder, tmp_path))
    assert re.search(says, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_files_of_something_else_are_not_overwritten(folder, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(SystemExit):
        command.parse([str(folder), "--out", str(tmp_path)])
    assert "--out must be new, or hold training/ of this command, got" in capsys.readouterr().err
    (tmp_path / "training").mkdir()  # as this repository's utils/ has one
    with pytest.raises(SystemExit):
        command.parse([str(folder), "--out", str(tmp_path)])
    (tmp_path / "training" / "run-1").mkdir()
    (tmp_path / "training" / "run-1" / "run.json").write_text("{}")
    assert command.parse([str(folder), "--out", str(tmp_path)]).out == tmp_path


def test_a_picture_of_somebody_else_is_not_overwritten(folder, tmp_path, capsys):
    (tmp_path / "confusion_matrix.png").write_text("mine")
    with pytest.raises(SystemExit):
        command.parse([str(folder), "--out", str(tmp_path)])
    assert "with confusion_matrix.png" in capsys.readouterr().err


def test_a_reader_that_has_gone_is_one_sentence(folder, tmp_path):
    done = subprocess.run(
        f"{sys.executable} -m utils.training {shlex.quote(str(folder))} --out {shlex.quote(str(tmp_path))} | true",
        shell=True, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert re.fullmatch("Stopped: nothing reads the output .* The same command goes on .*\n", done.stderr)


@pytest.mark.parametrize("name", ["a|b", "`x`", "*hat*", "_hat_", "<b>", r"back\slash", "[link](there)"])
def test_a_class_name_is_text_in_the_card(name):
    text = command._cell(name)
    assert re.sub(r"\\(.)", r"\1", text) == name
    assert not re.search(r"(?<!\\)(\\\\)*[|`*_<\[]", text)


def test_names_that_the_terminal_cannot_show_end_nothing(folder, tmp_path):
    program = (
        "import runpy, sys; from utils import environment\n"
        "environment.quiet = lambda: exit('here')\n"  # before TensorFlow
        f"sys.argv = ['', {str(folder)!r}, '--out', {str(tmp_path)!r}]\n"
        "runpy.run_module('utils.training', None, '__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stderr == "here\n" and r"\u5e3d\u5b50" in done.stdout


@pytest.mark.filterwarnings("ignore")
def test_the_card_claims_no_more_of_the_split_than_is_known(folder, tmp_path, monkeypatch):
    data = datasets.from_folder(folder, lambda photo: None if photo.stem == "again" else photo.stem.split()[1])
    verdict = evaluation.evaluate(np.eye(3), pd.DataFrame({"label": data.classes}), data.classes)
    facts = types.SimpleNamespace(total_macs=1, total_params=1, weights_source="ImageNet")
    (tmp_path / "my_hats").mkdir()
    monkeypatch.chdir(tmp_path / "my_hats")
    options = command.parse([str(folder), "--out", "."])
    command._write_card(options, data, facts, verdict, verdict, 1.0, facts, 1, "train", "classify")
    known = "nobody's photos are on two sides, as far as is known: nobody said who took 1 of the photos."
    assert known in pathlib.Path("README.md").read_text()
    assert pathlib.Path("README.md").read_text().startswith("# my\\_hats\n")  # before, of "." no name at all


def test_a_folder_that_cannot_be_used_is_one_sentence(folder, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    assert command.main([str(tmp_path / "photos"), "--out", str(tmp_path / "x")]) == 2
    assert "error: there are no photos in folders below" in capsys.readouterr().err
    assert command.main([str(folder), "--out", str(tmp_path / "x"), "--split", "grouped"]) == 2
    assert "error: a grouped split needs senders, got None" in capsys.readouterr().err


def test_what_tensorflow_says_at_its_import_is_not_shown(folder, tmp_path):
    program = (
        "import utils.training.__main__ as command\n"
        "command._config = lambda *_: exit('here')\n"  # all imports are behind us
        f"command.main([{str(folder)!r}, '--out', {str(tmp_path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "here\n" and "photos kept: 60" in done.stdout


@pytest.mark.filterwarnings("ignore")
def test_small_sets_are_chosen_by_validation_loss_and_take_small_steps(folder, tmp_path):
    data = datasets.from_folder(folder)
    frozen = command._config(command.parse([str(folder), "--out", str(tmp_path)]), data, 40, 8)
    assert (frozen.mode, frozen.monitor, frozen.batch_size, frozen.patience) == ("frozen", "val_loss", 8, 15)
    fine = command.parse([str(folder), "--out", str(tmp_path), "--fine-tune", "--epochs", "3"])
    fine = command._config(fine, data, 40, 0)
    assert (fine.mode, fine.epochs, fine.monitor, fine.warmup_epochs) == ("fine_tune", 3, "none", 1)
    assert isinstance(fine, training.RunConfig)
