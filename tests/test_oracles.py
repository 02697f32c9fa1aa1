"""Random networks, thousands of them, against oracles that share no code with what they judge.

    python -m pytest -m oracle                                          # the same examples every time, as in CI
    ORACLES=50 HYPOTHESIS_PROFILE=long python -m pytest -m oracle       # fifty times as many, new ones each time

Other oracle tests stand beside what they judge: the TensorFlow profiler and counting in numpy in test_by_hand.py,
recorded calls in test_layer_calls.py, gradients in test_receptive_field.py. A failure that is found becomes a named
case there or here.
"""

import keras
import numpy as np
import pytest
import random_networks
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from utils import flops, quantization, receptive_field

L = keras.layers
pytestmark = pytest.mark.oracle


# --- receptive fields: sets of pixels, followed one by one through a chain --------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["conv", "pool", "pad", "crop"]), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3),
        st.sampled_from(["same", "valid"]),
    ),
    min_size=1, max_size=7,
)  # fmt: skip


def follow(side, steps):
    """For each position of the last grid the (first, last) pixel it sees, by every tap; None where nothing is left."""
    seen = [(position, position) for position in range(side)]
    for kind, kernel, stride, dilation, padding in steps:
        if kind == "pad":
            seen = [None] * kernel + seen + [None] * stride
            continue
        if kind == "crop":
            seen = seen[kernel : len(seen) - stride]
            if not seen:
                return None
            continue
        if stride > 1 or kind == "pool":
            dilation = 1
        span = dilation * (kernel - 1) + 1
        if padding == "same":
            count = -(-len(seen) // stride)
            missing = max((count - 1) * stride + span - len(seen), 0)
            seen = [None] * (missing // 2) + seen + [None] * (missing - missing // 2)
        count = (len(seen) - span) // stride + 1
        if count < 1:
            return None
        taps = [[seen[at * stride + tap * dilation] for tap in range(kernel)] for at in range(count)]
        taps = [[pixels for pixels in window if pixels is not None] for window in taps]
        seen = [(min(low for low, _ in w), max(high for _, high in w)) if w else None for w in taps]
    return seen


@examples(300)
@given(STEPS, st.integers(40, 70))
def test_receptive_fields_of_chains_against_sets_of_pixels(steps, side):
    wanted = follow(side, steps)
    if wanted is None:
        return
    image = x = keras.Input((side, 1, 1))  # one column stays one column under any stride
    for kind, kernel, stride, dilation, padding in steps:
        if kind == "conv":
            rate = 1 if stride > 1 else dilation
            x = L.Conv2D(1, (kernel, 1), strides=(stride, stride), dilation_rate=(rate, 1), padding=padding)(x)
        elif kind == "pool":
            x = L.MaxPooling2D((kernel, 1), (stride, 1), padding)(x)
        elif kind == "pad":
            x = L.ZeroPadding2D(((kernel, stride), (0, 0)))(x)
        else:
            x = L.Cropping2D(((kernel, stride), (0, 0)))(x)
    field = receptive_field.receptive_field(keras.Model(image, x))
    assert field.grid[0] == len(wanted)
    for at, pixels in enumerate(wanted):
        region = field.region(at, 0)
        low, high = max(region.start[0], 0), min(region.stop[0], side) - 1
        if pixels is None:
            continue  # it sees padding alone
        # the field is the box of all taps; padding can only take pixels away at its ends
        assert low <= pixels[0] and pixels[1] <= high
        if region.start[0] >= 0 and region.stop[0] <= side and all(kind in ("conv", "pool") for kind, *_ in steps):
            assert (low, high) == pixels or any(one is None for one in wanted)


# --- multiply-accumulates: from the sizes of kernels and outputs ------------------------------------------------------


@examples(200)
@given(random_networks.networks(), st.integers(1, 3))
def test_macs_against_sizes_of_kernels_and_outputs(network, batch):
    model, _ = network
    report = flops.count(model, batch_size=batch, unsupported="raise")
    assert report.total_macs == batch * random_networks.macs_by_size(model)
    assert report.total_params == model.count_params()
    assert report.by_resolution()["macs"].sum() <= report.total_macs


@examples(12)
@given(random_networks.networks(quantizable=True))
def test_files_have_the_macs_of_their_network(network):
    model, rng = network
    photos = rng.integers(0, 256, (8, *model.input_shape[1:])).astype(np.uint8)
    made = quantization.convert_all(model, ("float32", "int8"), photos)
    wanted = random_networks.macs_by_size(model)
    assert {scheme: flops.count_tflite(data, unsupported="raise").total_macs for scheme, data in made.items()} == {
        "float32": wanted, "int8": wanted,
    }  # fmt: skip


@examples(12)
@given(random_networks.networks(quantizable=True))
def test_float_files_compute_the_same_and_int8_files_nearly(network):
    model, rng = network
    photos = rng.integers(0, 256, (16, *model.input_shape[1:])).astype(np.uint8)
    wanted = model.predict(photos.astype("float32"), verbose=0)
    made = quantization.convert_all(model, ("float32", "int8"), photos)
    np.testing.assert_allclose(quantization.TFLiteModel(made["float32"])(photos), wanted, atol=2e-3)
    answered = quantization.TFLiteModel(made["int8"])(photos)
    np.testing.assert_allclose(answered.sum(1), 1, atol=0.05)
    sure = np.sort(wanted, 1)[:, -1] - np.sort(wanted, 1)[:, -2] > 0.5
    assert (answered.argmax(1) == wanted.argmax(1))[sure].all()
