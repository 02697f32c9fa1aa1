"""Training: what it learns, that an interruption changes nothing, that nothing damaged or leaking is used."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
import warnings

import keras
import numpy as np
import pandas as pd
import pytest
import tiny_training
from conftest import ROOT
from tiny_training import config

from utils import files
from utils.datasets import pipeline, splits
from utils.models import networks as models
from utils.training import batches as training_data
from utils.training import callbacks, features, run_store
from utils.training import loop as training
from utils.training import modes as training_modes
from utils.training import run as runs

SIZE, CLASSES = tiny_training.SIZE, tiny_training.CLASSES
# Everything that has a state of its own: order, augmentation, mixing, dropout, schedule, moving average, optimizer.
STATEFUL = {
    "epochs": 3, "augment": "light", "schedule": "cosine", "warmup_epochs": 1, "ema": 0.8, "mixup": 0.2, "cutmix": 0.5,
    "optimizer": "adamw", "weight_decay": 0.01, "label_smoothing": 0.1, "class_weights": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny_training.squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setenv("CLOTHING_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "models")
    tiny_training.add_backbone(monkeypatch.setitem, monkeypatch.setattr)


def train(run, photos, **options):
    return training.train(run, photos, verbose=0, **options)


@pytest.fixture(scope="module")
def trained_once(photos, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        tiny_training.add_backbone(patch.setitem, patch.setattr)
        return train(config("frozen", epochs=2), photos, folder=tmp_path_factory.mktemp("once"))


@pytest.fixture
def finished(trained_once, tiny):
    """A finished run in the test's own runs folder; two epochs of head training."""
    shutil.copytree(trained_once.folder, files.runs_dir() / trained_once.run_id)
    return training.load(trained_once.run_id)


def no_training(monkeypatch):
    monkeypatch.setattr(training._Trainer, "go_on", lambda *_: pytest.fail("it trained"))


def equal_history(a, b):
    pd.testing.assert_frame_equal(
        a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), rtol=1e-4, atol=1e-5
    )


def equal_weights(a, b, atol=1e-5):
    for x, y in zip(a.model().get_weights(), b.model().get_weights(), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=1e-3)


class Stop(BaseException):
    """Like a kill: nothing in the code under test catches it."""


