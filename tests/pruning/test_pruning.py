"""utils.pruning, magnitude_pruning and pruning_loop: schedule, masks, callback, resuming, study A's loop."""

import gzip
import itertools

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import pruning as pruning_study
from study import pruning_loop
from utils.pruning import MagnitudePruning, cubic_sparsity, magnitude_masks, prunable, prune
from utils.pruning import magnitude as magnitude_pruning
from utils.pruning import tuning as pruning

L = keras.layers


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)), L.Conv2D(8, 3, padding="same", name="stem"), L.BatchNormalization(name="stem_bn"),
            L.Conv2D(16, 1, name="expand"), L.ReLU(), L.DepthwiseConv2D(3, padding="same", name="depthwise"),
            L.Conv2D(8, 1, name="project"), L.GlobalAveragePooling2D(), L.Dense(3, activation="softmax", name="top"),
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(6, 8, 8, 3)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(0, 3, 6)])
        for _ in range(4)
    ]


def zeros(model, name):
    return int((np.asarray(model.get_layer(name).kernel) == 0).sum())


def difference(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_schedule_by_hand():
    # Zhu and Gupta's equation at t = 5 of 0..10, from 0.2 to 0.8: 0.8 - 0.6 * 0.5^3
    assert cubic_sparsity(5, 0, 10, 0.2, 0.8) == pytest.approx(0.725)
    assert cubic_sparsity(0, 0, 10, 0.2, 0.8) == pytest.approx(0.2)
    assert cubic_sparsity(99, 0, 10, 0.2, 0.8) == pytest.approx(0.8)
    assert cubic_sparsity(3, 4, 10, 0.2, 0.8) == pytest.approx(0.2)
    assert cubic_sparsity(0, 0, 0, 0.0, 0.8) == pytest.approx(0.8)


@given(st.floats(0, 0.95), st.integers(1, 50), st.integers(0, 60))
def test_schedule_never_falls(final, end, step):
    assert (
        cubic_sparsity(step, 0, end, 0.0, final) <= cubic_sparsity(step + 1, 0, end, 0.0, final) + 1e-12 <= final + 1e-9
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.floats(0, 0.99), st.integers(0, 9))
def test_masks_drop_the_smallest_and_exactly_as_many(sizes, sparsity, seed):
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(size=size) * 10**place for place, size in enumerate(sizes)]
    for kernel, mask in zip(kernels, magnitude_masks(kernels, sparsity), strict=True):
        assert (~mask).sum() == round(sparsity * kernel.size)
        assert np.abs(kernel[~mask]).max(initial=0) <= np.abs(kernel[mask]).min(initial=np.inf)
    together = magnitude_masks(kernels, sparsity, "global")
    gone = np.concatenate([np.abs(k[~m]) for k, m in zip(kernels, together, strict=True)])
    kept = np.concatenate([np.abs(k[m]) for k, m in zip(kernels, together, strict=True)])
    assert gone.size == round(sparsity * sum(sizes))
    assert gone.max(initial=0) <= kept.min(initial=np.inf)


def test_what_is_prunable():
    assert [layer.name for layer in prunable(network())] == ["expand", "project", "top"]
    assert [layer.name for layer in prunable(network(), ["depthwise"])] == ["depthwise"]


def test_gradual_pruning_reaches_the_target_and_leaves_the_rest(batches):
    model = network()
    before = model.get_weights()
    result = prune(model, batches, 0.75, epochs=3, validation=batches, learning_rate=0.01)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert zeros(result.model, "expand") == 96
    assert zeros(result.model, "top") == 18
    assert zeros(result.model, "stem") == zeros(result.model, "depthwise") == 0
    assert result.sparsity == pytest.approx(0.75)
    assert result.history["sparsity"].tolist() == sorted(result.history["sparsity"])
    assert 0.3 < result.history["sparsity"].iloc[0] < 0.75  # it rises; one-shot would be there at once
    assert "val_accuracy" in result.history
    moved = np.abs(np.asarray(result.model.get_layer("stem").kernel) - before[0]).max()
    assert moved > 1e-3  # it trained
    norms = [layer for layer in result.model.layers if isinstance(layer, L.BatchNormalization)]
    assert all(layer.trainable for layer in norms)  # frozen while training only
    assert np.array_equal(np.asarray(norms[0].moving_mean), np.zeros(8))


def test_zeros_stay_zero_while_training(batches):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(np.asarray(self.model.get_layer("expand").kernel).copy())

    model = network()
    model.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy", jit_compile=False)
    callback = MagnitudePruning(0.5)
    model.fit(pruning._ListBatches(batches), epochs=2, callbacks=[callback, Watch()], verbose=0)
    assert len(seen) == 8
    assert all(np.array_equal(kernel == 0, seen[0] == 0) for kernel in seen)
    assert (seen[0] == 0).sum() == 64
    assert np.abs(seen[-1] - seen[0]).max() > 0.01


def test_a_weight_that_is_pruned_never_comes_back(batches):
    masks = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            masks.append(callback._numpy_masks())

    model = network()
    model.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy", jit_compile=False)
    callback = MagnitudePruning(0.9, end=7, frequency=1)
    model.fit(pruning._ListBatches(batches), epochs=2, callbacks=[callback, Watch()], verbose=0)
    for earlier, later in itertools.pairwise(masks):
        assert not any((now & ~before).any() for before, now in zip(earlier, later, strict=True))
    assert callback.reached() == pytest.approx(0.9, abs=0.01)


def test_one_shot_prunes_before_the_first_step(batches):
    result = prune(network(), batches, 0.5, epochs=1, schedule="one_shot")
    assert result.history["sparsity"].tolist() == [pytest.approx(0.5)]
    untrained = prune(network(), batches, 0.5, epochs=0)
    assert untrained.schedule == "one_shot"
    expected = np.asarray(network().get_layer("expand").kernel)
    kernel = np.asarray(untrained.model.get_layer("expand").kernel)
    assert np.array_equal(kernel, np.where(np.abs(expected) >= np.median(np.abs(expected)), expected, 0))


