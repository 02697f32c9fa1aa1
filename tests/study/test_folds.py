"""study.folds: each photo is judged by a run of strangers, and the compact form is checked."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tiny_training

from study import folds as fold_runs
from utils import training
from utils.training import RunConfig
from utils.training import run as runs


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    found = tiny_training.squares(tmp_path_factory.mktemp("photos"), per_class=(6, 2, 2))
    senders = [f"s{i % 7}" for i in range(len(found.frame))]
    return dataclasses.replace(found, frame=found.frame.assign(sender=senders))


class FakeRun:
    """Knows who trained it; its probabilities tell which senders those were."""

    run_id = "run"

    def __init__(self, senders, classes):
        self.senders, self.classes = senders, classes

    def predict(self, frame, tta=False):
        assert not self.senders & set(frame["sender"]), "a sender stands on both sides"
        sure = 0.9 if tta else 0.8
        found = np.full((len(frame), len(self.classes)), (1 - sure) / (len(self.classes) - 1))
        found[np.arange(len(frame)), [self.classes.index(label) for label in frame["label"]]] = sure
        return found


@pytest.fixture
def trained(monkeypatch):
    configs = []

    def train(config, dataset, folder=None, verbose=1):
        part = dataset.frame[dataset.frame["split"] == "train"]
        configs.append((config, dataset.fingerprint))
        return FakeRun(set(part["sender"]), list(dataset.classes))

    monkeypatch.setattr(training, "train", train)
    return configs


CONFIG = RunConfig("folds", "efficientnet_lite0", "fine_tune", 2, patience=1)


def judge(photos, folder, **settings):
    return fold_runs.cross_validate(CONFIG, photos, k=3, folder=folder, verbose=0, **settings)


def test_every_photo_once_by_a_stranger(photos, trained, tmp_path):
    judged = judge(photos, tmp_path)
    assert judged["plain"].n == len(photos.frame) and judged["plain"].accuracy == 1.0
    assert len({fingerprint for _, fingerprint in trained}) == 3
    assert all(config.monitor == "none" and config.patience is None for config, _ in trained)
    assert judged["flip"].evaluation.probabilities.max() == pytest.approx(0.9, abs=1e-3)
    again = judge(photos, tmp_path)
    assert len(trained) == 3  # nothing was trained anew
    np.testing.assert_array_equal(again["plain"].evaluation.probabilities, judged["plain"].evaluation.probabilities)


def test_the_compact_form_serves_without_the_runs(photos, trained, tmp_path, monkeypatch):
    judged = judge(photos, tmp_path / "runs")
    monkeypatch.setattr(fold_runs, "SHIPPED", tmp_path / "models")
    with pytest.raises(FileNotFoundError, match="train the folds first"):
        fold_runs.export(CONFIG, photos, k=4, folder=tmp_path / "runs")
    fold_runs.export(CONFIG, photos, k=3, folder=tmp_path / "runs")
    assert judge(photos, tmp_path / "empty")["plain"].accuracy == judged["plain"].accuracy and len(trained) == 3
    row = types.SimpleNamespace(id="whole", note="", run=CONFIG, tie=fold_runs.TIE)
    (line,) = fold_runs.compare([row], photos, numbers=(1,), k=3, seed=0)
    assert line["n"] == judged["plain"].folds.loc[2, "n"] and line["accuracy"] == 1 and len(trained) == 3
    judge(photos, tmp_path / "other", shipped=False)
    assert len(trained) == 6  # RETRAIN


def test_recipes_are_compared_on_the_same_photos_of_the_folds_that_are_named(photos, trained, monkeypatch):
    whole, seen = FakeRun.predict, []

    def predict(self, frame, tta=False):
        seen.append(set(frame["id"]))
        found = whole(self, frame, tta)
        return found[:, ::-1] if len(seen) == 3 else found  # the second recipe errs on its first fold, but for green

    monkeypatch.setattr(FakeRun, "predict", predict)
    rows = [types.SimpleNamespace(id=name, note="", run=dataclasses.replace(CONFIG, name=name), tie=fold_runs.TIE)
            for name in ("one", "other")]  # fmt: skip
    one, other = fold_runs.compare(rows, photos, numbers=(2, 0), k=3)
    assert seen[:2] == seen[2:] and not seen[0] & seen[1]
    assert one["n"] == other["n"] == len(seen[0] | seen[1]) and one["accuracy"] == 1 and one["paired"] is None
    assert {config.name for config, _ in trained} == {"one", "other"} and len(trained) == 4
    wrong = sum(label != "green" for label in photos.frame.loc[photos.frame["id"].isin(seen[0]), "label"])
    paired = other["paired"]
    assert (paired["only_a"], paired["only_b"]) == (wrong, 0) and paired["difference"] == -wrong / one["n"]
    assert {run for line in (one, other) for run in line["run_ids"]} == {"run"}


def test_a_soup_is_the_mean_of_the_weights_and_its_bound_the_mean_of_the_answers(photos, monkeypatch):
    classes = list(photos.classes)

    class Network:
        """Its only weight says how sure it is of the first class."""

        def __init__(self, weight):
            self.weight = weight

        def get_weights(self):
            return [np.array(self.weight)]

        def set_weights(self, weights):
            self.weight = float(weights[0])

        def predict(self, images, verbose):
            return answer(self.weight, len(images))

    def answer(weight, count):
        return np.tile([weight, *[(1 - weight) / (len(classes) - 1)] * (len(classes) - 1)], (count, 1))

    class Run:
        def __init__(self, seed):
            self.run_id, self.weight = f"seed-{seed}", (0.9, 0.05, 0.01)[seed]

        def model(self):
            return Network(self.weight)

        def predict(self, frame, tta=False):
            # alone, the second and third are for another class; all three mirrored, for the first
            return answer(0.8 if tta else self.weight if self.weight > 0.5 else 0.0, len(frame))

    monkeypatch.setattr(training, "train", lambda config, *_, **__: Run(config.seed))
    row = types.SimpleNamespace(id="row", note="", run=dataclasses.replace(CONFIG, input_size=32), tie=fold_runs.TIE)
    lines = fold_runs.soup(row, photos, k=3)
    assert [line["run_ids"] for line in lines] == [["seed-1"], ["seed-2"], *[["seed-0", "seed-1", "seed-2"]] * 2]
    # Only the first run and all answers together are for the first class: the mean weight, 0.32, is less than a third.
    first = [line["paired"]["both_right"] + line["paired"]["only_a"] for line in lines]
    assert len(set(first)) == 1 and 0 < first[0] < lines[0]["n"]
    assert [line["paired"]["only_a"] for line in lines] == [first[0]] * 3 + [0] and lines[3]["accuracy"] < 1


def test_a_wider_network_is_asked_among_the_shared_classes_on_the_shared_photos(photos, monkeypatch):
    # Its set is in another order, lacks two photos and names the classes with capitals, one more of them first.
    photos = dataclasses.replace(photos, frame=photos.frame.assign(sha256=photos.frame["id"]))
    wide = dataclasses.replace(
        photos, classes=("Violet", *(name.title() for name in photos.classes)), frame=photos.frame.iloc[:1:-1]
    )
    truth = {name: np.array([photos.classes.index(label) for label in one.frame["label"]]) for name, one in
             (("narrow", photos), ("wide", wide))}  # fmt: skip
    narrow = np.eye(len(photos.classes))[truth["narrow"]]
    others = 0.6 * np.eye(len(wide.classes))[[0] * len(wide.frame)]  # violet everywhere, the true class next
    others[np.arange(len(wide.frame)), truth["wide"] + 1] = 0.4
    others[0] = np.roll(others[0], 1)  # the last photo: to another class of those shared, or to violet
    answers = {"narrow": narrow, "wide": others}
    monkeypatch.setattr(fold_runs, "judge", lambda row, _: types.SimpleNamespace(
        evaluation=types.SimpleNamespace(probabilities=answers[row.id])
    ))  # fmt: skip
    rows = [types.SimpleNamespace(id=name, note="", run=CONFIG, tie=fold_runs.TIE) for name in ("wide", "narrow")]
    one, other = fold_runs.among_shared_classes(rows[0], wide, rows[1], photos)
    assert one["n"] == other["n"] == len(photos.frame) - 2 and (one["accuracy"], one["paired"]) == (1, None)
    assert (other["paired"]["only_a"], other["paired"]["only_b"], other["recipe"]) == (1, 0, "wide")


def test_damage_is_named(photos, trained, tmp_path):
    judge(photos, tmp_path)
    folder = tmp_path / fold_runs.cv_id(CONFIG, photos.fingerprint, 3)
    record, predictions = folder / fold_runs.RECORD, folder / fold_runs.PREDICTIONS
    before = json.loads(record.read_text())
    for harm, data, says in (
        ({"fingerprint": "other"}, None, "belongs to photos other"),
        ({}, b"PK", f"{folder.name} cannot be used: its predictions are not what its record names"),
    ):
        record.write_text(json.dumps(before | harm))
        predictions.write_bytes(data or predictions.read_bytes())
        with pytest.raises(ValueError, match=says):
            judge(photos, tmp_path)


def test_an_interrupted_cross_validation_goes_on_with_finished_folds(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("CLOTHING_CACHE_DIR", str(tmp_path / "cache"))
    tiny_training.add_backbone(monkeypatch.setitem, monkeypatch.setattr)
    config = tiny_training.config(epochs=1, monitor="none", name="tiny folds")
    whole, calls = training.train, []

    def train(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(training, "train", train)
    with pytest.raises(KeyboardInterrupt):
        fold_runs.cross_validate(config, photos, k=2, folder=tmp_path, verbose=0)
    judged = fold_runs.cross_validate(config, photos, k=2, folder=tmp_path, verbose=0)
    assert judged["plain"].n == len(photos.frame)
    assert len(list(tmp_path.glob("tiny-folds-*/run.json"))) == 2
