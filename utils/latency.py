"""Latency, compared honestly: interleaved rounds, medians, ratios with intervals, the machine beside every number.

Timing one candidate after another measures the machine's other work as much as the candidate. Here all candidates run
in every round, in a new random order. We compare ratios to a baseline over the same rounds, with an interval from
resampling rounds. A candidate is any callable without arguments; nothing here knows TensorFlow. JAX returns before it
has computed, so we wait for what a candidate returns. On a GPU the candidate itself must wait for its result.
"""

import collections.abc
import concurrent.futures
import dataclasses
import gc
import os
import pathlib
import sys
import time
import warnings

import numpy as np
import pandas as pd

from . import environment
from ._checks import whole

BUSY_PROCESSORS = 0.15  # more than this share of a processor used by others: the timings are suspect
MIN_ROUNDS = 5  # even the slowest candidate takes part in this many rounds (fewer have no quartiles)
PENDING = (collections.abc.Awaitable, collections.abc.Iterator, concurrent.futures.Future)  # promises, not results
QUARTILES = {"median_ms": 0.5, "lower_quartile_ms": 0.25, "upper_quartile_ms": 0.75}


class LoadedMachine(UserWarning):
    """Other processes were running while the times were taken."""


def machine():
    """One line that says what the times belong to: processor, cores, memory, versions (utils.environment).

    Example:
        >>> "cores" in machine()
        True
    """
    return environment.sentence()


