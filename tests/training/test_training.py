"""Training: what it learns, that an interruption changes nothing, that nothing damaged or leaking is used."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pandas as pd
import pytest
import tiny_training
from conftest import ROOT
from tiny_training import config

from utils import evaluation, files, models
from utils.datasets import pipeline, splits
from utils.models import networks
from utils.training import batches, features, loop
from utils.training import run as runs

SIZE, CLASSES = tiny_training.SIZE, tiny_training.CLASSES
# Everything that has a state of its own: order, augmentation, dropout, schedule, optimizer.
STATEFUL = {
    "epochs": 3, "augment": "light", "schedule": "cosine", "warmup_epochs": 1, "optimizer": "adamw",
    "weight_decay": 0.01, "label_smoothing": 0.1, "class_weights": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny_training.squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    tiny_training.prepare(monkeypatch, tmp_path)
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "models")


def train(run, photos, **options):
    return loop.train(run, photos, **{"verbose": 0} | options)


@pytest.fixture(scope="module")
def trained_once(photos, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        tiny_training.prepare(patch, tmp_path_factory.mktemp("once"))
        run = train(config("frozen", epochs=2), photos)
        run.predict(photos.part("test"))  # its network is built while the backbone is known
        return run


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """One run with everything that has a state, trained without an interruption."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_training.prepare(patch, tmp_path_factory.mktemp("calm"))
        return train(config(**STATEFUL), photos)


@pytest.fixture
def finished(trained_once, tiny):
    """A finished run in the test's own runs folder; two epochs of head training."""
    shutil.copytree(trained_once.folder, files.runs_dir() / trained_once.run_id)
    return runs.load(trained_once.run_id)


def accuracy(run, frame):
    return (run.predict(frame).argmax(1) == pipeline.label_numbers(frame["label"], CLASSES)).mean()


def no_training(monkeypatch):
    monkeypatch.setattr(loop._Trainer, "go_on", lambda *_: pytest.fail("it trained"))


def equal_history(a, b):
    pd.testing.assert_frame_equal(
        a.history.drop(columns="seconds"), b.history.drop(columns="seconds"), rtol=1e-4, atol=1e-5
    )


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
    assert list(run.history["epoch"]) == list(range(1, 13))
    assert run.history["loss"].iloc[-1] < 0.7 * run.history["loss"].iloc[0]
    test = photos.part("test")
    found = run.predict(test)
    assert found.shape == (12, 3)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert accuracy(run, test) > 0.6
    # The head on cached features and the full network say the same of the best epoch.
    best = run.history.set_index("epoch").loc[run.best_epoch, "val_accuracy"]
    assert accuracy(run, photos.part("validation")) == pytest.approx(best)
    assert best == run.history["val_accuracy"].max()
    images = pipeline.load_images(test, SIZE).astype("float32")
    np.testing.assert_allclose(run.model().predict(images, verbose=0), found, atol=1e-5)
    assert "finished, 12 of 12 epochs" in repr(run)
    # A finished run loads.
    no_training(monkeypatch)
    again = train(run.config, photos)
    equal_history(run, again)
    np.testing.assert_array_equal(again.predict(test), found)
    np.testing.assert_array_equal(runs.load(run.run_id).predict(test), found)


def test_the_seed_alone_decides_whatever_ran_before(photos, trained_once, tmp_path):
    keras.random.uniform((3,))  # something drew numbers; the extractor is built already, and the features are cached
    equal_history(train(config("frozen", epochs=2), photos, folder=tmp_path / "again"), trained_once)


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


def test_the_baseline_trains_from_scratch_on_balanced_photos(photos):
    run = train(config("scratch", model="baseline_cnn", input_size=24, epochs=1, balance_to=5, batch_size=5), photos)
    assert (run.n_train, run.n_validation) == (15, 12)
    assert run.weights_source == "random initialization"
    # Batch normalization learns here.
    assert not np.allclose(run.model().get_layer("batch_normalization").get_weights()[2], 0)


