"""utils.latency: the plan, the pairing, the ratios and what it refuses."""

import gc
import sys
import time
import types
import warnings
from concurrent.futures import Future

import numpy as np
import pandas as pd
import pytest

from utils import latency

warnings.simplefilter("ignore", latency.LoadedMachine)
pytestmark = pytest.mark.filterwarnings("ignore::utils.latency.LoadedMachine")


def spin(ms):
    def call():
        end = time.perf_counter() + ms / 1000
        while time.perf_counter() < end:
            pass

    call.threads = 1
    return call


def timings(pairs, **changes):
    """Timings from {name: [time in round 0, 1, ...]} with None for a round that was left out."""
    rows = [
        (number, 0, name, value)
        for name, values in pairs.items()
        for number, value in enumerate(values)
        if value is not None
    ]
    settings = {
        "samples": pd.DataFrame(rows, columns=["round", "position", "name", "time_ms"]), "names": tuple(pairs),
        "baseline": next(iter(pairs)), "threads": dict.fromkeys(pairs, 1), "notes": {}, "rounds": 5, "warmup": 1,
        "calls": 1, "items": 1, "machine": "a machine", "busy_elsewhere": 0.0,
    }  # fmt: skip
    return latency.Timings(**settings | changes)


def test_ratio_of_known_work():
    frame = latency.compare({"short": spin(0.4), "long": spin(1.2)}, rounds=7, warmup=1, calls=1)
    long = frame.set_index("name").loc["long"]
    assert long["ratio"] > 1  # three times the work; how much longer it takes on a busy machine is not for a test
    assert long["ratio_low"] <= long["ratio"] <= long["ratio_high"]
    assert long["lower_quartile_ms"] <= long["median_ms"] <= long["upper_quartile_ms"]
    assert frame["threads"].tolist() == [1, 1]


def test_every_candidate_runs_once_a_round_in_changing_order():
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    result = latency.measure(calls, rounds=12, warmup=2, calls=2, machine=None)
    samples = result.samples
    assert (samples.groupby("round")["name"].nunique() == 3).all()
    assert len({tuple(rows.sort_values("position")["name"]) for _, rows in samples.groupby("round")}) > 2
    assert {name: log.count(name) for name in "abc"} == dict.fromkeys("abc", 2 + 12 * 2)


def test_slow_candidates_take_fewer_rounds_and_the_baseline_all():
    calls = {"slow": spin(40), "fast": spin(0.1)}
    start = time.perf_counter()
    result = latency.measure(calls, rounds=30, warmup=3, baseline="fast", budget_s=0.4, machine=None)
    assert time.perf_counter() - start < 2.5  # all rounds in full would take 3.6 s
    counts = result.samples["name"].value_counts()
    assert counts["fast"] == 30
    assert latency.MIN_ROUNDS <= counts["slow"] < 15
    rounds = result.samples.loc[result.samples["name"] == "slow", "round"]
    assert rounds.min() == 0  # spread over the whole time
    assert rounds.max() == 29
    assert result.ratios().loc["slow", "rounds"] == counts["slow"]


def test_a_slow_moment_of_the_machine_cancels_in_the_ratio():
    weather = np.array([1.0, 1.0, 3.0, 1.0, 10.0, 2.0])
    ratios = timings({"base": list(weather), "twice": list(2 * weather)}).ratios()
    assert ratios.loc["twice"].tolist() == [2.0, 2.0, 2.0, 6]  # unpaired resampling would give an interval around 2
    assert ratios.loc["base"].tolist() == [1.0, 1.0, 1.0, 6]
    # the baseline was slow in the rounds that the other one skipped: only shared rounds are compared
    result = timings({"base": [1.0, 9.0, 1.0, 9.0, 1.0, 9.0], "other": [3.0, None, 3.0, None, 3.0, None]})
    assert result.ratios().loc["other"].tolist() == [3.0, 3.0, 3.0, 3]


def test_the_interval_covers_the_true_ratio():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        base, other = rng.lognormal(0, 0.2, 25), 1.5 * rng.lognormal(0, 0.2, 25)
        row = timings({"base": list(base), "other": list(other)}).ratios(resamples=300, seed=seed).loc["other"]
        hits += row["ratio_low"] <= 1.5 <= row["ratio_high"]
    assert hits >= 52  # 95 % of 60 is 57


