"""A run that ships what it predicted in place of its weights: found, judged and drawn like any other."""

import numpy as np
import pandas as pd
import pytest
import tiny_training

from utils import evaluation
from utils.training import loop as training
from utils.training import run as runs
from utils.training import run_records


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tiny_training.squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        tiny_training.add_backbone(patch.setitem, patch.setattr)
        folder = tmp_path_factory.mktemp("runs")
        run = training.train(tiny_training.config("frozen", epochs=2), photos, folder=folder, verbose=0)
        run.predict(photos.part("test"))  # its network is built while the backbone is known
        yield run


@pytest.fixture
def record(trained, photos, monkeypatch, tmp_path):
    """The run as a record, on a machine that has nothing else of it."""
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "models")
    folder = training.export_record(trained, photos)
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.npz", "run.json"]
    return training.load(trained.run_id, tmp_path / "nothing")


def test_a_record_is_judged_as_the_run_itself(trained, record, photos):
    assert record.recorded and not trained.recorded and record.finished
    for part in ("validation", "test"):
        frame = photos.part(part)
        np.testing.assert_allclose(record.predict(frame), trained.predict(frame), atol=1e-6)
    shuffled = photos.part("test").sample(frac=1, random_state=1)
    np.testing.assert_allclose(record.predict(shuffled), trained.predict(shuffled), atol=1e-6)
    own, shown = (evaluation.evaluate(run.predict, photos.part("test"), photos.classes) for run in (trained, record))
    assert own.accuracy == shown.accuracy
    pd.testing.assert_frame_equal(record.history, trained.history)
    assert record.best_epoch == trained.best_epoch


def test_training_finds_the_record_and_trains_nothing(record, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(training._Trainer, "go_on", lambda *_: pytest.fail("trained again"))
    assert training.train(record.config, photos, folder=tmp_path / "nothing", verbose=0).folder == record.folder


def test_a_record_counts_its_architecture_and_has_no_weights(trained, record, photos, monkeypatch):
    tiny_training.add_backbone(monkeypatch.setitem, monkeypatch.setattr)
    assert record.architecture().count_params() == trained.architecture().count_params() > 0
    with pytest.raises(FileNotFoundError, match=r"ships what it predicted, not its weights.*resume=False"):
        record.model()
    with pytest.raises(ValueError, match="plain photos"):
        record.predict(photos.part("test"), tta="flip")
    with pytest.raises(ValueError, match="a record already"):
        training.export_record(record, photos)


def test_photos_that_the_record_does_not_hold_are_counted(record, photos):
    with pytest.raises(ValueError, match=r"24 photos; 24 of the 48 asked for"):
        record.predict(photos.frame)


def test_a_record_of_other_photos_is_refused(trained, photos, tmp_path):
    other = tiny_training.Photos(photos.frame[photos.frame["id"] != "red-test-0"])
    with pytest.raises(ValueError, match="trained on photos"):
        training.export_record(trained, other, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"half", None])
def test_a_damaged_record_is_named_and_not_used(record, damage, tmp_path):
    path = record.folder / run_records.PREDICTIONS
    path.unlink() if damage is None else path.write_bytes(damage)
    with (
        pytest.warns(UserWarning, match=r"is not used: predictions\.npz"),
        pytest.raises(FileNotFoundError, match=record.run_id),
    ):
        training.load(record.run_id, tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"predictions\.npz cannot be used"):
        record.predict(pd.DataFrame({"id": ["red-test-0"]}))


def test_a_state_that_names_no_file_is_no_run(record, tmp_path):
    state = runs.files.read_json(record.folder / "run.json")
    runs.files.write_json(record.folder / "run.json", {**state, "files": {}})
    with pytest.warns(UserWarning, match="neither weights nor predictions"), pytest.raises(FileNotFoundError):
        training.load(record.run_id, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("ids", "probabilities", "message"),
    [
        (["a", "a"], np.full((2, 2), 0.5), "stands twice"),
        (["a", "b"], np.full((3, 2), 0.5), "do not go with"),
        (["a", "b"], np.array([[0.5, 0.5], [np.nan, 0.5]]), "do not go with"),
    ],
)
def test_what_does_not_go_together_is_not_written(tmp_path, ids, probabilities, message):
    with pytest.raises(ValueError, match=message):
        run_records.write(tmp_path, pd.DataFrame({"id": ids}), probabilities)
    assert not list(tmp_path.iterdir())
