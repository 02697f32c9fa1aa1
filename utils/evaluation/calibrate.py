"""Probabilities that mean what they say: one temperature, fitted on validation."""

import numpy as np
from scipy.optimize import minimize_scalar

from utils.evaluation.judge import check_numbers, check_probabilities

SMALLEST = 1e-12  # probabilities are clipped here before their logarithm is taken


def fit_temperature(probabilities, labels):
    """The temperature under which probabilities fit the labels best (least cross-entropy).

    Fit it on validation, never on test. Above 1 it makes a model less sure of itself, below 1 surer. It does not change
    which class comes first.

    Args:
        probabilities: (n, C), rows sum to 1.
        labels: (n,) int, index of the true class.

    Returns:
        float, between 0.05 and 20.

    Raises:
        ValueError: no photo, rows that are no probabilities (logits, say), or labels that number no classes.

    Example:
        >>> sure = np.array([[0.99, 0.01]] * 4)  # right three times in four
        >>> tempered = rescale(sure, fit_temperature(sure, np.array([0, 0, 0, 1])))
        >>> round(float(tempered[0, 0]), 2)
        0.75

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    probabilities, labels = check_numbers(probabilities, labels)
    rows = np.arange(len(labels))

    def cross_entropy(log_temperature):
        found = _rescaled(probabilities, np.exp(log_temperature))[rows, labels]
        return -np.log(np.maximum(found, SMALLEST)).mean()

    return float(np.exp(minimize_scalar(cross_entropy, bounds=np.log((0.05, 20)), method="bounded").x))


def rescale(probabilities, temperature):
    """Probabilities under another temperature: softmax(log p / T).

    Args:
        probabilities: (..., C), rows sum to 1.
        temperature: above 0; 1 changes nothing.

    Returns:
        float64 array of the same shape, rows sum to 1.

    Raises:
        ValueError: a temperature of 0 or less, or rows that are no probabilities (logits, say).

    Example:
        >>> rescale([0.8, 0.2], 0.5).round(3).tolist()
        [0.941, 0.059]
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    probabilities = np.asarray(probabilities, float)
    rows = np.atleast_2d(probabilities).reshape(-1, np.atleast_1d(probabilities).shape[-1])
    check_probabilities(rows, len(rows), range(rows.shape[1]))
    return _rescaled(probabilities, temperature)


def _rescaled(probabilities, temperature):
    logits = np.log(np.maximum(probabilities, SMALLEST)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