def test_an_interrupted_run_goes_on_to_the_same_weights(batches, tmp_path, monkeypatch):
    whole = prune(network(), batches, 0.8, epochs=3, learning_rate=0.01)
    original = MagnitudePruning.on_epoch_end

    def interrupted(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(MagnitudePruning, "on_epoch_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune(network(), batches, 0.8, epochs=3, learning_rate=0.01, folder=tmp_path)
    monkeypatch.setattr(MagnitudePruning, "on_epoch_end", original)
    resumed = prune(network(), batches, 0.8, epochs=3, learning_rate=0.01, folder=tmp_path)
    assert resumed.history["epoch"].tolist() == [1, 2, 3]
    assert difference(whole.model, resumed.model) == 0
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("a finished run trains no more"))
    again = prune(network(), batches, 0.8, epochs=3, learning_rate=0.01, folder=tmp_path)
    assert difference(whole.model, again.model) == 0
    with pytest.raises(ValueError, match="other settings or another model"):
        prune(network(), batches, 0.7, epochs=3, folder=tmp_path)
    state = tmp_path / "pruning_state.npz"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(ValueError, match="damaged"):
        prune(network(), batches, 0.8, epochs=3, folder=tmp_path)


def test_report_and_sizes(tmp_path):
    model = prune(network(), [], 0.5, epochs=0).model
    report = pruning.sparsity_report(model)
    assert report.set_index("layer").loc["expand", ["weights", "nonzero", "sparsity"]].tolist() == [128, 64, 0.5]
    assert report.loc[report["prunable"], "layer"].tolist() == ["expand", "project", "top"]
    data = np.random.default_rng(0).bytes(1000) + bytes(9000)
    (tmp_path / "file").write_bytes(data)
    assert pruning.gzip_bytes(data) == pruning.gzip_bytes(tmp_path / "file") == len(gzip.compress(data, 9, mtime=0))
    assert pruning.gzip_bytes(model) < pruning.gzip_bytes(network())
    with pytest.raises(FileNotFoundError, match="there is no file"):
        pruning.gzip_bytes(tmp_path / "none")


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


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, "half", True, float("nan")])
def test_sparsity_outside_its_range(sparsity):
    with pytest.raises(ValueError, match=r"sparsity is .*from 0 up to but excluding 1"):
        prune(network(), [], sparsity)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prune(network(), [], 0.5, schedule="slowly"), "schedule is 'slowly'"),
        (lambda: prune(network(), [], 0.5, epochs=0, scope="model"), "scope is 'model'"),
        (lambda: prune(network(), [], 0.5, layers=["nobody"]), "has no layer 'nobody'"),
        (lambda: prune(network(), [], 0.5, layers=["stem_bn"]), "has no kernel"),
        (lambda: prune(network(), iter([]), 0.5), "pass steps_per_epoch"),
        (lambda: prune(network(), [], 0.5, steps_per_epoch=0), "steps_per_epoch is 0"),
        (lambda: prune(network(), [], 0.5, epochs=-1), "epochs is -1"),
        (lambda: prune(network(), [], 0.5, initial_sparsity=0.6), "initial sparsity 0.6 is above"),
        (lambda: prunable(keras.Sequential([keras.Input((4,)), L.ReLU()])), "nothing to prune"),
        (lambda: prunable(keras.Sequential([L.Dense(3)])), "not built yet"),
        (lambda: MagnitudePruning(0.5, frequency=0), "frequency 1 or more"),
        (lambda: pruning_loop.iterative_prune(network(), [], 1.0), "target is 1.0"),
        (lambda: pruning_loop.iterative_prune(network(), [], 0.5, rounds=0), "rounds is 0"),
        (lambda: pruning_loop.iterative_prune(network(), [], 0.5, kind="filters"), "kind is 'filters'"),
    ],
)
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_not_a_keras_model():
    with pytest.raises(TypeError, match="not on bytes"):
        magnitude_pruning.prunable(b"TFL3")


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


def outputs_of_norm(model, photos):
    inner = keras.Model(model.inputs[0], model.get_layer("stem_bn").output)
    return np.asarray(inner(photos, training=False))


@pytest.mark.parametrize("epochs", [0, 1])
def test_statistics_follow_what_was_removed(batches, epochs):
    photos = np.random.default_rng(1).normal(2.0, 3.0, size=(64, 8, 8, 3)).astype("float32")
    layers = ["stem"]
    kept = prune(network(), batches, 0.5, epochs=epochs, layers=layers).model
    followed = prune(network(), batches, 0.5, epochs=epochs, layers=layers, norm_photos=photos).model
    gamma, beta = (np.asarray(w) for w in followed.get_layer("stem_bn").weights[:2])
    after = (outputs_of_norm(followed, photos) - beta) / gamma
    np.testing.assert_allclose(after.mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(after.std((0, 1, 2)), 1, atol=1e-2)
    assert np.abs(outputs_of_norm(kept, photos).std((0, 1, 2)) - 1).max() > 0.1


def test_the_loop_over_channels_takes_photos_for_the_statistics():
    from test_channel_pruning import inverted_residuals

    photos = np.random.default_rng(1).normal(size=(8, 16, 16, 3)).astype("float32")
    loop = pruning_loop.iterative_prune(
        inverted_residuals(), [], 0.5, rounds=1, kind="channels", epochs=0, norm_photos=photos
    )
    norms = [layer for layer in loop.model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert np.ptp(np.asarray(norms[0].moving_mean)) > 0