@dataclasses.dataclass(frozen=True, repr=False)
class Timings:
    """What :func:`measure` returns: every single time, and the circumstances.

    Attributes:
        samples: DataFrame, one row per turn: round, position (place within the round), name, time_ms.
        names: candidate names in the order given; baseline: the one that ratios refer to.
        threads: {name: number of threads, or a phrase}; "not stated" where nobody said.
        notes: {name: why it was not measured} for candidates that are missing.
        rounds, warmup, calls: the plan; `calls` consecutive calls make a turn, whose time is their median.
        items: photos that one call handles.
        machine: the machine's description, or None: then no absolute time is shown.
        busy_elsewhere: processors kept busy by other processes meanwhile (None where the system does not tell).
    """

    samples: pd.DataFrame
    names: tuple
    baseline: str
    threads: dict
    notes: dict
    rounds: int
    warmup: int
    calls: int
    items: int
    machine: str | None
    busy_elsewhere: float | None

    def ratios(self, confidence=0.95, resamples=2000, seed=0):
        """Ratio of each candidate's median to the baseline's over the rounds that both took part in.

        The interval is the percentile bootstrap over rounds: a resampled round brings the candidate's time and the
        baseline's time of that round together, so that a slow moment of the machine slows both.
        Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

        Args:
            confidence: level of the interval, in (0, 1).
            resamples: number of bootstrap samples; seed: of the resampling.

        Returns:
            DataFrame indexed by name: ratio, ratio_low, ratio_high, rounds (paired rounds).
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, such as 0.95, got {confidence}")
        table = self.samples.pivot_table(index="round", columns="name", values="time_ms", aggfunc="first")
        tail = (1 - confidence) / 2
        rows = {}
        for name in self.names:
            if name in self.notes:
                rows[name] = (np.nan, np.nan, np.nan, 0)
                continue
            pair = table[[name]].assign(baseline=table[self.baseline]).dropna().to_numpy()
            picks = np.random.default_rng(seed).integers(0, len(pair), size=(resamples, len(pair)))
            medians = np.median(pair[picks], axis=1)
            low, high = np.quantile(medians[:, 0] / medians[:, 1], [tail, 1 - tail])
            ratio = np.median(pair[:, 0]) / np.median(pair[:, 1])
            rows[name] = (float(ratio), float(low), float(high), len(pair))
        return pd.DataFrame.from_dict(rows, orient="index", columns=["ratio", "ratio_low", "ratio_high", "rounds"])

    def absolute(self):
        """Median and quartiles in milliseconds per call, by name; RuntimeError where no machine is described."""
        if not self.machine:
            raise RuntimeError(
                "the machine of these timings is not described, so milliseconds are not shown: "
                "pass machine=latency.machine(), or use ratios()"
            )
        times = self.samples.groupby("name")["time_ms"]
        table = pd.DataFrame({column: times.quantile(q) for column, q in QUARTILES.items()})
        return table.reindex(list(self.names)).rename_axis(index=None)

    def to_frame(self, confidence=0.95):
        """One row per candidate.

        Columns: name, threads, ratio, ratio_low, ratio_high, median_ms, lower_quartile_ms, upper_quartile_ms (if the
        machine is described), per_item_ms (if a call handles several items), rounds, note (if something was not
        measured). `frame.attrs["caption"]` and `frame.attrs["machine"]` say what the numbers belong to.
        """
        frame = self.ratios(confidence)
        rounds = frame.pop("rounds")
        frame.insert(0, "threads", [self.threads[name] for name in frame.index])
        if self.machine:
            frame = frame.join(self.absolute())
            if self.items > 1:
                frame["per_item_ms"] = frame["median_ms"] / self.items
        frame["rounds"] = rounds
        if self.notes:
            frame["note"] = [self.notes.get(name, "") for name in frame.index]
        frame = frame.rename_axis("name").reset_index()
        frame.attrs.update(caption=self.caption(), machine=self.machine, baseline=self.baseline)
        return frame

    def caption(self):
        """One sentence for under the table or figure."""
        busy = self.busy_elsewhere
        load = "" if busy is None else f"; other processes kept {busy:.2f} processors busy"
        batch = f", {self.items} photos per call" if self.items > 1 else ""
        where = self.machine or "machine not described (ratios only)"
        return (
            f"{where}; {self.rounds} interleaved rounds in random order after {self.warmup} warm-up calls{batch}; "
            f"ratio to {self.baseline!r} with its 95% interval over rounds{load}."
        )

    def __repr__(self):
        return f"{self.to_frame().round(3).to_string(index=False)}\n{self.caption()}"

    def _repr_html_(self):
        return f"{self.to_frame().round(3).to_html(index=False)}<p>{self.caption()}</p>"


def measure(
    candidates, rounds=30, warmup=3, baseline=None, threads=None, budget_s=60.0, calls=3, items=1, seed=0,
    machine=machine,
):  # fmt: skip
    """Time callables side by side: each round runs every candidate once, in a new random order.

    Slow candidates take part in fewer rounds (evenly spread, never fewer than five) so that the whole stays near
    `budget_s`; the baseline takes part in every round. Garbage collection is off while a turn is timed.

    Args:
        candidates: {name: callable without arguments}. A string instead of a callable says why the candidate is
            missing ("not installed: pip install onnxruntime") and becomes a row with that note.
        rounds: number of rounds, at least 5.
        warmup: untimed calls of each candidate first (a candidate that takes seconds gets one).
        baseline: name that ratios refer to; the first measurable candidate unless given.
        threads: number or {name: number} that each candidate computes with, for the record; otherwise the callable's
            own attribute `threads`.
        budget_s: seconds that the rounds may take together, approximately.
        calls: consecutive calls in a turn; their median is the turn's time (slow candidates: one call).
        items: photos that a call handles.
        seed: of the order.
        machine: a description, a function that gives one, or None for ratios only.

    Returns:
        Timings.

    Raises:
        ValueError: no candidate, unknown baseline, or a count that is too small.
        TypeError: a candidate is neither callable nor a string.
        RuntimeError: a candidate failed, or returned a generator, a coroutine or a future; the message names it.

    Example:
        >>> work = {"once": lambda: sum(range(9999)), "twice": lambda: sum(range(19998))}
        >>> timings = measure(work, rounds=5, threads=1, machine=None)
        >>> float(timings.ratios().loc["once", "ratio"])
        1.0
    """
    if not isinstance(candidates, collections.abc.Mapping):
        raise TypeError(f"expected {{name: callable}} to time, got {candidates!r}; give each candidate a name")
    notes = {name: call for name, call in candidates.items() if isinstance(call, str)}
    running = {name: call for name, call in candidates.items() if name not in notes}
    _check(running, rounds, warmup, baseline, budget_s, calls, items)
    baseline = next(iter(running)) if baseline is None else baseline
    threads = {name: _threads(name, call, threads) for name, call in candidates.items()}
    cost_ms = {}
    for name in running:
        start = time.perf_counter()
        for _ in range(max(warmup, 1)):
            cost_ms[name] = _turn(name, running[name], 1)
            if time.perf_counter() - start > budget_s / 10:
                break
    plan = _plan(cost_ms, rounds, calls, budget_s, baseline)
    meter = _LoadMeter()
    samples, rng = [], np.random.default_rng(seed)
    for number in range(rounds):
        order = [name for name in running if number in plan[name][0]]
        for position, place in enumerate(rng.permutation(len(order))):
            name = order[place]
            samples.append((number, position, name, _turn(name, running[name], plan[name][1])))
    described = machine() if callable(machine) else machine
    return Timings(
        samples=pd.DataFrame(samples, columns=["round", "position", "name", "time_ms"]), names=tuple(candidates),
        baseline=baseline, threads=threads, notes=notes, rounds=rounds, warmup=warmup, calls=calls, items=items,
        machine=described or None, busy_elsewhere=meter.stop(),
    )  # fmt: skip


def compare(candidates, rounds=30, warmup=3, baseline=None, **settings):
    """The table of :func:`measure`, with its arguments: see :meth:`Timings.to_frame`.

    Example:
        >>> table = compare({"a": lambda: None, "b": lambda: sum(range(999))}, rounds=5, threads=1, machine=None)
        >>> list(table["name"]), "median_ms" in table
        (['a', 'b'], False)
    """
    return measure(candidates, rounds, warmup, baseline, **settings).to_frame()


def _check(running, rounds, warmup, baseline, budget_s, calls, items):
    if not running:
        raise ValueError("expected at least one {name: callable} to time, got none")
    for name, call in running.items():
        if not callable(call):
            raise TypeError(f"candidate {name!r} must be a callable or a string that says why not, got {call!r}")
    if baseline is not None and baseline not in running:
        raise ValueError(f"baseline must be one of {', '.join(map(str, running))}, got {baseline!r}")
    whole("rounds", rounds, MIN_ROUNDS)
    whole("warmup", warmup, 0)
    whole("calls", calls)
    whole("items", items)
    if not budget_s > 0:
        raise ValueError(f"budget_s must be a positive number of seconds, got {budget_s}")


def _threads(name, call, stated):
    if isinstance(stated, dict):
        stated = stated.get(name)
    if stated is None:
        stated = getattr(call, "threads", None)
    if isinstance(call, str) or stated is None:
        return "" if isinstance(call, str) else "not stated"
    if isinstance(stated, int) and stated < 1:
        raise ValueError(f"threads of candidate {name!r} must be at least 1, got {stated}")
    return stated


def _turn(name, call, calls):
    """Median time in ms of `calls` consecutive calls."""
    times, result = [], None
    collecting, jax = gc.isenabled(), sys.modules.get("jax")
    gc.disable()
    try:
        for _ in range(calls):
            start = time.perf_counter_ns()
            result = call()
            if jax is not None:
                jax.block_until_ready(result)
            times.append(time.perf_counter_ns() - start)
        if isinstance(result, PENDING):
            kind = type(result).__name__
            raise TypeError(f"it returned a {kind}, which has computed nothing yet; pass a callable that waits for it")
    except Exception as error:
        raise RuntimeError(f"candidate {name!r} failed while it was timed: {error}") from error
    finally:
        if collecting:
            gc.enable()
    return float(np.median(times)) / 1e6


def _plan(cost_ms, rounds, calls, budget_s, baseline):
    """{name: (set of rounds, calls a turn)}: expensive candidates share what the cheap ones leave of the budget."""
    left_ms, plan = budget_s * 1000, {}
    by_cost = sorted(cost_ms, key=cost_ms.get)
    for place, name in enumerate(by_cost):
        share = max(left_ms, 0) / (len(by_cost) - place)
        cost = max(cost_ms[name], 1e-6)
        turns, times = rounds, calls
        if cost * rounds * calls > share:
            times = 1
            turns = int(np.clip(share / cost, MIN_ROUNDS, rounds))
        if name == baseline:
            turns = rounds
        plan[name] = (set(np.linspace(0, rounds - 1, turns).round().astype(int).tolist()), times)
        left_ms -= cost * turns * times
    return plan


class _LoadMeter:
    """How many processors other processes keep busy between its making and :meth:`stop`; warns when it is too many."""

    def __init__(self):
        self.start = self._read()

    @staticmethod
    def _read():
        stat = pathlib.Path("/proc/stat")
        if not stat.exists() or not hasattr(os, "sched_getaffinity"):
            return None
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = 0
        for line in stat.read_text().splitlines():
            label, *values = line.split()
            if label in mine:
                user, nice, system, _idle, _wait, interrupt, soft, steal = (int(value) for value in values[:8])
                ticks += user + nice + system + interrupt + soft + steal
        own = os.times()
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system

    def stop(self):
        end = self._read()
        if self.start is None or end is None:
            busy = os.getloadavg()[0] - 1 if hasattr(os, "getloadavg") else None  # one of them is this process
            busy = None if busy is None else max(busy, 0.0)
        else:
            seconds, ticks, own = (after - before for after, before in zip(end, self.start, strict=True))
            busy = max((ticks - own) / seconds, 0.0) if seconds > 0.2 else None  # shorter than the clock's ticks tell
        if busy is not None and busy > BUSY_PROCESSORS:
            load = f" (load average {os.getloadavg()[0]:.1f})" if hasattr(os, "getloadavg") else ""
            warnings.warn(
                f"other processes kept {busy:.1f} processors busy while the times were taken{load}: "
                "do not trust the milliseconds, and measure again on a quiet machine",
                LoadedMachine,
                stacklevel=3,
            )
        return busy
