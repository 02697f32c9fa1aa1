"""How old runtimes are timed: arguments, and a record from raw sittings. The old wheels themselves are not in CI."""

import shutil
import sys

import pytest
from conftest import ROOT

from benchmarks import bench_old_runtimes as bench
from study import records


def sitting(number, float32, dynamic_range, int8, runtime="2.4.4"):
    """A raw sitting with these CPU times; the wall time of each call is twice as long."""
    times = {"float32": float32, "dynamic_range": dynamic_range, "int8": int8}
    return {
        "sitting": number, "runtime": runtime, "version": runtime, "load": float(number), "cpu": "a processor",
        "not_run": [], "times": {scheme: [[2 * spent, spent] for spent in spents] for scheme, spents in times.items()},
    }  # fmt: skip


THREE = [
    sitting(0, [90, 100, 200], [1000, 1000, 1000], [1200, 1100, 1300]),  # medians 100, 1000, 1200
    sitting(1, [50, 50, 50], [600, 600, 900], [500, 500, 500]),  # 50, 600, 500
    sitting(2, [80, 80, 80], [640, 640, 640], [1600, 1600, 0]),  # 80, 640, 1600
]


def test_a_row_is_the_median_sitting_and_a_ratio_refers_to_float32_of_the_same_sitting():
    rows = {row["scheme"]: row for row in bench.summarize(THREE)}
    int8, hybrid, float32 = (rows[scheme] for scheme in ("int8", "dynamic_range", "float32"))
    assert int8["cpu_ms"] == [1200, 500, 1600] and int8["median_wall_ms"] == 2400
    assert (int8["median_cpu_ms"], int8["cpu_ms_low"], int8["cpu_ms_high"]) == (1200, 500, 1600)
    assert (int8["calls"], int8["sittings"]) == (9, 3)
    assert (int8["ratio_to_float32"], int8["ratio_low"], int8["ratio_high"]) == (12, 10, 20)  # 12, 10, 20
    assert (hybrid["ratio_to_float32"], hybrid["ratio_low"], hybrid["ratio_high"]) == (10, 8, 12)  # 10, 12, 8
    assert float32["ratio_to_float32"] == float32["ratio_low"] == float32["ratio_high"] == 1
    line = sitting(0, [100], [100], [100])
    bench.check_threads(line)
    # 35 ms by the clock and 42.5 of CPU: TensorFlow 2.10's float32 with the number of threads left to it
    for spent, told in (([100, 190], "1.9"), ([35, 42.5], "1.2")):
        line["times"]["int8"] = [spent]
        with pytest.raises(RuntimeError, match=f"2.4.4 int8: expected one thread, got {told} busy at once"):
            bench.check_threads(line)


def test_every_runtime_is_asked_for_one_thread(tmp_path, monkeypatch):
    asked = []

    def interpreter(**options):
        asked.append(options["num_threads"])
        raise RuntimeError("no such operator")

    monkeypatch.setattr("ai_edge_litert.interpreter.Interpreter", interpreter)
    for scheme in bench.SCHEMES:
        (tmp_path / f"{scheme}.tflite").write_bytes(b"")
    assert bench.time_files(tmp_path, 1)["not_run"] == list(bench.SCHEMES)
    assert asked == [1] * len(bench.SCHEMES)


def test_the_record_names_processor_load_pins_what_did_not_run_and_today_s_runtime_last(tmp_path):
    other = [sitting(0, [1], [1], [1], runtime) for runtime in (bench.LITERT, "2.3.4")]
    other[0]["version"] = "2.1.1"
    del other[1]["times"]["dynamic_range"]
    other[1]["not_run"] = ["dynamic_range"]
    records.write("old_runtimes", {"sittings": 3}, bench.metrics_of(other + THREE), "none", tmp_path)
    kept = records.read("old_runtimes", tmp_path)["metrics"]
    assert [f"{row['runtime']} {row['version']} {row['scheme']}" for row in kept["runtimes"]] == [
        "TensorFlow 2.3.4 float32", "TensorFlow 2.3.4 int8", "TensorFlow 2.4.4 float32",
        "TensorFlow 2.4.4 dynamic_range", "TensorFlow 2.4.4 int8", "LiteRT 2.1.1 float32",
        "LiteRT 2.1.1 dynamic_range", "LiteRT 2.1.1 int8",
    ]  # fmt: skip
    assert kept["load"] == {"median": 0, "low": 0, "high": 2}
    assert kept["pins"]["2.4.4"] == {"numpy": "1.19.5", "protobuf": "3.19.6"}
    assert (kept["cpu"], kept["weights"], kept["not_run"]) == ("a processor", "random", {"2.3.4": ["dynamic_range"]})
    assert kept["file_made_by"]["int8"] == "TensorFlow 2.4.4"
    assert "TensorFlow 2.4.4  int8" in bench.text_of(kept)


def test_an_interrupted_measurement_continues_with_the_runtimes_that_are_missing(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    for name in (f"{scheme}.tflite" for scheme in bench.SCHEMES):
        (tmp_path / "files" / name).write_text("{}")
    asked, versions = [], ["2.4.4", "2.12.0"]

    def run(python, *_):
        asked.append(python)
        if len(asked) == 3:
            raise RuntimeError("interrupted")
        return {"version": python, "not_run": [], "times": sitting(0, [1], [2], [3])["times"]}

    monkeypatch.setattr(bench, "environment_of", lambda version, *_: version)
    monkeypatch.setattr(bench, "run", run)
    with pytest.raises(RuntimeError):
        bench.measure(tmp_path, versions, 2, 1)
    lines = bench.measure(tmp_path, versions, 2, 1)
    assert sorted((line["sitting"], line["runtime"]) for line in lines) == [
        (0, "2.12.0"), (0, "2.4.4"), (1, "2.12.0"), (1, "2.4.4")
    ]  # fmt: skip
    assert len(asked) == 5, "four, and the one that was interrupted"


def test_todays_runtime_times_what_it_can_run_in_a_process_of_its_own(tmp_path):
    for scheme in bench.SCHEMES:  # this runtime can run all but one
        shutil.copy(ROOT / "models" / "clothing-10-int8.tflite", tmp_path / f"{scheme}.tflite")
    (tmp_path / "dynamic_range.tflite").write_bytes(b"a file of tomorrow")
    found = bench.run(sys.executable, "--time", tmp_path, "--calls", 2)
    assert found["not_run"] == ["dynamic_range"]
    assert {scheme: len(times) for scheme, times in found["times"].items()} == dict.fromkeys(
        ("float32", "dynamic_range_per_tensor", "int8"), 2
    )
    assert all(spent > 0 for times in found["times"].values() for both in times for spent in both)
    with pytest.raises(RuntimeError, match="failed"):
        bench.run(sys.executable, "--time", tmp_path / "nowhere")


def test_what_is_committed_holds_every_runtime_in_three_sittings():
    rows = records.read("old_runtimes")["metrics"]["runtimes"]
    assert {row["version"] for row in rows if row["runtime"] == "TensorFlow"} == set(bench.PINS)
    for row in rows:
        assert row["sittings"] >= 3
        assert row["median_cpu_ms"] <= 1.1 * row["median_wall_ms"], "one thread"
        assert row["cpu_ms_low"] <= row["median_cpu_ms"] <= row["cpu_ms_high"]
        assert row["ratio_low"] <= row["ratio_to_float32"] <= row["ratio_high"]
