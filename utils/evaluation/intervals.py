"""Intervals for an accuracy: over photos (Wilson) and over the people who took them (bootstrap over senders).

Photos by one person resemble each other, so an interval that counts every photo as independent is too narrow. Tables
of this project give both: Wilson's, which readers can compare with other studies, and the one over senders, which says
what to expect from a stranger's photos.
"""

import numpy as np
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95


def wilson(successes, n, level=LEVEL):
    """Wilson score interval of a proportion.

    Args:
        successes: number of right answers, 0..n; a number or an array.
        n: number of answers, at least 1; a number or an array of the same shape.
        level: coverage, between 0 and 1.

    Returns:
        (low, high): floats, or arrays where arrays came in.

    Raises:
        ValueError: no answers at all, more right answers than answers, or a level outside 0..1.

    Example:
        >>> tuple(round(bound, 3) for bound in wilson(324, 372))
        (0.833, 0.901)

    Source: Wilson 1927, doi:10.2307/2276774; computed by statsmodels.
    """
    successes, n = np.asarray(successes, dtype=float), np.asarray(n, dtype=float)
    _check_level(level)
    if not (np.isfinite(successes).all() and np.isfinite(n).all()) or (n < 1).any():
        raise ValueError(f"wilson needs at least one answer, and got n = {n}; leave empty groups out")
    if (successes < 0).any() or (successes > n).any():
        raise ValueError(f"wilson got {successes} right answers out of {n}; they must lie between 0 and n")
    low, high = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    if successes.ndim == 0 and n.ndim == 0:
        return float(low), float(high)
    return np.asarray(low), np.asarray(high)


def sender_interval(correct, senders, draws=10_000, seed=0, level=LEVEL):
    """Percentile interval of the mean of `correct`, by a bootstrap that draws whole senders.

    Each draw takes as many senders as there are, with replacement, and pools all photos of those drawn. So it carries
    both the luck of who was photographed and the unequal number of photos a person sent.

    Args:
        correct: (n,) booleans or numbers, one a photo (right or wrong, or a difference of two models).
        senders: (n,) names of who took each photo; missing names count as one person, "unknown".
        draws: number of bootstrap samples.
        seed: of the random draws.
        level: coverage, between 0 and 1.

    Returns:
        (low, high), floats.

    Raises:
        ValueError: lengths differ, a value is not finite, or fewer than two senders (nothing varies between people).

    Example:
        >>> low, high = sender_interval([1, 1, 0, 1, 1, 0], ["a", "a", "b", "c", "c", "d"])
        >>> 0 <= low < 4 / 6 < high <= 1
        True

    Source: the cluster bootstrap, Davison and Hinkley 1997, section 3.8 (strategy 1).
    """
    correct, codes, names = np.asarray(correct, dtype=float), *_codes(senders)
    _check_level(level)
    if correct.shape != codes.shape:
        raise ValueError(
            f"sender_interval got {correct.size} answers and {codes.size} senders; give one sender a photo"
        )
    if not np.isfinite(correct).all():
        raise ValueError("sender_interval got an answer that is not a finite number; drop it or predict it again")
    if len(names) < 2:
        raise ValueError("an interval over senders needs photos by at least two people; use wilson for a single one")
    if draws < 1:
        raise ValueError(f"draws is {draws}; a bootstrap needs at least one")
    sizes = np.bincount(codes)
    sums = np.bincount(codes, weights=correct)
    rng = np.random.default_rng(seed)
    means = []
    # In blocks: thousands of senders times ten thousand draws need not be in memory at once.
    block = max(1, 2_000_000 // len(names))
    for start in range(0, draws, block):
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(block, draws - start))
        means.append((times @ sums) / (times @ sizes))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _codes(senders):
    names = np.array([sender_name(sender) for sender in senders], dtype=object)
    unique, codes = np.unique(names.astype(str), return_inverse=True)
    return codes, unique


def sender_name(sender):
    """A sender as text; whoever is missing is "unknown"."""
    missing = sender is None or sender != sender or str(sender) in ("", "<NA>", "nan")  # NaN differs from itself
    return "unknown" if missing else str(sender)


def _check_level(level):
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; a coverage lies between 0 and 1, such as 0.95")