def test_no_milliseconds_without_the_machine():
    result = timings({"a": [1.0] * 5, "b": [2.0] * 5}, machine=None)
    with pytest.raises(RuntimeError, match="machine of these timings is not described"):
        result.absolute()
    assert not [name for name in result.to_frame().columns if name.endswith("_ms")]
    assert "ratios only" in repr(result)
    described = timings({"a": [1.0] * 5, "b": [2.0] * 5}, machine="AMD, 2 cores", items=4).to_frame()
    assert described["per_item_ms"].tolist() == [0.25, 0.5]
    assert "AMD, 2 cores" in described.attrs["caption"]
    assert "4 photos per call" in described.attrs["caption"]


def test_machine_threads_and_what_is_not_there_are_said():
    result = latency.measure({"a": spin(0.05)}, rounds=5)
    assert "cores" in result.machine and "not stated" not in repr(result) and "<table" in result._repr_html_()
    seen = []
    collecting = latency.measure({"a": lambda: seen.append(gc.isenabled())}, rounds=5)
    assert collecting.threads == {"a": "not stated"}
    assert gc.isenabled() and not any(seen)  # off while the clock runs
    assert latency.measure({"a": lambda: None}, rounds=5, threads={"a": 2}).threads == {"a": 2}
    frame = latency.compare({"a": spin(0.05), "ort": "not installed; pip install onnxruntime"}, rounds=5)
    row = frame.set_index("name").loc["ort"]
    assert (row["note"], row["rounds"]) == ("not installed; pip install onnxruntime", 0)
    assert np.isnan(row["ratio"]) and np.isnan(row["median_ms"])


def test_what_jax_has_not_computed_yet_is_waited_for(monkeypatch):
    """JAX returns at once: a product that takes 500 ms took 0.2 ms here before."""
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(block_until_ready=lambda result: result()))
    late, soon = spin(3), spin(0)
    ratios = latency.measure({"soon": lambda: soon, "late": lambda: late}, rounds=5, machine=None).ratios()
    assert ratios.loc["late", "ratio"] > 10


def test_a_loaded_machine_is_told(monkeypatch):
    readings = iter([(0.0, 10.0, 5.0), (10.0, 25.0, 15.0)])  # 15 processor seconds, 10 of them ours, in 10 s
    monkeypatch.setattr(latency._LoadMeter, "_read", staticmethod(lambda: next(readings)))
    with pytest.warns(latency.LoadedMachine, match=r"0\.5 processors busy"):
        result = latency.measure({"a": spin(0.05)}, rounds=5)
    assert result.busy_elsewhere == pytest.approx(0.5)
    readings = iter([(0.0, 10.0, 5.0), (10.0, 20.5, 15.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latency.measure({"a": spin(0.05)}, rounds=5)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"candidates": {}}, ValueError, "at least one {name: callable}"),
        ({"candidates": {"a": 3}}, TypeError, r"candidate 'a' must be a callable .* got 3"),
        ({"baseline": "z"}, ValueError, "baseline must be one of a, got 'z'"),
        ({"rounds": 4}, ValueError, "rounds must be an integer from 5 up, got 4"),
        ({"calls": 0}, ValueError, "calls must be a positive integer, got 0"),
        ({"items": 0}, ValueError, "items must be a positive integer, got 0"),
        ({"warmup": -1}, ValueError, "warmup must be an integer from 0 up, got -1"),
        ({"budget_s": 0}, ValueError, "budget_s must be a positive number of seconds, got 0"),
        ({"threads": 0}, ValueError, "threads of candidate 'a' must be at least 1, got 0"),
        ({"candidates": {"bad": lambda: 1 / 0}}, RuntimeError, "candidate 'bad' failed"),
        (
            {"candidates": [spin(1)]},
            TypeError,
            r"expected {name: callable} to time, got \[.*give each candidate a name",
        ),
        ({"candidates": {1: spin(1)}, "baseline": 2}, ValueError, "baseline must be one of 1, got 2"),
        ({"rounds": 5.5}, ValueError, "rounds must be an integer from 5 up, got 5.5"),
        ({"calls": None}, ValueError, "calls must be a positive integer, got None"),
        *(
            (
                {"candidates": {"lazy": call}},
                RuntimeError,
                "'lazy' failed .* it returned a .*, which has computed nothing",
            )
            for call in (lambda: (number for number in range(9)), lambda: map(abs, range(9)), Future)
        ),
    ],
)
def test_bad_input_gets_one_sentence(changes, kind, message):
    settings = {"candidates": {"a": lambda: None}, "rounds": 5} | changes
    with pytest.raises(kind, match=message):
        latency.measure(**settings)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, such as 0"):
        timings({"a": [1.0] * 5}).ratios(confidence=95)