def test_fused_batch_norm_is_what_keras_computes():
    images = np.random.default_rng(0).normal(2, 1, (4, 3, 3, 2)).astype("float32")
    targets, kept = np.eye(3, dtype="float32")[[0, 1, 2, 1]], []
    for fused in (False, True):
        keras.utils.set_random_seed(0)
        norm, head = keras.layers.BatchNormalization(epsilon=0.3, momentum=0.8), keras.layers.Dense(3, "softmax")
        model = keras.Sequential([keras.Input((3, 3, 2)), norm, keras.layers.Flatten(), head])
        if fused:
            loop.fuse_batch_norm(model)
        model.compile(keras.optimizers.SGD(0.1), "categorical_crossentropy", jit_compile=False)
        losses = [float(model.train_on_batch(images, targets)) for _ in range(3)]
        kept.append([np.array(losses), model.predict(images, verbose=0), *model.get_weights()])
    for plain, quick in zip(*kept, strict=True):
        np.testing.assert_allclose(quick, plain, rtol=1e-4, atol=1e-5)


def test_the_best_epoch_is_the_first_of_equal_ones_and_patience_counts_from_it(photos, monkeypatch):
    accuracies, real = iter([0.5, 0.7, 0.7, 0.6, 0.9]), loop._Keeper.on_epoch_end

    def judged(self, epoch, logs):
        real(self, epoch, logs | {"val_accuracy": next(accuracies)})

    monkeypatch.setattr(loop._Keeper, "on_epoch_end", judged)
    run = train(config("frozen", epochs=9, patience=2), photos)
    assert list(run.history["val_accuracy"]) == [0.5, 0.7, 0.7, 0.6]
    assert run.best_epoch == 2
    assert loop._best_epoch([{"epoch": 1, "val_loss": 2.0}, {"epoch": 2, "val_loss": 1.0}], "val_loss") == 2


def test_without_validation_the_last_epoch_is_kept_by_name(photos):
    alone = dataclasses.replace(photos, frame=photos.frame[photos.frame["split"] != "validation"])
    with pytest.raises(ValueError, match=r"no validation photo.*monitor='none'"):
        train(config("frozen"), alone)
    run = train(config("frozen", monitor="none"), alone)
    assert run.best_epoch == 3
    assert "val_accuracy" not in run.history


def test_any_keras_callback_is_called_and_validation_is_printed(photos, capsys):
    seen = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, logs["val_accuracy"])))
    run = train(config("frozen", epochs=2), photos, callbacks=watch, verbose=2)  # alone or in a list, as in Keras' fit
    assert seen == list(enumerate(run.history["val_accuracy"]))
    assert "Epoch 2/2" in (told := capsys.readouterr().out) and told.count("val_accuracy") == 2


def test_photos_may_be_a_path_paths_images_or_a_frame(photos, finished):
    test = photos.part("test")
    found, paths, images = finished.predict(test), test["path"].tolist(), pipeline.load_images(test, SIZE)
    for same in (paths, images):
        np.testing.assert_array_equal(finished.predict(same), found)
    for first in (paths[0], pathlib.Path(paths[0])):
        np.testing.assert_allclose(finished.predict(first), found[:1], atol=1e-6)
    assert finished.predict(test.iloc[:0]).shape == (0, 3)
    mirrored = finished.predict(images[:, :, ::-1])
    np.testing.assert_allclose(finished.predict(test, tta="flip"), (found + mirrored) / 2, atol=1e-6)
    assert not np.allclose(mirrored, found)
    with pytest.raises(ValueError, match="tta must be False or 'flip', got 'rotate'"):
        finished.predict(test, tta="rotate")
    with pytest.raises(ValueError, match=r"shape \(n, 32, 32, 3\), got \(24, 24, 3\)"):
        finished.predict(np.zeros((24, 24, 3)))
    with pytest.raises(ValueError, match="a frame of photos needs the column path, got label, split, sender, id"):
        finished.predict(test.drop(columns="path"))


