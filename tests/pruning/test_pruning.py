"""utils.pruning.magnitude: the schedule, the masks, and what they do to a network while it trains."""

import gzip
import itertools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pruning_models import batches_of_noise, network, zeros

from utils import pruning
from utils.pruning import MagnitudePruning, cubic_sparsity, prunable, prune
from utils.pruning.magnitude import _keep_largest, _ListBatches

L = keras.layers


@pytest.fixture(scope="module")
def batches():
    return batches_of_noise()


@given(st.floats(0, 0.95), st.integers(1, 50), st.integers(0, 60))
def test_the_schedule_is_zhu_and_guptas_and_never_falls(final, end, step):
    assert cubic_sparsity(5, 10, 0.8) == pytest.approx(0.8 - 0.8 * 0.5**3)  # their equation at half way
    assert (cubic_sparsity(0, 10, 0.8), cubic_sparsity(99, 10, 0.8), cubic_sparsity(0, 0, 0.8)) == (0, 0.8, 0.8)
    assert cubic_sparsity(step, end, final) <= cubic_sparsity(step + 1, end, final) + 1e-12 <= final + 1e-9


@given(st.integers(1, 40), st.floats(0, 0.99), st.integers(0, 9))
def test_masks_drop_the_smallest_and_exactly_as_many(size, sparsity, seed):
    magnitudes = np.abs(np.random.default_rng(seed).normal(size=size))
    mask = _keep_largest(magnitudes, sparsity)
    assert (~mask).sum() == round(sparsity * size)
    assert magnitudes[~mask].max(initial=0) <= magnitudes[mask].min(initial=np.inf)


def test_what_is_prunable():
    assert [layer.name for layer in prunable(network())] == ["expand", "project", "top"]
    nested = keras.Sequential([keras.Input((8, 8, 3)), network(), L.Dense(2, name="outer")])
    assert [layer.name for layer in prunable(nested)] == ["expand", "project", "top", "outer"]


def test_gradual_pruning_reaches_the_target_and_leaves_the_rest(batches):
    model = network()
    before = model.get_weights()
    result = prune(model, batches, 0.75, epochs=3, learning_rate=0.01)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    found = {name: zeros(result.model, name) for name in ("expand", "top", "stem", "depthwise")}
    assert found == {"expand": 96, "top": 18, "stem": 0, "depthwise": 0}
    assert result.sparsity == pytest.approx(0.75)
    assert result.history["sparsity"].tolist() == sorted(result.history["sparsity"])
    assert 0.3 < result.history["sparsity"].iloc[0] < 0.75  # it rises; one-shot would be there at once
    moved = np.abs(np.asarray(result.model.get_layer("stem").kernel) - before[0]).max()
    assert moved > 1e-3  # it trained
    norms = [layer for layer in result.model.layers if isinstance(layer, L.BatchNormalization)]
    assert all(layer.trainable for layer in norms)  # frozen while training only
    assert np.array_equal(np.asarray(norms[0].moving_mean), np.zeros(8))


def test_a_weight_that_is_pruned_is_zero_in_every_pass_and_never_comes_back(batches):
    masks, kernels = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            kernels.append(np.asarray(self.model.get_layer("expand").kernel).copy())
            masks.append(callback._numpy_masks())

    model = network()
    model.compile(keras.optimizers.Adam(0.05), "categorical_crossentropy", jit_compile=False)
    callback = MagnitudePruning(0.9, end=7, frequency=1)
    model.fit(_ListBatches(batches), epochs=2, callbacks=[callback, Watch()], verbose=0)
    assert len(kernels) == 8 and np.abs(kernels[-1] - kernels[0]).max() > 0.01  # it trained
    for kernel, (mask, *_) in zip(kernels, masks, strict=True):
        assert not kernel[~mask].any()
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


def test_report_and_sizes():
    model = prune(network(), [], 0.5, epochs=0).model
    report = pruning.sparsity_report(model)
    assert report.set_index("layer").loc["expand", ["weights", "nonzero", "sparsity"]].tolist() == [128, 64, 0.5]
    assert report.loc[report["prunable"], "layer"].tolist() == ["expand", "project", "top"]
    data = np.random.default_rng(0).bytes(1000) + bytes(9000)
    assert pruning.gzip_bytes(data) == len(gzip.compress(data, 9, mtime=0))
    assert pruning.gzip_bytes(model) < pruning.gzip_bytes(network())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda share=share: prune(network(), [], share), "sparsity must be a share from 0 up to but excluding 1")
          for share in (-0.1, 1.0, "half", True, float("nan"))),
        (lambda: prunable(b"TFL3"), "got bytes"),
        (lambda: prune(network(), [], 0.5, schedule="slowly"), "schedule must be gradual or one_shot, got 'slowly'"),
        (lambda: prune(network(), iter([]), 0.5), "pass a list, or a stream with a length"),
        (lambda: prune(network(), [], 0.5, epochs=-1), "epochs must be 0 or more, got -1"),
        (lambda: prunable(keras.Sequential([keras.Input((4,)), L.ReLU()])), "no Dense layer and no convolution"),
        (lambda: prunable(keras.Sequential([L.Dense(3)])), "not built yet"),
        (lambda: MagnitudePruning(0.5, frequency=0), "frequency of 1 or more"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize("epochs", [0, 1])
def test_statistics_follow_what_was_removed(batches, epochs):
    photos = np.random.default_rng(1).normal(2.0, 3.0, size=(64, 8, 8, 3)).astype("float32")

    def normalized(model):
        norm = model.get_layer("late_bn")
        gamma, beta = (np.asarray(weight) for weight in norm.weights[:2])
        return (np.asarray(keras.Model(model.inputs[0], norm.output)(photos, training=False)) - beta) / gamma

    image = keras.Input((8, 8, 3))
    x = L.BatchNormalization(name="late_bn")(L.Conv2D(8, 1)(L.Conv2D(6, 1)(image)))
    model = keras.Model(image, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(x)))
    kept = prune(model, batches, 0.5, epochs=epochs).model
    followed = prune(model, batches, 0.5, epochs=epochs, norm_photos=photos).model
    np.testing.assert_allclose(normalized(followed).mean((0, 1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(normalized(followed).std((0, 1, 2)), 1, atol=1e-2)
    assert np.abs(normalized(kept).std((0, 1, 2)) - 1).max() > 0.1
