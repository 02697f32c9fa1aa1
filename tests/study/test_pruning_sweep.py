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

PHOTOS = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)


@dataclasses.dataclass
class Noise:
    """Batches as pruning.Lessons gives them; counts its streams."""

    name: str = "noise"
    streams: int = 0

    def stream(self):
        self.streams += 1
        return batches_of_noise()

    def key(self):
        return self.name


def loop(lessons, folder, score=lambda model: 0.0):
    return pruning.iterative_prune(network(), lessons, 0.75, 2, score, PHOTOS, folder, learning_rate=0.01)


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_the_loop_removes_the_same_share_of_what_is_left_and_keeps_its_rounds(tmp_path):
    scores, lessons, others = iter(range(100)), Noise(), Noise("other photos")
    model, rounds = loop(lessons, tmp_path, lambda model: next(scores))
    assert rounds["removed"].tolist() == pytest.approx([0.0, 0.5, 0.75])
    assert rounds["score"].tolist() == [0, 2, 4] and rounds["before_tuning"].tolist() == [0, 1, 3]
    assert len(set(rounds["macs"])) == 1  # zeros remove no arithmetic
    assert rounds["nonzero_weights"].is_monotonic_decreasing and zeros(model, "expand") == 96
    again, _ = loop(lessons, tmp_path)
    assert difference(model, again) == 0 and lessons.streams == 2  # nothing was tuned anew
    loop(others, tmp_path)
    assert others.streams == 2  # rounds on other photos are not taken for these


def test_the_loop_goes_on_after_an_interruption(tmp_path):
    whole, _ = loop(Noise(), tmp_path / "whole")
    lessons, calls = Noise(), []

    def score(model):
        calls.append(model)
        if len(calls) == 4:  # in the second round
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        loop(lessons, tmp_path, score)
    resumed, _ = loop(lessons, tmp_path, score)
    assert lessons.streams == 2 and difference(whole, resumed) == 0


@pytest.mark.filterwarnings("ignore::utils.latency.LoadedMachine")
def test_the_sweep_judges_every_point_as_float_and_int8(tmp_path):
    lessons, labels = Noise(), network().predict(PHOTOS.astype("float32"), verbose=0).argmax(axis=1)
    levels = {"weights": (0.5,), "channels": (0.5,)}

    def sweep(lessons):
        return pruning.sweep(network(), lessons, PHOTOS, labels, levels, PHOTOS, tmp_path, epochs=0)

    table, contents = sweep(lessons)
    frame = table.set_index(["kind", "removed"])
    assert len(frame) == len(contents) == 8  # two kinds, two schemes, unpruned and pruned
    assert frame.loc[("weights", 0.0), "accuracy"] == frame.loc[("channels", 0.0), "accuracy"] == 1.0
    assert frame.loc[("weights", 0.5), "macs_m"] == frame.loc[("weights", 0.0), "macs_m"]
    assert frame.loc[("channels", 0.5), "macs_m"] < frame.loc[("channels, int8", 0.0), "macs_m"]
    assert frame.loc[("weights", 0.5), "nonzero_weights"] < frame.loc[("weights", 0.0), "nonzero_weights"]
    streams = lessons.streams
    again, _ = sweep(lessons)
    assert lessons.streams == streams  # nothing is pruned anew
    # not to the last byte: a file holds names with Keras' counters
    pd.testing.assert_frame_equal(again, table, rtol=5e-3)
    timed = pruning.timed(table, contents, PHOTOS[:1], rounds=5, budget_s=1)
    assert timed["ratio"].notna().all() and timed["ratio"].iloc[0] == 1.0
    assert timed["ratio"].iloc[0] == timed.set_index(["kind", "removed"]).loc[("channels", 0.0), "ratio"]
    sweep(Noise("other photos"))
    assert len(list(tmp_path.glob("weights-50%-*.keras"))) == 2  # a point of other photos is not taken for this one


def test_each_point_sees_the_first_batches_whether_or_not_others_were_kept(tmp_path):
    found = squares(tmp_path / "photos")
    lessons = pruning.Lessons(found.part("train"), found.classes, 8)

    def last_point():
        levels = {"weights": (0.5, 0.8)}
        pruning.sweep(network(), lessons, PHOTOS, np.zeros(10, int), levels, PHOTOS, tmp_path)
        (path,) = tmp_path.glob("weights-80%-*.keras")
        return path, keras.saving.load_model(path)

    path, undisturbed = last_point()
    path.unlink()  # a run that was killed before this point and goes on
    assert difference(last_point()[1], undisturbed) == 0


def test_the_key_of_the_lessons_follows_content_labels_and_seed(tmp_path):
    found = squares(tmp_path / "photos")
    part = found.part("train")
    one = pruning.Lessons(part, found.classes, 8)
    keys = [one.key(), dataclasses.replace(one, seed=1).key(), dataclasses.replace(one, frame=part.iloc[::-1]).key()]
    assert keys[0] == pruning.Lessons(part.copy(), found.classes, 8).key()
    pathlib.Path(part["path"].iloc[0]).write_bytes(b"another photo")
    assert len({*keys, one.key()}) == 4
