"""Intervals for accuracy and macro recall: over photos (Wilson) and over the photographers who took them (bootstrap).

Photos by one photographer resemble each other, so an interval that counts every photo as independent is too narrow.
"""

import numpy as np
import pandas as pd
from statsmodels.stats.proportion import proportion_confint

LEVEL, DRAWS = 0.95, 10_000


def wilson(successes, n):
    """Wilson's 95% score interval of a proportion.

    Args:
        successes: number of correct answers, 0..n; a number or an array.
        n: number of answers, at least 1; a number or an array of the same shape.

    Returns:
        (low, high): floats, or arrays for arrays.

    Example:
        >>> tuple(round(bound, 3) for bound in wilson(324, 372))
        (0.833, 0.901)

    Source: Wilson 1927, doi:10.2307/2276774; computed by statsmodels.
    """
    if not np.all((np.asarray(n) >= 1) & (np.asarray(successes) >= 0) & (np.asarray(successes) <= n)):
        raise ValueError(f"expected 0 to n correct answers out of n of at least 1, got {successes} out of {n}")
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    share = np.asarray(successes) / np.asarray(n)
    low, high = np.minimum(low, share), np.maximum(high, share)  # rounding may leave 3e-17 for 0 of n
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)


def sender_interval(correct, senders, labels=None):
    """95% percentile interval of the mean of `correct`, by a bootstrap of 10,000 draws of whole photographers.

    Each draw takes as many photographers as there are, with replacement, and pools all photos of those drawn. So it
    carries both the luck of who took part and the unequal number of photos that each of them uploaded.

    Args:
        correct: (n,) booleans or numbers, one per photo (correct or not, or a difference of two models).
        senders: (n,) who took each photo; missing names count as one photographer, "unknown".
        labels: (n,) the class of each photo, for the interval of macro recall: the mean over classes of the mean of
            each. A class that a draw leaves without a photo does not count in that draw.

    Returns:
        (low, high), floats.

    Raises:
        ValueError: lengths differ, NaN, or fewer than two photographers (nothing varies between them).

    Example:
        >>> low, high = sender_interval([1, 1, 0, 1, 1, 0], ["a", "a", "b", "c", "c", "d"])
        >>> 0 <= low < 4 / 6 < high <= 1
        True

    Source: the cluster bootstrap, Davison and Hinkley 1997, section 3.8 (strategy 1).
    """
    correct = np.asarray(correct, dtype=float)
    names, codes = np.unique(sender_names(senders), return_inverse=True)
    if correct.shape != codes.shape:
        raise ValueError(f"expected one sender per answer, got {correct.size} answers and {codes.size} senders")
    if np.isnan(correct).any():
        raise ValueError(f"expected a number for every answer, got NaN for {np.isnan(correct).sum()}; leave these out")
    if len(names) < 2:
        raise ValueError("expected photos by at least two photographers, got one; use wilson for a single one")
    kinds, kind = np.unique(np.zeros(len(codes)) if labels is None else np.asarray(labels), return_inverse=True)
    if kind.shape != codes.shape:
        raise ValueError(f"expected one label per answer, got {codes.size} answers and {kind.size} labels")
    sizes, sums = np.zeros((2, len(names), len(kinds)))
    np.add.at(sizes, (codes, kind), 1)
    np.add.at(sums, (codes, kind), correct)
    rng, means = np.random.default_rng(0), []
    # thousands of photographers times ten thousand draws need much memory
    block = max(1, 2_000_000 // (len(names) + len(kinds)))
    for start in range(0, DRAWS, block):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(block, DRAWS - start))
        with np.errstate(invalid="ignore"):  # 0 of 0 photos of a class
            means.append(np.nanmean((times @ sums) / (times @ sizes), axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sender_names(senders):
    """Senders as text, an object array (n,); missing ones are "unknown"."""
    names = pd.Series(list(senders), dtype=object)
    names = names.where(names.notna(), "").astype(str)
    return names.where(~names.isin(["", "<NA>", "nan"]), "unknown").to_numpy(dtype=object)
