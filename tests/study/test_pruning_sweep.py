"""study.pruning: what a sweep and study A's loop measure, keep, and take up again."""

import dataclasses
import pathlib

import keras
import numpy as np
import pandas as pd
import pytest
from pruning_models import batches_of_noise, network, zeros
from tiny_training import squares

from study import pruning


@dataclasses.dataclass
class Noise:
    """Batches as pruning.Lessons gives them; a stream goes on where the last reader stopped."""

    name: str = "noise"
    streams: int = 0

    def stream(self):
        self.streams += 1
        return batches_of_noise()

    def key(self):
        return self.name


@pytest.fixture
def lessons():
    return Noise()


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_the_loop_over_weights(lessons, tmp_path):
    scores = iter(range(100))
    settings = {"rounds": 2, "score": lambda model: next(scores), "folder": tmp_path, "learning_rate": 0.01}
    model, rounds = pruning.iterative_prune(network(), lessons, 0.75, **settings)
    assert rounds["removed"].tolist() == pytest.approx([0.0, 0.5, 0.75])
    assert rounds["score"].tolist() == [0, 2, 4]
    assert rounds["before_tuning"].tolist() == [0, 1, 3]
    assert len(set(rounds["macs"])) == 1  # zeros remove no arithmetic
    assert rounds["nonzero_weights"].is_monotonic_decreasing
    assert zeros(model, "expand") == 96
    streams = lessons.streams
    again, _ = pruning.iterative_prune(network(), lessons, 0.75, **settings)
    assert difference(model, again) == 0 and lessons.streams == streams  # nothing was tuned anew
    others = Noise("other photos")
    pruning.iterative_prune(network(), others, 0.75, **settings)
    assert others.streams == 2  # rounds on other photos are not taken for these


def test_the_loop_goes_on_after_an_interruption(lessons, tmp_path):
    settings = {"rounds": 2, "epochs": 1}
    whole, _ = pruning.iterative_prune(network(), Noise(), 0.75, **settings)
    calls = []

    def score(model):
        calls.append(model)
        if len(calls) == 4:  # in the second round
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        pruning.iterative_prune(network(), lessons, 0.75, folder=tmp_path, score=score, **settings)
    resumed, _ = pruning.iterative_prune(network(), lessons, 0.75, folder=tmp_path, score=score, **settings)
    assert lessons.streams == 2 and difference(whole, resumed) == 0


def test_the_loop_over_channels(lessons):
    model, rounds = pruning.iterative_prune(network(), lessons, 0.5, rounds=1, kind="channels")
    assert rounds["removed"].tolist() == [0.0, 0.5]
    assert rounds["macs"].iloc[1] < rounds["macs"].iloc[0]
    assert model.get_layer("depthwise").kernel.shape == (3, 3, 8, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.0}, "target must be a share"),
        ({"rounds": 0}, "rounds must be a positive integer, got 0"),
        ({"kind": "filters"}, "kind must be weights or channels, got 'filters'"),
    ],
)
def test_a_loop_that_cannot_be_gets_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        pruning.iterative_prune(network(), Noise(), **{"target": 0.5} | settings)


@pytest.mark.filterwarnings("ignore::utils.latency.LoadedMachine")
def test_the_sweep_judges_every_point_as_float_and_int8(lessons, tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    labels = network().predict(photos.astype("float32"), verbose=0).argmax(axis=1)
    settings = {
        "levels": (0.5,), "channel_levels": (0.5,), "kinds": ("weights", "channels"), "epochs": 0,
        "representative": photos, "folder": tmp_path,
    }  # fmt: skip
    sweep = pruning.sweep(network(), lessons, photos, labels, **settings)
    frame = sweep.frame.set_index(["kind", "removed"])
    assert len(frame) == len(sweep.files) == 8  # two kinds, two schemes, unpruned and pruned
    assert frame.loc[("weights", 0.0), "accuracy"] == frame.loc[("channels", 0.0), "accuracy"] == 1.0
    assert frame.loc[("weights", 0.5), "macs_m"] == frame.loc[("weights", 0.0), "macs_m"]
    assert frame.loc[("channels", 0.5), "macs_m"] < frame.loc[("channels, int8", 0.0), "macs_m"]
    assert frame.loc[("weights", 0.5), "nonzero_weights"] < frame.loc[("weights", 0.0), "nonzero_weights"]
    streams = lessons.streams
    again = pruning.sweep(network(), lessons, photos, labels, **settings)
    assert lessons.streams == streams  # nothing is pruned anew
    # not to the last byte: a file holds names with Keras' counters
    pd.testing.assert_frame_equal(again.frame, sweep.frame, rtol=5e-3)
    timed, timings = sweep.timed(photos[:1], rounds=5, budget_s=1)
    assert len(timings.names) == len(set(sweep.files)) < 8  # the shared start is timed once
    assert timed.frame["ratio"].iloc[0] == 1.0
    assert timed.frame["ratio"].notna().all()
    with pytest.raises(ValueError, match=r"kinds must be among .*got 'filters'"):
        pruning.sweep(network(), lessons, photos, labels, kinds=("filters",))
    with pytest.raises(ValueError, match="10 photos and 9 labels"):
        pruning.sweep(network(), lessons, photos, labels[:9])


def test_a_point_that_was_tuned_on_other_photos_is_not_taken_for_this_one(tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    settings = {"levels": (0.5,), "kinds": ("weights",), "epochs": 1, "folder": tmp_path}
    for name in ("some photos", "others", "others"):
        pruning.sweep(network(), Noise(name), photos, np.zeros(10, int), **settings)
    assert len(list(tmp_path.glob("weights-50%-*.keras"))) == 2


def test_each_point_sees_the_first_batches_whether_or_not_others_were_kept(tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    settings = {"levels": (0.5, 0.8), "kinds": ("weights",), "epochs": 1, "folder": tmp_path}
    found = squares(tmp_path / "photos")
    lessons = pruning.Lessons(found.part("train"), found.classes, 8)
    pruning.sweep(network(), lessons, photos, np.zeros(10, int), **settings)
    (last,) = tmp_path.glob("weights-80%-*.keras")
    undisturbed = keras.saving.load_model(last)
    last.unlink()  # a run that was killed before this point and goes on
    pruning.sweep(network(), lessons, photos, np.zeros(10, int), **settings)
    assert difference(keras.saving.load_model(last), undisturbed) == 0


def test_the_key_of_the_lessons_follows_content_labels_and_seed(tmp_path):
    found = squares(tmp_path / "photos")
    part = found.part("train")
    one = pruning.Lessons(part, found.classes, 8)
    keys = [one.key(), dataclasses.replace(one, seed=1).key(), dataclasses.replace(one, frame=part.iloc[::-1]).key()]
    assert keys[0] == pruning.Lessons(part.copy(), found.classes, 8).key()
    pathlib.Path(part["path"].iloc[0]).write_bytes(b"another photo")
    assert len({*keys, one.key()}) == 4


def test_the_loop_over_channels_takes_photos_for_the_statistics():
    from pruning_models import inverted_residuals

    photos = np.random.default_rng(1).normal(size=(8, 16, 16, 3)).astype("float32")
    model, _ = pruning.iterative_prune(
        inverted_residuals(), Noise(), 0.5, rounds=1, kind="channels", epochs=0, norm_photos=photos
    )
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert np.ptp(np.asarray(norms[0].moving_mean)) > 0
