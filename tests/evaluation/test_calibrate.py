"""utils.evaluation.calibrate: a temperature that is known beforehand is found again, and the answer stays."""

import numpy as np
import pytest

from utils.evaluation import fit_temperature, rescale


def test_a_temperature_that_was_put_in_is_found_again():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (true.cumsum(1) > rng.random((len(true), 1))).argmax(1)
    assert fit_temperature(rescale(true, 0.5), labels) == pytest.approx(2.0, rel=0.03)
    np.testing.assert_allclose(rescale(true, 1.0), true, atol=1e-9)
    assert (rescale(true, 3.0).argmax(1) == true.argmax(1)).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="above 0, got 0"):
        rescale([0.5, 0.5], 0)
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3,\)"):
        fit_temperature([[0.5, 0.5], [0.1, 0.9]], [0, 1, 1])