@contextlib.contextmanager
def stopping(monkeypatch, target, name, when):
    """Raise Stop at the `when`-th call of target.name (0: at once)."""
    calls, real = [0], getattr(target, name)

    def stop(*arguments, **options):
        calls[0] += 1
        if calls[0] > when:
            raise Stop
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, stop)
        with pytest.raises(Stop):
            yield


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_frozen_training_learns_and_is_the_full_network(photos, monkeypatch):
    run = train(config("frozen", epochs=12, learning_rate=0.1, dropout=0.0), photos)
    assert run.finished
    assert list(run.history["epoch"]) == list(range(1, 13))
    assert run.history["loss"].iloc[-1] < 0.7 * run.history["loss"].iloc[0]
    test = photos.part("test")
    found = run.predict(test)
    assert found.shape == (12, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert (found.argmax(1) == training_data.label_numbers(test, CLASSES)).mean() > 0.6
    # The head on cached features and the full network say the same of the best epoch.
    validation = photos.part("validation")
    accuracy = (run.predict(validation).argmax(1) == training_data.label_numbers(validation, CLASSES)).mean()
    assert accuracy == pytest.approx(run.history.set_index("epoch").loc[run.best_epoch, "val_accuracy"])
    assert accuracy == run.history["val_accuracy"].max()
    model = run.model()
    assert model.input_shape == (None, SIZE, SIZE, 3)
    images = pipeline.load_images(test, SIZE).astype("float32")
    np.testing.assert_allclose(model.predict(images, verbose=0), found, atol=1e-5)
    assert "finished, 12 of 12 epochs" in repr(run)
    # A finished run loads.
    no_training(monkeypatch)
    again = train(run.config, photos)
    equal_history(run, again)
    np.testing.assert_array_equal(again.predict(test), found)
    np.testing.assert_array_equal(training.load(run.run_id).predict(test), found)


def test_the_seed_alone_decides_whatever_ran_before(photos, trained_once, tmp_path):
    first = trained_once
    keras.random.uniform((3,))  # something drew numbers; the extractor is built already, and the features are cached
    again = train(config("frozen", epochs=2), photos, folder=tmp_path / "again")
    equal_history(again, first)


def test_views_and_mixup_on_features(photos):
    run = train(config("frozen", epochs=6, learning_rate=0.1, views=2, augment="light", mixup=0.2), photos)
    assert run.history["val_loss"].iloc[-1] < run.history["val_loss"].iloc[0]


def test_fine_tuning_starts_at_the_probe_and_leaves_batch_norm_alone(photos):
    run = train(config(epochs=4, learning_rate=3e-3, dropout=0.0), photos)
    train_part, validation = photos.part("train"), photos.part("validation")
    probe = features.linear_probe(
        features.extract("tiny", train_part, SIZE), train_part["label"], features.extract("tiny", validation, SIZE),
        validation["label"], classes=CLASSES,
    )  # fmt: skip
    assert run.initial["val_accuracy"] == pytest.approx(probe.validation_accuracy)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    before, after = models.transfer("tiny", 3, SIZE), run.model()
    for x, y in zip(before.get_layer("norm").get_weights(), after.get_layer("norm").get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.allclose(before.get_layer("conv").get_weights()[0], after.get_layer("conv").get_weights()[0])


def test_unfreezing_from_a_layer_leaves_those_before_it(photos):
    run = train(config(epochs=1, unfreeze_from="classifier", head_init="random"), photos)
    before, after = models.transfer("tiny", 3, SIZE), run.model()
    np.testing.assert_array_equal(before.get_layer("conv").get_weights()[0], after.get_layer("conv").get_weights()[0])
    assert run.initial == {}


def test_frozen_online_is_study_b(photos):
    run = train(config("frozen_online", epochs=3, augment="study_b"), photos)
    before, after = models.transfer("tiny", 3, SIZE), run.model()
    for name in ("conv", "norm"):
        for x, y in zip(before.get_layer(name).get_weights(), after.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(x, y)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]
    validation = photos.part("validation")
    accuracy = (run.predict(validation).argmax(1) == training_data.label_numbers(validation, CLASSES)).mean()
    assert accuracy == pytest.approx(run.history["val_accuracy"].max())


def test_the_baseline_trains_from_scratch_on_balanced_photos(photos):
    run = train(config("scratch", model="baseline_cnn", input_size=24, epochs=1, balance_to=5, batch_size=5), photos)
    assert (run.n_train, run.n_validation) == (15, 12)
    assert run.weights_source == "random initialization"
    # Batch normalization learns here.
    assert not np.allclose(run.model().get_layer("batch_normalization").get_weights()[2], 0)


def test_progressive_sizes_share_one_set_of_weights(photos, monkeypatch):
    seen, real = [], training_data.photo_batches

    def watching(frame, labels, weights, config, size, epoch):
        seen.append(size)
        return real(frame, labels, weights, config, size, epoch)

    monkeypatch.setattr(training_data, "photo_batches", watching)
    choices = {"epochs": 4, "input_size": 48, "progressive": (32, 48), "ema": 0.5, "dropout": 0.0}
    run = train(config(**choices), photos)
    assert seen == [32, 48]
    assert run.model().input_shape == (None, 48, 48, 3)
    assert run.history["loss"].iloc[-1] < run.history["loss"].iloc[0]


def test_the_best_epoch_is_the_first_of_equal_ones_and_patience_counts_from_it(photos, monkeypatch):
    accuracies = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    real = training._Trainer._judge
    monkeypatch.setattr(
        training._Trainer, "_judge", lambda self, setup: real(self, setup) | {"val_accuracy": next(accuracies)}
    )
    run = train(config("frozen", epochs=9, patience=2), photos)
    assert list(run.history["val_accuracy"]) == [0.5, 0.7, 0.7, 0.6]
    assert run.best_epoch == 2
    assert training._best_epoch([{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "val_loss": 1.0}], "val_loss") == 2


def test_without_validation_the_last_epoch_is_kept_by_name(photos):
    alone = dataclasses.replace(photos, frame=photos.frame[photos.frame["split"] != "validation"])
    with pytest.raises(ValueError, match=r"no validation photo.*monitor='none'"):
        train(config("frozen"), alone)
    run = train(config("frozen", monitor="none"), alone)
    assert run.best_epoch == 3
    assert "val_accuracy" not in run.history


def test_a_teacher_is_imitated_and_asked_once(photos, monkeypatch):
    asked = []

    def always_blue(frame):
        asked.append(len(frame))
        return np.tile([0.9, 0.05, 0.05], (len(frame), 1))

    choices = {"epochs": 12, "learning_rate": 0.1, "dropout": 0.0, "teacher_weight": 1.0, "monitor": "none"}
    student = config("frozen", teacher=("always blue",), **choices)
    with stopping(monkeypatch, training._Trainer, "_finish", 0):
        train(student, photos, teacher=always_blue)
    run = train(student, photos, teacher=always_blue)
    assert asked == [24]
    # All weight is on the teacher: the labels do not count.
    assert run.predict(photos.part("test"))[:, 0].mean() > 0.7
    task, store = (
        training_modes.Task(config(teacher=(run.run_id,)), photos),
        run_store.RunStore(run.folder.parent / "second"),
    )
    asked_for = training_modes.teacher_probabilities(task, store, None)
    np.testing.assert_allclose(asked_for, run.predict(photos.part("train")), atol=1e-6)


def test_a_teacher_that_cannot_be_asked_is_named(photos):
    with pytest.raises(FileNotFoundError, match="no finished run nobody-1"):
        train(config("frozen", teacher=("nobody-1",)), photos)
    with pytest.raises(ValueError, match=r"RunConfig\.teacher is empty"):
        train(config("frozen"), photos, teacher=lambda frame: None)
    with pytest.raises(ValueError, match=r"the teacher gave \(3,\)"):
        train(config("frozen", teacher=("odd",)), photos, teacher=lambda frame: np.ones(3))


def test_flipping_at_test_time_averages_two_views(photos, finished):
    run, test = finished, photos.part("test")
    images = pipeline.load_images(test, SIZE)
    both = (run.predict_images(images) + run.predict_images(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(run.predict(test, tta="flip"), both, atol=1e-6)
    assert not np.allclose(both, run.predict(test))
    with pytest.raises(ValueError, match="rotate"):
        run.predict(test, tta="rotate")
    assert run.predict(test.iloc[:0]).shape == (0, 3)


# --- interruptions ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """One run with everything that has a state, trained without an interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        tiny_training.add_backbone(patch.setitem, patch.setattr)
        return train(config(**STATEFUL), photos, folder=tmp_path_factory.mktemp("calm"))


def test_a_resumed_run_equals_an_undisturbed_one(photos, undisturbed, monkeypatch):
    run = config(**STATEFUL)
    with stopping(monkeypatch, training._Trainer, "_epoch", 1):  # between two epochs
        train(run, photos)
    with stopping(monkeypatch, files, "write_json", 0):  # the checkpoint is written, the state that names it is not
        train(run, photos)
    resumed = train(run, photos)
    equal_history(resumed, undisturbed)
    equal_weights(resumed, undisturbed)
    assert resumed.best_epoch == undisturbed.best_epoch
    kept = sorted(path.name.split("-")[0] for path in resumed.folder.iterdir())
    assert kept == ["state.json", "weights"]


def test_a_full_disk_loses_nothing(photos, monkeypatch):
    run = config("frozen", epochs=4)
    written, real = [], files.write_bytes

    def full(target, data):
        written.append(target)
        if len(written) > 4:
            raise OSError(28, f"cannot write {target}: No space left on device; free some space")
        real(target, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            train(run, photos)
    assert list(train(run, photos).history["epoch"]) == [1, 2, 3, 4]


def test_killed_training_ends_like_undisturbed_training():
    # A process of its own: it forks, and TensorFlow must not have run before.
    command = [sys.executable, str(ROOT / "tests" / "interruptions.py"), "--kills", "1", "--modes", "frozen"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["kills"], told["different"], told["leftovers"], told["damaged"]) == (1, 0, 0, 0)


def test_a_damaged_checkpoint_is_set_aside_never_half_used(photos, monkeypatch):
    run = config("frozen", epochs=2)
    with stopping(monkeypatch, training._Trainer, "_epoch", 1):
        train(run, photos)
    store = run_store.RunStore(files.runs_dir() / run.run_id_for(photos.fingerprint))
    path = next(store.folder.glob("checkpoint-*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=f"is not what was written.*set aside as {store.folder.name}.damaged-1"):
        again = train(run, photos)
    assert list(again.history["epoch"]) == [1, 2]
    assert store.folder.with_name(f"{store.folder.name}.damaged-1").is_dir()


@pytest.mark.parametrize("kind", ["checkpoint", "best"])
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "is not what was written"),
        (lambda path: path.write_bytes(b""), "is not what was written"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_every_file_of_a_run_is_checked(tmp_path, kind, harm, says):
    store = run_store.RunStore(tmp_path / "run")
    store.save({}, checkpoint={"w": np.ones(2)}, best={"w": np.zeros(2)})
    assert store.arrays(store.read(), "best")["w"].tolist() == [0, 0]
    harm(next(store.folder.glob(f"{kind}-*")))
    with pytest.raises(run_store.DamagedRun, match=says):
        store.read()


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", '{"schema": 1}', '{"schema": 1, "files": {}}', '{"schema": 99, "files": {}}', "\x00\xff"],
)
def test_a_damaged_state_is_set_aside(tmp_path, text):
    store, run = run_store.RunStore(tmp_path / "run"), config("frozen")
    store.save({}, checkpoint={"w": np.ones(2)})
    (store.folder / "state.json").unlink()
    if text is not None:
        (store.folder / "state.json").write_text(text)
    with pytest.warns(UserWarning, match="set aside as run.damaged-1"):
        assert training._state_to_resume(store, run, resume=True) is None
    assert not store.folder.exists()
    assert training._state_to_resume(store, run, resume=True) is None  # nothing there: nothing to warn of


def test_a_network_that_changed_is_trained_anew(photos, monkeypatch):
    run = config("frozen", epochs=2)
    with stopping(monkeypatch, training._Trainer, "_epoch", 1):
        train(run, photos)
    store = run_store.RunStore(files.runs_dir() / run.run_id_for(photos.fingerprint))
    store.save(store.read(), checkpoint={"model.0000.kernel": np.ones((2, 2))})
    with pytest.warns(UserWarning, match="not those of the model.*set aside"):
        assert len(train(run, photos).history) == 2


def test_a_damaged_finished_run_is_not_loaded(photos, finished):
    run = finished
    path = next(run.folder.glob("weights-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # one flipped bit
    path.write_bytes(data)
    with pytest.raises(FileNotFoundError, match=run.run_id):
        training.load(run.run_id)
    with pytest.warns(UserWarning, match="set aside"):
        train(run.config, photos)


def test_training_anew_keeps_the_old_run_aside(photos, finished):
    run = finished
    with pytest.warns(UserWarning, match="replaced-1"):
        train(run.config, photos, resume=False)
    assert run.folder.with_name(f"{run.folder.name}.replaced-1").is_dir()


def test_two_processes_never_train_the_same_run(photos, tmp_path):
    run = config("frozen", epochs=1)
    store = run_store.RunStore(files.runs_dir() / run.run_id_for(photos.fingerprint))
    with store.lock(), pytest.raises(run_store.RunBusy, match=f"trained by process {os.getpid()}"):
        train(run, photos)
    assert train(run, photos).finished  # the lock went with its owner


def test_a_folder_that_cannot_be_written_to_is_one_sentence(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*CLOTHING_RUNS_DIR"):
        train(config("frozen"), photos, folder=tmp_path / "file")


def test_a_loss_that_is_not_finite_stops_with_a_clear_error(photos, monkeypatch):
    run, real = config("frozen", epochs=3), callbacks.reseed

    def poison(network, seed, epoch):
        real(network, seed, epoch)
        if epoch == 1:
            network.trainable_variables[0].assign(np.full(network.trainable_variables[0].shape, np.nan))

    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "reseed", poison)
        with pytest.raises(callbacks.Diverged, match=r"loss became nan at step \d+ of epoch 2.*learning_rate"):
            train(run, photos)
    state = run_store.RunStore(files.runs_dir() / run.run_id_for(photos.fingerprint)).read()
    assert state["epochs_done"] == 1
    assert len(train(run, photos).history) == 3


# --- what may be trained on -------------------------------------------------------------------------------------------


def test_a_leaking_split_is_refused_unless_allowed_by_name(photos):
    leaking = dataclasses.replace(photos, frame=photos.frame.assign(sender="one person"))
    with pytest.raises(splits.SplitLeak, match="sender"):
        train(config("frozen"), leaking)
    assert train(config("frozen", epochs=1, allow_leaks=("sender",)), leaking).finished


def test_the_test_part_is_never_read_and_training_warns_of_nothing(photos):
    gone = photos.frame["path"].where(photos.frame["split"] != "test", "nowhere.png")
    unique = gone + photos.frame["id"].where(photos.frame["split"] == "test", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = train(config(epochs=1), dataclasses.replace(photos, frame=photos.frame.assign(path=unique)))
    assert run.finished


@pytest.mark.parametrize(
    ("choices", "change", "says"),
    [
        ({"model": "vgg"}, lambda f: f, "no model 'vgg'.*baseline_cnn.*mobilenet_v2"),
        ({}, lambda f: f[f["split"] != "train"], "no training photo"),
        ({}, lambda f: f[(f["split"] != "train") | (f["label"] != "red")], "no training photo of red"),
        ({}, lambda f: f.assign(label=f["label"].replace("red", "mauve")), "label 'mauve' is none of the classes"),
    ],
)
def test_photos_that_cannot_be_trained_on_are_named(photos, choices, change, says):
    with pytest.raises(ValueError, match=says):
        train(config("frozen", **choices), dataclasses.replace(photos, frame=change(photos.frame)))


def test_one_class_is_not_enough(photos):
    one = dataclasses.replace(photos, classes=("red",), frame=photos.frame[photos.frame["label"] == "red"])
    with pytest.raises(ValueError, match="1 class; training needs two"):
        train(config("frozen"), one)


def test_other_photos_are_another_run(photos, finished, monkeypatch):
    fewer = dataclasses.replace(photos, frame=photos.frame.iloc[1:])
    assert train(finished.config, photos).run_id == finished.run_id
    monkeypatch.setattr(training._Trainer, "go_on", lambda *_: pytest.fail("another run"))
    with pytest.raises(pytest.fail.Exception, match="another run"):
        train(finished.config, fewer)


# --- the compact form -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float16", 2e-3)])
def test_a_shipped_run_is_found_and_predicts_the_same(photos, finished, monkeypatch, tmp_path, dtype, tolerance):
    run = finished
    folder = training.export(run, dtype=dtype)
    assert folder == tmp_path / "models" / run.run_id
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "weights.npz"]
    assert str(tmp_path) not in (folder / "run.json").read_text()
    no_training(monkeypatch)
    shipped = train(run.config, photos, folder=tmp_path / "elsewhere")
    assert shipped.folder == folder
    test = photos.part("test")
    np.testing.assert_allclose(shipped.predict(test), run.predict(test), atol=tolerance)
    equal_history(shipped, run)
    assert not (tmp_path / "elsewhere").exists()  # read-only: nothing is written for a run that is there


def test_a_frozen_run_ships_its_head_and_is_found_only_on_the_same_backbone(finished, monkeypatch, tmp_path):
    run = finished
    folder = training.export(run)
    with np.load(folder / "weights.npz") as arrays:
        assert [arrays[name].ndim for name in sorted(arrays)] == [2, 1]
    assert training.load(run.run_id, tmp_path / "elsewhere").folder == folder
    for other in ("ImageNet of somebody else", models.WeightsUnavailable("no network")):

        def source(backbone, other=other):
            if isinstance(other, Exception):
                raise other
            return other

        monkeypatch.setattr(models, "weights_source", source)
        with pytest.raises(FileNotFoundError, match=run.run_id):
            training.load(run.run_id, tmp_path / "elsewhere")


def test_a_head_on_a_calibrated_backbone_is_not_shipped(finished):
    calibrated = dataclasses.replace(finished, weights_source=models.WARM_START)
    with pytest.raises(ValueError, match="its head alone is no model"):
        training.export(calibrated)


def test_a_damaged_shipped_run_is_named_and_not_used(photos, finished, tmp_path):
    run = finished
    folder = training.export(run)
    (folder / "weights.npz").write_bytes(b"half")
    with (
        pytest.warns(UserWarning, match=r"is not used: weights\.npz is not what was written"),
        pytest.raises(FileNotFoundError, match=run.run_id),
    ):
        training.load(run.run_id, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="float8"):
        training.export(run, dtype="float8")


# --- the parts --------------------------------------------------------------------------------------------------------


def test_class_weights_by_hand():
    frame = pd.DataFrame({"label": ["a"] * 6 + ["b"] * 3 + ["c"]})
    assert training.class_weights(frame, "abc") == pytest.approx({0: 10 / 18, 1: 10 / 9, 2: 10 / 3})
    table = training.class_weight_table(frame, "abc")
    assert list(table["class"]) == ["c", "b", "a"]
    assert (table["photos"] * table["weight"]).tolist() == pytest.approx([10 / 3] * 3)
    # Effective number with beta = 0.5: 1 - 0.5**n = 63/64, 7/8, 1/2.
    effective = training.class_weights(frame, "abc", "effective", beta=0.5)
    assert effective[2] / effective[1] == pytest.approx((7 / 8) / (1 / 2))
    assert 6 * effective[0] + 3 * effective[1] + effective[2] == pytest.approx(10)
    with pytest.raises(ValueError, match="no training photo of d"):
        training.class_weights(frame, "abcd")


def test_targets_by_hand():
    frame = pd.DataFrame({"label": ["b"]})
    np.testing.assert_allclose(training_data.targets(frame, "abcd", 0.1), [[0.025, 0.925, 0.025, 0.025]])
    mixed = training_data.targets(frame, "ab", 0.0, teacher=[[0.5, 0.5]], teacher_weight=0.2)
    np.testing.assert_allclose(mixed, [[0.1, 0.9]])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choices", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_mixing_mixes_pixels_and_labels_in_the_same_shares(choices, seed):
    n, side = 5, 16
    # Photo i is one everywhere in channel i: the mean of the channels is the share of each photo.
    images = np.broadcast_to(np.eye(n, dtype=np.float32)[:, None, None, :], (n, side, side, n))
    weights = np.arange(1, n + 1, dtype=np.float32)
    mixed, labels, mixed_weights = map(
        np.asarray, training_data.mix_batch(images, np.eye(n, dtype=np.float32), weights, seed, **choices)
    )
    np.testing.assert_allclose(mixed.mean((1, 2)), labels, atol=1e-5)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(labels @ weights, mixed_weights, rtol=1e-5)
    if "mixup" not in choices:
        assert set(np.unique(mixed)) <= {0.0, 1.0}  # pasted, not blended
    again = training_data.mix_batch(images, np.eye(n, dtype=np.float32), weights, seed, **choices)
    np.testing.assert_array_equal(mixed, again[0])


@pytest.mark.parametrize("teacher", [(), ("somebody",)])
def test_each_photo_comes_with_its_own_target_and_weight_in_every_epoch(photos, teacher):
    frame, epoch = photos.part("train"), [0]
    numbers = training_data.label_numbers(frame, CLASSES)
    soft = np.random.default_rng(0).dirichlet([1, 1, 1], len(frame)) if teacher else None
    labels = training_data.targets(frame, CLASSES, 0.1, soft, 0.5)
    weights = np.array([1.0, 2.0, 3.0], np.float32)[numbers]
    data = training_data.photo_batches(
        frame, labels, weights, config(teacher=teacher, batch_size=5), SIZE, lambda: epoch[0]
    )
    plain = pipeline.load_images(frame, SIZE).astype(np.float32)
    orders = []
    for epoch[0] in (0, 1, 0):
        seen = [tuple(map(np.asarray, batch)) for batch in data]
        images, found, weight = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        rows = [int(np.flatnonzero((plain == image).all((1, 2, 3)))[0]) for image in images]
        assert sorted(rows) == list(range(len(frame)))
        np.testing.assert_allclose(found, labels[rows], atol=1e-6)
        np.testing.assert_array_equal(weight, weights[rows])
        orders.append(rows)
    assert orders[0] == orders[2] != orders[1]


def test_mixing_varies_with_the_seed_and_is_off_by_default():
    images = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    labels, weights = np.eye(4, dtype=np.float32), np.ones(4, np.float32)
    np.testing.assert_array_equal(training_data.mix_batch(images, labels, weights, 1)[0], images)
    mixed = [np.asarray(training_data.mix_batch(images, labels, weights, seed, mixup=1.0)[0]) for seed in range(8)]
    assert len({some.tobytes() for some in mixed}) == 8


def test_the_schedule_by_hand():
    rate = callbacks.WarmupCosine(2.0, total_steps=10, warmup_steps=4)
    found = [float(rate(step)) for step in (0, 3, 4, 7, 10, 99)]
    assert found == pytest.approx([0.5, 2.0, 2.0, 1.0, 0.0, 0.0], abs=1e-6)
    flat = callbacks.WarmupCosine(2.0, 10, 4, cosine=False)
    assert [float(flat(step)) for step in (1, 9)] == pytest.approx([1.0, 2.0])
    again = callbacks.WarmupCosine.from_config(rate.get_config())
    assert float(again(6)) == float(rate(6))


def test_the_learning_rate_follows_the_schedule_through_the_run(undisturbed):
    # 24 photos, batch 8: 3 steps an epoch, 9 in all, 3 of warm-up; read after the last step of each epoch.
    wanted = [float(callbacks.WarmupCosine(1e-2, 9, 3)(step)) for step in (3, 6, 9)]
    assert undisturbed.history["learning_rate"].tolist() == pytest.approx(wanted, abs=1e-9)


def test_the_moving_average_is_judged_and_taken_back():
    import tensorflow as tf

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(callbacks.make_optimizer(config(optimizer="adam", ema=0.75, learning_rate=0.1), 1), loss="mse")
    values = []
    for _ in range(3):
        model.fit(tf.ones((1, 1)), tf.zeros((1, 1)), verbose=0)
        values.append(float(model.get_weights()[0][0, 0]))
    average = values[0]
    for value in values[1:]:
        average = 0.75 * average + 0.25 * value
    with callbacks.averaged_weights(model):
        assert float(model.get_weights()[0][0, 0]) == pytest.approx(average, rel=1e-5)
    assert float(model.get_weights()[0][0, 0]) == values[-1]


def test_weight_decay_leaves_biases_and_batch_norm_alone():
    model = models.transfer("tiny", 3, SIZE)
    optimizer = callbacks.make_optimizer(config(optimizer="adamw", weight_decay=0.1), 1)
    optimizer.build(model.trainable_variables)
    decayed = {v.name for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


def test_dropout_starts_anew_in_every_epoch():
    model = keras.Sequential([keras.Input((50,)), keras.layers.Dropout(0.5)])

    def masks(epoch, calls=1):
        callbacks.reseed(model, 3, epoch)
        return [np.asarray(model(np.ones((1, 50)), training=True)) for _ in range(calls)]

    first, second = masks(0, 2)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(masks(0)[0], first)
    assert not np.array_equal(masks(1)[0], first)


def test_arrays_that_are_not_the_models_are_refused_whole():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    arrays = run_store.variables_to_arrays(model.weights)
    before = model.get_weights()
    wrong = {name: value[:1] if value.ndim == 1 else value + 1 for name, value in arrays.items()}
    for bad in (wrong, dict(list(arrays.items())[:1]), {}):
        with pytest.raises(run_store.DamagedRun, match="weights"):
            run_store.assign(model.weights, bad, "weights of a test")
    for x, y in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


# --- several devices --------------------------------------------------------------------------------------------------

MIRRORED = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)
import tiny_training
from utils import training
tiny_training.add_backbone(dict.__setitem__, setattr)
photos = tiny_training.squares({folder!r} + "/photos", per_class=(5, 5, 5))
# 15 photos in batches of 8, and 15 of validation: the last seven divide unevenly, (4, 3) and (2, 2, 2, 1).
told = {{}}
for name, devices in (("plain", 0), ("1", 1), ("2", 2), ("4", 4)):
    named = [f"CPU:{{number}}" for number in range(devices)]
    strategy = tf.distribute.MirroredStrategy(named, tf.distribute.HierarchicalCopyAllReduce()) if named else None
    run = tiny_training.config(epochs=2, dropout=0.0, batch_size=8, class_weights=True)
    done = training.train(run, photos, strategy=strategy, folder={folder!r} + "/" + name, verbose=0)
    told[name] = [done.history.drop(columns="seconds").to_dict("list"), done.predict(photos.frame).tolist()]
print(json.dumps(told))
"""


def test_one_two_and_four_devices_give_the_result_of_none(tmp_path):
    code = MIRRORED.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path))
    environment = os.environ | {"CLOTHING_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    wanted_history, wanted = told.pop("plain")
    assert set(told) == {"1", "2", "4"}
    for devices, (history, found) in told.items():
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=devices)
        for name, values in wanted_history.items():
            np.testing.assert_allclose(history[name], values, rtol=1e-4, atol=1e-5, err_msg=f"{devices}: {name}")


def test_a_device_without_photos_is_refused_before_training():
    # Shares are rounded up: 5 photos for 4 devices are 2, 2, 1 and none.
    assert [n for n in range(1, 13) if not training_modes.divides(n, 16, 4)] == [1, 2, 3, 5, 6, 9]
    assert not training_modes.divides(17, 8, 2)
    assert training_modes.divides(18, 8, 2)
    assert all(training_modes.divides(n, 8, 1) for n in range(1, 30))


def test_a_strategy_over_several_machines_is_refused_before_training(tiny, photos):
    extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True)
    with pytest.raises(ValueError, match=r"spans several machines.*use MirroredStrategy on each machine"):
        train(config("frozen"), photos, strategy=types.SimpleNamespace(extended=extended))
    import tensorflow as tf

    assert not training_modes.spans_machines(tf.distribute.OneDeviceStrategy("CPU:0"))


# --- the same numbers again -------------------------------------------------------------------------------------------

AGAIN = """
import json, sys
sys.path[:0] = [{root!r}, {tests!r}]
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
import tiny_training
from utils import training
tiny_training.add_backbone(dict.__setitem__, setattr)
photos = tiny_training.squares({folder!r} + "/photos")
run = tiny_training.config("fine_tune", augment="light", mixup=0.2, ema=0.8, schedule="cosine", seed=3)
done = training.train(run, photos, folder={folder!r} + "/" + sys.argv[1], verbose=0)
print(json.dumps([done.history.drop(columns="seconds").to_dict("list"), done.predict(photos.frame).tolist()]))
"""


def test_two_processes_with_one_seed_agree_to_the_last_digit(tmp_path):
    """TensorFlow promises that with op determinism, on one machine; without it the digits may differ at the end."""
    code = AGAIN.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path))
    environment = os.environ | {"CLOTHING_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code]
    made = [
        subprocess.run([*command, name], capture_output=True, text=True, env=environment, timeout=600)
        for name in ("once", "again")
    ]
    assert [done.returncode for done in made] == [0, 0], made[0].stderr[-3000:]
    once, again = (json.loads(done.stdout.splitlines()[-1]) for done in made)
    assert once == again
