"""study.pruning and study.pruning_loop: what a sweep and study A's loop measure, keep, and take up again."""

import keras
import numpy as np
import pandas as pd
import pytest
from pruning_models import batches_of_noise, network, zeros

from study import pruning as pruning_study
from study import pruning_loop


@pytest.fixture(scope="module")
def batches():
    return batches_of_noise()


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_the_loop_over_weights(batches, tmp_path):
    scores = iter(range(100))
    settings = {"rounds": 2, "score": lambda model: next(scores), "folder": tmp_path, "learning_rate": 0.01}
    loop = pruning_loop.iterative_prune(network(), batches, 0.75, **settings)
    assert loop.rounds["removed"].tolist() == pytest.approx([0.0, 0.5, 0.75])
    assert loop.rounds["score"].tolist() == [0, 2, 4]
    assert loop.rounds["before_tuning"].tolist() == [0, 1, 3]
    assert len(set(loop.rounds["macs"])) == 1  # zeros remove no arithmetic
    assert loop.rounds["nonzero_weights"].is_monotonic_decreasing
    assert zeros(loop.model, "expand") == 96
    again = pruning_loop.iterative_prune(network(), batches, 0.75, **settings)
    assert difference(loop.model, again.model) == 0
    assert again.rounds["score"].tolist() == [0, 2, 4]  # nothing was scored anew
    with pytest.raises(ValueError, match="another pruning loop"):
        pruning_loop.iterative_prune(network(1), batches, 0.75, **settings)


def test_the_loop_goes_on_after_an_interruption(batches, tmp_path):
    whole = pruning_loop.iterative_prune(network(), batches, 0.75, rounds=2, epochs=0)
    calls = []

    def score(model):
        calls.append(model)
        if len(calls) == 4:  # in the second round
            raise KeyboardInterrupt
        return 0.0

    settings = {"rounds": 2, "epochs": 0, "score": score, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        pruning_loop.iterative_prune(network(), batches, 0.75, **settings)
    assert [path.name for path in tmp_path.glob("*.keras")] == ["round_1.keras"]
    resumed = pruning_loop.iterative_prune(network(), batches, 0.75, **settings)
    assert len(calls) == 6
    assert difference(whole.model, resumed.model) == 0


def test_the_loop_over_channels(batches):
    model = network()
    loop = pruning_loop.iterative_prune(model, batches, 0.5, rounds=1, kind="channels")
    assert loop.rounds["removed"].tolist() == [0.0, 0.5]
    assert loop.rounds["macs"].iloc[1] < loop.rounds["macs"].iloc[0]
    assert loop.model.get_layer("depthwise").kernel.shape == (3, 3, 8, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.0}, "target must be a share"),
        ({"rounds": 0}, "rounds is 0"),
        ({"kind": "filters"}, "kind is 'filters'"),
    ],
)
def test_a_loop_that_cannot_be_gets_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        pruning_loop.iterative_prune(network(), [], **{"target": 0.5} | settings)


@pytest.mark.filterwarnings("ignore::utils.latency.LoadedMachine")
def test_the_sweep_judges_every_point_as_float_and_int8(batches, tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    labels = network().predict(photos.astype("float32"), verbose=0).argmax(axis=1)
    settings = {
        "levels": (0.5,), "channel_levels": (0.5,), "kinds": ("weights", "channels"), "epochs": 0,
        "representative": photos, "folder": tmp_path,
    }  # fmt: skip
    sweep = pruning_study.sweep(network(), batches, photos, labels, **settings)
    frame = sweep.frame.set_index(["kind", "removed"])
    assert len(frame) == len(sweep.files) == 8  # two kinds, two schemes, unpruned and pruned
    assert frame.loc[("weights", 0.0), "accuracy"] == frame.loc[("channels", 0.0), "accuracy"] == 1.0
    assert frame.loc[("weights", 0.5), "macs_m"] == frame.loc[("weights", 0.0), "macs_m"]
    assert frame.loc[("channels", 0.5), "macs_m"] < frame.loc[("channels, int8", 0.0), "macs_m"]
    assert frame.loc[("weights", 0.5), "nonzero_weights"] < frame.loc[("weights", 0.0), "nonzero_weights"]
    again = pruning_study.sweep(network(), None, photos, labels, **settings)  # nothing is pruned anew
    # not to the last byte: a file holds names with Keras' counters
    pd.testing.assert_frame_equal(again.frame, sweep.frame, rtol=5e-3)
    timed, timings = sweep.timed(photos[:1], rounds=5, budget_s=1)
    assert len(timings.names) == len(set(sweep.files)) < 8  # the shared start is timed once
    assert timed.frame["ratio"].iloc[0] == 1.0
    assert timed.frame["ratio"].notna().all()
    with pytest.raises(ValueError, match="kind 'filters' is unknown"):
        pruning_study.sweep(network(), [], photos, labels, kinds=("filters",))
    with pytest.raises(ValueError, match="10 photos and 9 labels"):
        pruning_study.sweep(network(), [], photos, labels[:9])


def test_a_point_that_was_tuned_on_other_batches_is_not_taken_for_this_one(batches, tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    settings = {"levels": (0.5,), "kinds": ("weights",), "epochs": 1, "folder": tmp_path}
    for some in (batches, list(batches)[:1]):
        pruning_study.sweep(network(), some, photos, np.zeros(10, int), **settings)
    assert len(list(tmp_path.glob("weights-50-*.keras"))) == 2


def test_the_loop_over_channels_takes_photos_for_the_statistics():
    from pruning_models import inverted_residuals

    photos = np.random.default_rng(1).normal(size=(8, 16, 16, 3)).astype("float32")
    loop = pruning_loop.iterative_prune(
        inverted_residuals(), [], 0.5, rounds=1, kind="channels", epochs=0, norm_photos=photos
    )
    norms = [layer for layer in loop.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert np.ptp(np.asarray(norms[0].moving_mean)) > 0
