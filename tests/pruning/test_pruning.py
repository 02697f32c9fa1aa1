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


class TwoDense(L.Layer):
    """A layer of one's own that holds layers, one of them a batch normalization."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.first, self.norm, self.second = L.Dense(6), L.BatchNormalization(), L.Dense(6)

    def call(self, x):
        return self.second(self.norm(self.first(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x):
        return self.dense(x)


def dense_network(*layers):
    return keras.Sequential([keras.Input((6,)), *layers, L.Dense(3, activation="softmax", name="top")])


SIX = [(np.ones((4, 6), "float32"), np.eye(3, dtype="float32")[[0, 1, 2, 0]])]


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


def test_zeros_stay_where_keras_puts_averages_in_the_weights_place(batches):
    """`use_ema` writes the averages after the last step: before, the callback told 0.5 and no weight was zero."""
    model, callback = network(), MagnitudePruning(0.5, end=2, frequency=1)
    model.compile(keras.optimizers.Adam(0.01, use_ema=True), "categorical_crossentropy", jit_compile=False)
    model.fit(_ListBatches(batches), epochs=2, callbacks=[callback], verbose=0)
    report = pruning.sparsity_report(model)
    assert callback.reached() == 0.5 and report.loc[report["prunable"], "sparsity"].tolist() == [0.5] * 3


def test_steps_that_keras_runs_together_are_steps(batches):
    """4 batches, 2 to an execution: before, they were counted as 2 steps, and no weight was pruned."""
    model, callback = network(), MagnitudePruning(0.5, end=4, frequency=3)
    model.compile("sgd", "categorical_crossentropy", steps_per_execution=2, jit_compile=False)
    model.fit(_ListBatches(batches), callbacks=[callback], verbose=0)
    assert (callback.step, callback.reached()) == (4, 0.5)


def test_another_model_gets_masks_of_its_own(batches):
    """Before, the masks of the first model were laid over the second, or their shapes did not fit."""
    callback = MagnitudePruning(0.5)
    for seed, make in ((0, network), (1, network), (2, lambda: dense_network(TwoDense()))):
        keras.utils.set_random_seed(seed)
        model = make()
        for layer in prunable(model):
            layer.kernel.assign(np.random.default_rng(seed).normal(size=layer.kernel.shape))
        wanted = [np.abs(layer.kernel) > np.median(np.abs(layer.kernel)) for layer in prunable(model)]
        callback.set_model(model)
        callback.on_train_begin()
        for layer, mask in zip(prunable(model), wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(layer.kernel) != 0, mask)


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


def test_kernels_inside_a_layer_are_pruned_and_counted_too_and_its_statistics_stay():
    model = dense_network(TwoDense())
    result = prune(model, SIX, 0.5, epochs=1, learning_rate=0.01)
    # 6 x 6 + 6 x 6 + 6 x 3 = 90 weights in three kernels, and half of each is 18 + 18 + 9 = 45
    assert result.report[["weights", "nonzero", "prunable"]].values.tolist() == [[36, 18, True]] * 2 + [[18, 9, True]]
    assert "45 of 90 kernel weights left" in repr(result)
    norm = result.model.layers[0].norm  # it was trained in inference mode
    assert norm.trainable and np.array_equal(norm.moving_mean, np.zeros(6))


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (lambda: L.LSTM(4), ["5x16", "4x16"]),  # four gates: kernel (5, 4 * 4), recurrent kernel (4, 4 * 4)
        (lambda: L.Bidirectional(L.GRU(2)), ["5x6", "2x6"] * 2),  # three gates, each way
        (lambda: L.TimeDistributed(L.Dense(3)), ["5x3"]),
        (lambda: L.Conv1DTranspose(2, 3), ["3x2x5"]),
        (lambda: L.SeparableConv1D(4, 3), ["3x5x1", "1x5x4"]),  # depthwise, then pointwise
    ],
)
def test_the_report_lists_every_kernel_and_says_which_are_left_alone(layer, shapes):
    report = pruning.sparsity_report(keras.Sequential([keras.Input((7, 5)), layer(), L.Dense(2)]))
    assert report["shape"].tolist()[:-1] == shapes
    assert report["prunable"].tolist() == [shapes == ["5x3"]] * len(shapes) + [True]


def test_the_report_lists_the_projections_of_attention():
    x = keras.Input((7, 5))
    report = pruning.sparsity_report(keras.Model(x, L.MultiHeadAttention(2, 3)(x, x)))
    assert report["shape"].tolist() == ["5x2x3"] * 3 + ["2x3x5"]  # query, key and value of two heads of 3, and back
    assert not report["prunable"].any()


def test_a_layer_that_outer_and_inner_model_share_is_listed_once():
    assert pruning.sparsity_report(sharing())["weights"].tolist() == [36, 18, 9]  # 6 x 6, inner 6 x 3, outer 3 x 3


@pytest.mark.parametrize(
    "change",
    [lambda layer: layer.enable_lora(2), lambda layer: layer.quantize("int8"), lambda layer: layer.quantize("int4")],
)
def test_a_kernel_that_is_not_one_variable_of_floats_is_refused_by_name_and_reported_whole(change):
    model = dense_network(L.Dense(6, name="changed"))
    change(model.layers[0])
    with pytest.raises(ValueError, match="got LoRA or quantized ones in changed; prune before"):
        prune(model, SIX, 0.5, epochs=0)
    report = pruning.sparsity_report(model)  # int4 stores 6 x 6 in 6 x 3 bytes
    assert report[["shape", "weights", "prunable"]].values.tolist() == [["6x6", 36, False], ["6x3", 18, True]]


@pytest.mark.parametrize("call", [prunable, pruning.sparsity_report, pruning.gzip_bytes, pruning.find_blocks])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "got NoneType; load or make one first"), ("m.keras", "got str; load"), ([network()], "got list; load"),
        (L.Dense, "got type; load"), (keras.Sequential([L.Dense(3)]), "not built yet; call it on a batch first"),
        (Subclassed(), "not built yet; call it on a batch first"),
    ],
)  # fmt: skip
def test_what_is_no_built_model_is_refused_in_one_sentence(call, model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(model)


def subclassed():
    model = Subclassed()
    model(np.ones((4, 6), "float32"))
    return model


def sharing():
    shared = L.Dense(6)
    return dense_network(shared, dense_network(shared))


class WithoutConfig(L.Dense):
    def __init__(self, six):
        super().__init__(len(six))

    def get_config(self):
        raise NotImplementedError


@pytest.mark.parametrize("make", [subclassed, sharing, lambda: dense_network(WithoutConfig(range(6)))])
def test_a_model_that_keras_cannot_copy_is_refused_in_one_sentence_that_helps(make):
    with pytest.raises(ValueError, match="train the model itself with MagnitudePruning as a callback"):
        prune(make(), SIX, 0.5, epochs=0)
    model = make()
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(*SIX[0], callbacks=[MagnitudePruning(0.5)], verbose=0)
    assert pruning.sparsity_report(model)["sparsity"].tolist() == pytest.approx([0.5] * len(prunable(model)), abs=0.06)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda share=share: prune(network(), [], share), "sparsity must be a share from 0 up to but excluding 1")
          for share in (-0.1, 1.0, "half", True, float("nan"))),
        (lambda: prune(network(), [], 0.5, schedule="slowly"), "schedule must be gradual or one_shot, got 'slowly'"),
        (lambda: prune(network(), iter([]), 0.5), "pass a list, or a stream with a length"),
        *((lambda epochs=epochs: prune(network(), [], 0.5, epochs), f"must be an integer from 0 up, got {epochs!r}")
          for epochs in (-1, 1.5, "one", None, True)),
        (lambda: prunable(keras.Sequential([keras.Input((4,)), L.ReLU()])), "no Dense layer and no convolution"),
        *((lambda given=given: prune(dense_network(), given, 0.5), "expected at least one batch, each .images")
          for given in ([], SIX[0], SIX[0][0], [SIX[0][:1]], {"x": SIX[0][0]}, "photos")),
        (lambda: pruning.find_blocks(subclassed()), r"a functional or Sequential model, got .* \(Subclassed\)"),
        (lambda: MagnitudePruning(0.5, frequency=0), "frequency must be a positive integer, got 0"),
        (lambda: MagnitudePruning(0.5, end=2.5), "end must be an integer from 0 up, got 2.5"),
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