# --- interruptions ----------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_undisturbed_one(photos, undisturbed, monkeypatch):
    run = config(**STATEFUL)
    with stopping(monkeypatch, loop._Keeper, "on_epoch_begin", 1):  # between two epochs
        train(run, photos)
    with stopping(monkeypatch, files, "write_json", 0):  # the weights are written, the state that names them is not
        train(run, photos)
    resumed = train(run, photos)
    equal_history(resumed, undisturbed)
    for x, y in zip(resumed.model().get_weights(), undisturbed.model().get_weights(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5, rtol=1e-3)
    assert resumed.best_epoch == undisturbed.best_epoch
    assert sorted(path.name for path in resumed.folder.iterdir()) == ["run.json", "weights.npz"]


def test_a_full_disk_loses_nothing(photos, monkeypatch):
    run, written, real = config("frozen", epochs=4), [], np.savez

    def full(target, **arrays):
        written.append(target)
        if len(written) > 4:  # features of two sets, two epochs
            raise OSError(28, "No space left on device")
        real(target, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match=r"cannot write .*checkpoint\.npz: No space left"):
            train(run, photos)
    state, _ = runs.read_checkpoint(files.runs_dir() / run.run_id_for(photos.fingerprint) / "checkpoint.npz")
    assert state["epochs_done"] == 2
    assert list(train(run, photos).history["epoch"]) == [1, 2, 3, 4]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What trainings in processes of their own left: dict of name -> history, best epoch, files, weights."""
    command = [sys.executable, str(ROOT / "tests" / "forked_training.py"), str(tmp_path_factory.mktemp("alone"))]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_training_that_is_killed_three_times_ends_like_undisturbed_training(alone):
    assert [row["epoch"] for row in alone["once"]["history"]] == list(range(1, 9))
    killed = [name for name in alone if name.startswith("killed")]
    assert killed and all(alone[name] == alone["once"] for name in killed)


def test_one_seed_gives_one_result_to_the_last_digit_and_two_devices_that_of_one(alone):
    """TensorFlow promises equal digits with op determinism, on one machine; without it the last ones may differ."""
    once, two = alone["once"], alone["two"]
    assert alone["again"] == once
    for name, values in once["weights"].items():
        np.testing.assert_allclose(two["weights"][name], values, atol=1e-4, err_msg=name)
    for row, wanted in zip(two["history"], once["history"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("harm", ["cut off", "empty", "of another network"])
def test_a_damaged_checkpoint_is_set_aside_never_half_used(photos, monkeypatch, harm):
    run = config("frozen", epochs=2)
    with stopping(monkeypatch, loop._Keeper, "on_epoch_begin", 1):
        train(run, photos)
    home = files.runs_dir() / run.run_id_for(photos.fingerprint)
    path = home / "checkpoint.npz"
    if harm == "of another network":
        runs.write_checkpoint(path, runs.read_checkpoint(path)[0], model={"0000.kernel": np.ones((2, 2))})
    else:
        path.write_bytes(path.read_bytes()[:-9] if harm == "cut off" else b"")
    with pytest.warns(UserWarning, match=f"set aside as {home.name}.old-1"):
        assert list(train(run, photos).history["epoch"]) == [1, 2]
    assert (home.parent / f"{home.name}.old-1" / "checkpoint.npz").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1, "status": "finished", "files": {}}'])
def test_a_damaged_state_is_named_and_trained_anew(photos, finished, text):
    (finished.folder / "run.json").write_text(text)
    with (
        pytest.warns(UserWarning, match=rf"{finished.run_id} is not used: .*trained again when"),
        pytest.raises(FileNotFoundError, match=finished.run_id),
    ):
        runs.load(finished.run_id)
    with pytest.warns(UserWarning, match="is not used"):
        equal_history(train(finished.config, photos), finished)


def test_a_run_of_the_older_layout_is_read(photos, finished):
    found, state = finished.predict(photos.frame), files.read_json(finished.folder / "run.json")
    state["files"]["weights"]["name"] = "weights-0123.npz"
    (finished.folder / "weights.npz").rename(finished.folder / "weights-0123.npz")
    (finished.folder / "run.json").unlink()
    files.write_json(finished.folder / "state.json", state)
    np.testing.assert_array_equal(runs.load(finished.run_id).predict(photos.frame), found)


def test_two_processes_do_not_train_one_run(photos):
    run = config("frozen")
    with (
        runs.lock(files.runs_dir() / run.run_id_for(photos.fingerprint)),
        pytest.raises(runs.RunBusy, match=f"is being trained by process {os.getpid()}"),
    ):
        train(run, photos)


def test_a_loss_that_is_no_number_ends_in_one_sentence_and_keeps_what_was(photos, monkeypatch):
    run = config(epochs=2, learning_rate=1e-3)
    with stopping(monkeypatch, loop._Keeper, "on_epoch_begin", 1):
        train(run, photos)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "class_targets", lambda *_: np.full((3, 3), np.nan, np.float32))
        with pytest.raises(loop.Diverged, match=r"loss became nan at step 1 of epoch 2, .*lower learning_rate"):
            train(run, photos)
    assert list(train(run, photos).history["epoch"]) == [1, 2]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_sender_on_two_sides_is_a_leak_unless_it_is_allowed_by_name(photos):
    frame = photos.frame.copy()
    frame.loc[frame["split"] == "test", "sender"] = frame["sender"].iloc[0]
    leaking = dataclasses.replace(photos, frame=frame)
    with pytest.raises(splits.SplitLeak, match=r"sender.*RunConfig: allow_leaks"):
        train(config("frozen"), leaking)
    assert train(config("frozen", epochs=1, allow_leaks=("sender",)), leaking).best_epoch == 1


@pytest.mark.parametrize(
    ("choices", "change", "says"),
    [
        ({"model": "vgg"}, lambda frame: frame, "model must be one of baseline_cnn, .*, got 'vgg'"),
        ({}, lambda frame: frame.drop(columns="path"), "a dataset to train on needs the column path, got label, split"),
        ({}, lambda frame: frame[frame["split"] != "train"], "no training photo; check its split"),
        ({}, lambda f: f[(f["split"] != "train") | (f["label"] != "red")], "no training photo of red"),
        ({}, lambda f: f.assign(label=[float("nan"), "pink", *f["label"][2:]]), "needs a label in every row, got 1"),
        ({}, lambda f: f.assign(label=f["label"].replace("red", "pink")), "labels among .* got 'pink'"),
    ],
)
def test_photos_that_cannot_be_trained_on_are_named(photos, choices, change, says):
    with pytest.raises(ValueError, match=says):
        train(config("frozen", **choices), dataclasses.replace(photos, frame=change(photos.frame)))


def test_what_is_no_config_or_no_dataset_is_named(photos):
    for run, dataset, got in (
        (photos, config(), "Photos and RunConfig"),
        (config(), "my_photos", "RunConfig and str"),
        (config(), photos.frame, "RunConfig and DataFrame"),
    ):
        with pytest.raises(TypeError, match=f"needs a RunConfig and a Dataset .*, got {got}"):
            train(run, dataset)


def test_a_folder_that_cannot_be_written_to_is_named(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to .*file: .*; set CLOTHING_RUNS_DIR to a folder of yours"):
        train(config("frozen"), photos, folder=tmp_path / "file")


@dataclasses.dataclass(frozen=True)
class OneFingerprint(tiny_training.Photos):
    fingerprint = "always the same"


def test_exchanged_labels_are_another_run_also_under_one_fingerprint(photos, monkeypatch):
    first, run = OneFingerprint(photos.frame), config("frozen", epochs=4, learning_rate=0.1, dropout=0.0)
    exchanged = {"red": "blue", "blue": "red", "green": "green"}
    other = OneFingerprint(photos.frame.assign(label=photos.frame["label"].map(exchanged)))
    trained, test = train(run, first), photos.part("test")
    answers = trained.predict(test).argmax(1)
    assert train(run, OneFingerprint(photos.frame.assign(sha256=""))).content == trained.content
    with stopping(monkeypatch, loop._Keeper, "on_epoch_begin", 1), pytest.warns(UserWarning, match="other photos or"):
        train(run, other)
    again = train(run, other)  # goes on with the interrupted one
    assert (again.predict(test)[:, [2, 1, 0]].argmax(1) == answers).mean() > 0.6
    with pytest.warns(UserWarning, match="trained on other photos or labels"):
        train(run, first)


# --- what ships -------------------------------------------------------------------------------------------------------


def test_a_shipped_run_is_found_and_predicts_the_same(photos, finished, monkeypatch, tmp_path):
    folder = runs.export(finished)
    assert folder == tmp_path / "models" / finished.run_id
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "weights.npz"]
    assert str(tmp_path) not in (folder / "run.json").read_text()
    with np.load(folder / "weights.npz") as arrays:  # of a frozen run the head alone
        assert [arrays[name].ndim for name in sorted(arrays)] == [2, 1]
    no_training(monkeypatch)
    shipped = train(finished.config, photos, folder=tmp_path / "elsewhere")
    assert shipped.folder == folder
    test = photos.part("test")
    np.testing.assert_allclose(shipped.predict(test), finished.predict(test), atol=2e-3)
    equal_history(shipped, finished)
    assert not (tmp_path / "elsewhere").exists()  # read-only: nothing is written for a run that is there
    with pytest.raises(pytest.fail.Exception, match="it trained"):
        train(finished.config, photos, folder=tmp_path / "elsewhere", shipped=False)


def test_a_head_is_found_only_on_the_same_backbone_and_without_the_network(finished, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="its head alone cannot predict"):  # the backbone was calibrated
        runs.export(dataclasses.replace(finished, weights_source=models.WARM_START))
    runs.export(dataclasses.replace(finished, weights_source="ImageNet"))

    def fetch(name, weights, download=True):
        assert not download, "it asked the network for a name in a table"
        raise models.WeightsUnavailable("not on this machine")

    with monkeypatch.context() as patch:
        patch.setattr(networks, "_weights", fetch)
        assert runs.load(finished.run_id, tmp_path / "elsewhere").weights_source == "ImageNet"
    monkeypatch.setattr(networks, "_weights", lambda *_: ("ImageNet of somebody else", None))
    with pytest.raises(FileNotFoundError, match=finished.run_id):
        runs.load(finished.run_id, tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", [b"half", None])
@pytest.mark.parametrize("name", ["weights.npz", "predictions.npz"])
def test_a_damaged_shipped_run_is_named_and_not_used(photos, trained_once, tmp_path, damage, name):
    folder = runs.export(trained_once) if name == "weights.npz" else runs.export_record(trained_once, photos)
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    with (
        pytest.warns(UserWarning, match=rf"is not used: .*{name}.*fetch the repository again"),
        pytest.raises(FileNotFoundError, match=trained_once.run_id),
    ):
        runs.load(trained_once.run_id, tmp_path / "nothing")


def test_a_record_is_judged_as_the_run_itself_and_says_what_it_does_not_hold(
    trained_once, photos, monkeypatch, tmp_path
):
    folder, test = runs.export_record(trained_once, photos), photos.part("test")
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.npz", "run.json"]
    record = runs.load(trained_once.run_id, tmp_path / "nothing")  # a machine that has nothing else of it
    assert record.recorded and not trained_once.recorded
    for frame in (photos.part("validation"), test.sample(frac=1, random_state=1)):
        np.testing.assert_allclose(record.predict(frame), trained_once.predict(frame), atol=1e-6)
    own, shown = (evaluation.evaluate(run.predict, test, photos.classes) for run in (trained_once, record))
    assert own.accuracy == shown.accuracy
    pd.testing.assert_frame_equal(record.history, trained_once.history)
    assert record.architecture().count_params() == trained_once.architecture().count_params() > 0
    for error, says, ask in (
        (FileNotFoundError, "ships what it predicted, not its weights.*resume=False", record.model),
        (ValueError, "plain photos", lambda: record.predict(test, tta="flip")),
        (ValueError, "pass a DataFrame", lambda: record.predict("photo.jpg")),
        (ValueError, "24 photos; 24 of the 48 asked for", lambda: record.predict(photos.frame)),
        (ValueError, "a record already", lambda: runs.export_record(record, photos)),
        (ValueError, "trained on photos",
         lambda: runs.export_record(trained_once, tiny_training.Photos(photos.frame[1:]))),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            ask()
    no_training(monkeypatch)
    assert train(record.config, photos, folder=tmp_path / "nothing").folder == record.folder


# --- the parts --------------------------------------------------------------------------------------------------------


def test_the_learning_rate_follows_the_schedule(undisturbed):
    for cosine, wanted in ((True, [0.5, 2.0, 2.0, 1.0, 0.0, 0.0]), (False, [0.5, 2.0, 2.0, 2.0, 2.0, 2.0])):
        rate = loop.WarmupCosine(2.0, total_steps=10, warmup_steps=4, cosine=cosine)
        assert [float(rate(step)) for step in (0, 3, 4, 7, 10, 99)] == pytest.approx(wanted, abs=1e-6)
    # 24 photos, batch 8: 3 steps an epoch, 9 in all, 3 of warm-up; read after the last step of each epoch.
    wanted = [float(loop.WarmupCosine(1e-2, 9, 3)(step)) for step in (3, 6, 9)]
    assert undisturbed.history["learning_rate"].tolist() == pytest.approx(wanted, abs=1e-9)


def test_weight_decay_leaves_biases_and_batch_norm_alone():
    model = models.transfer("tiny", 3, SIZE)
    optimizer = loop.make_optimizer(config(optimizer="adamw", weight_decay=0.1), 1)
    optimizer.build(model.trainable_variables)
    assert {v.name for v in model.trainable_variables if optimizer._use_weight_decay(v)} == {"kernel"}


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_gradient_is_shortened_to_clip_norm_over_all_weights_together(name):
    # lengths 3 and 4 are 5 together: a limit of 1 makes them 3/5 and 4/5, and Adam's first moment a tenth of that
    weights = [keras.Variable([0.0, 0.0]), keras.Variable([0.0])]
    optimizer = loop.make_optimizer(config(optimizer=name, clip_norm=1.0), 1)
    optimizer.build(weights)
    optimizer.apply([keras.ops.array([3.0, 0.0]), keras.ops.array([4.0])])
    moments = {v.path: v.numpy().tolist() for v in optimizer.variables if "momentum" in v.path}
    assert sorted(moments.values()) == [pytest.approx([0.06, 0.0]), pytest.approx([0.08])]


def test_a_strategy_that_does_not_fit_is_refused_before_training(photos):
    import tensorflow as tf

    with pytest.raises(ValueError, match=r"over devices of this machine, got object; .*train other runs there"):
        train(config("frozen"), photos, strategy=object())
    two = tf.distribute.MirroredStrategy(["CPU:0"])
    two.__class__ = type("Two", (tf.distribute.MirroredStrategy,), {"num_replicas_in_sync": 2})
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 devices, got 5"):
        train(config("frozen", batch_size=5), photos, strategy=two)


def test_scaled_images_are_refused_where_the_answers_would_be_of_a_black_photo():
    run = types.SimpleNamespace(recorded=False, config=config())
    images = np.random.default_rng(0).random((2, SIZE, SIZE, 3), np.float32)
    with pytest.raises(ValueError, match=r"images must be pixels in 0\.\.255, got 0\.\.1; the network scales"):
        runs.Run.predict(run, images)
