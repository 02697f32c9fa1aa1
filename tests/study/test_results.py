"""The ledger: written whole or not at all, hostile files refused by name, README's tables made from it."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from study import recipes as study
from study import results, results_cards, results_goals, results_tables
from utils import evaluation, files

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAME = "01_data_and_training"
JUDGED = evaluation.evaluate(
    [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.8, 0.2]],
    pd.DataFrame({"label": ["hat", "shirt", "shirt", "hat"], "sender": list("aabb")}),
    ("hat", "shirt"),
).to_dict()
COMMON = {"study": "B", "dataset": "clothing-10", "split": "official", "input_size": 224, "weights": "ImageNet"}
ROWS = [
    {**COMMON, "id": "b-one", "title": "MobileNetV2, frozen", "model": "mobilenet_v2", "status": "measured",
     "published_accuracy": 0.8548, "conditions": "a | b <i>", "params": 2_270_794, **JUDGED,
     "grouped": {"accuracy": 0.84, "accuracy_low": 0.823, "accuracy_high": 0.857, "n": 3781, "k": 5,
                 "evaluation": {"macro_recall": 0.8}, "conditions": "few epochs a fold"}},
    {**COMMON, "id": "b-two", "title": "EfficientNet-Lite0, fine-tuned", "model": "efficientnet_lite0", "classes": 10,
     "status": "not run", "reason": "no time for it"},
]  # fmt: skip
MODELS = {"MobileNetV2": {"params": 1, "macs": 300_000_000, "flops": 600_000_000, "receptive_field_px": 491,
                          "receptive_field_stride_px": 32, "weight_bytes": 9_000_000}}  # fmt: skip
SCHEMES = [
    {"model": "MobileNetV2", "row": "b-one", "scheme": scheme, "title": scheme, "n": 372, "accuracy": 0.87,
     "accuracy_low": 0.83, "accuracy_high": 0.9, "macro_f1": 0.86, "macs_m": 300.0, "agreement": 0.98,
     "size_bytes": size, "latency_ms": ms, "latency_ratio": ms / 20}
    for scheme, size, ms in (("float32", 8_930_000, 20.0), ("int8", 2_740_000, 21.0))
]  # fmt: skip
DEPLOYED = {
    "latency": {
        "EfficientNetB0": {"LiteRT int8": 0.71, "Keras predict": 7.2, "reference kernels": 21.0, "none": None},
    },
    "b0": {"keras_macs": 384_500_000, "int8_macs": 384_600_000, "mean_ops": 2_369_248},
    "pruning": [
        {"kind": kind, "removed": removed, "accuracy": 0.9 - removed / 10, "macs_m": 385.0, "gzip_mb": 12.5}
        for kind in ("weights", "weights, int8") for removed in (0.0, 0.5, 0.8)
    ],
}  # fmt: skip


GROWTH = {
    "photos": [{"stage": "index", "photos": n, "seconds": n / 100, "peak_mib": 7.0} for n in (120, 480, 1920)],
    "layers": [{"layers": n, "count_ms": n / 10, "receptive_field_ms": n / 5} for n in (10, 1000)],
    "sides": [{"side": side, "macs": side * 1_000_000, "photo_ms": side / 8} for side in (64, 320)],
    "exponents": {"index: time over photos": 1.004, "count: time over layers": 0.99},
}
SEEDS = [{**COMMON, "title": "Net", "n": 372, "seed": seed, "accuracy": 0.88 + seed / 100} for seed in range(3)]

JUDGED = {"title": "Net", "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "macro_recall": 0.3}
JUDGED["row"] = "a-lite0-fine"
SPLITS = [JUDGED | {"split": "grouped", "n": 1006}, JUDGED | {"split": "random", "n": 765, "accuracy": 0.7}]
TRIALS = [
    {"photos": "clothing-10", "recipe": f"try-{number}", "n": 341, "validation_accuracy": 0.9 + number / 100,
     "low": 0.8, "high": 0.95, "best_epoch": 4, "minutes": 18.7, "cpu": "a processor",
     "config": {"name": "x", "epochs": 8, "mixup": number / 10}}
    for number in (1, 2)
]  # fmt: skip
FILE = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "agreement": 0.99, "gzip_bytes": 3_000_000}
FILES = {
    "models": [
        {"row": "b-one", "title": "MobileNetV2, frozen", "classes": 10, "n": 372,
         "schemes": {"float32": FILE | {"size_bytes": 9_000_000}, "int8": FILE | {"size_bytes": 3_000_000}}}
    ],
    "machines": {"old": "an older machine"},
    "times": [
        {"row": "b-one", "scheme": scheme, "cpu": "old", "median_ms": ms, "ratio": ms / 10, "ratio_low": ms / 11,
         "ratio_high": ms / 9} for scheme, ms in (("float32", 10.0), ("int8", 5.0))
    ],
}  # fmt: skip

CAUSES = [
    {"title": "B0", "classes": 10, "n": 341, "biases_mended": mended, "ranges": ranges, "agreement": share,
     "agreement_low": share - 0.05, "agreement_high": share + 0.05}
    for mended, ranges, share in (
        (False, "min-max", 0.1), (False, "percentile", 0.2), (True, "min-max", 0.3), (True, "percentile", 0.8),
    )
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A ledger of all three notebooks and of the commands."""
    results.write("deployment", {}, FILES, "full", "clothing-10", tmp_path)
    results.write(NAME, {"SEED": 0}, {"rows": ROWS, "best_ten": "b-one"}, "full", "clothing-10", tmp_path)
    results.write("02_receptive_field_and_flops", {}, {"models": MODELS}, "full", "clothing-10", tmp_path)
    metrics = {"schemes": SCHEMES, "machine": "a quiet machine", "answers": {"a_pruning": "pruned <well>"}} | DEPLOYED
    results.write("03_quantization", {}, metrics, "full", "clothing-10", tmp_path)
    results.write("growth", {}, GROWTH, "full", "sketches", tmp_path)
    results.write("trials", {}, {"trials": TRIALS}, "full", "clothing-10", tmp_path)
    results.write("seeds", {}, {"seeds": SEEDS}, "full", "clothing-10", tmp_path)
    results.write("int8_causes", {}, {"causes": CAUSES}, "full", "clothing-10", tmp_path)
    results.write(
        "splits",
        {},
        {"splits": [*SPLITS, JUDGED | {"row": "a-b0-fine", "title": "Other", "split": "random", "n": 9}]},
        "full",
        "clothing-17",
        tmp_path,
    )
    return tmp_path


def damage(folder, **changes):
    """Write a record with some fields replaced (or dropped, with ...)."""
    path = folder / f"{NAME}.json"
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))
    return path


def cells(table):
    """Rows of a Markdown table as lists of cells."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("\\|", "¦").strip("|").split("|")] for line in lines]


# The files


def test_what_is_written_is_read_back(folder):
    record = results.read(NAME, folder)
    assert record["schema_version"] == results.SCHEMA_VERSION
    assert record["profile"] == "full"
    assert record["data"] == "clothing-10"
    assert record["environment"]["python"] == sys.version.split()[0]
    assert record["parameters"] == {"SEED": 0}
    assert record["metrics"]["rows"][0]["accuracy"] == 0.75
    assert record["created"].endswith("+00:00")


def test_numpy_and_missing_values_become_plain_json(tmp_path):
    metrics = {"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), "d": (pathlib.Path("x/y"), pd.NA), 5: {"s"}}
    results.write(NAME, {}, metrics, "quick", "sketches", tmp_path)
    assert results.read(NAME, tmp_path)["metrics"] == {"a": 0.5, "b": [0, 1], "c": None, "d": ["x/y", None], "5": ["s"]}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"metrics": {"a": [1, float("inf")]}}, ValueError, r"metrics.a\[1\] is infinite"),
        ({"metrics": {"a": {"b": object()}}}, TypeError, "metrics.a.b is a object"),
        ({"profile": "fast"}, ValueError, "profile 'fast' is unknown"),
        ({"name": "../escape"}, ValueError, "no name of a notebook"),
        ({"name": ""}, ValueError, "no name of a notebook"),
    ],
)
def test_what_cannot_be_written_leaves_the_old_file(folder, arguments, error, message):
    before = (folder / f"{NAME}.json").read_bytes()
    given = {
        "name": NAME,
        "parameters": {},
        "metrics": {},
        "profile": "quick",
        "data": "x",
        "folder": folder,
    } | arguments
    with pytest.raises(error, match=message):
        results.write(**given)
    assert (folder / f"{NAME}.json").read_bytes() == before
    assert {path.stem for path in folder.iterdir()} == set(results.RECORDS)


def test_a_broken_write_leaves_the_old_file(folder, monkeypatch):
    before = (folder / f"{NAME}.json").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*01_data_and_training.json: No space left"):
        results.write(NAME, {}, {}, "quick", "x", folder)
    assert (folder / f"{NAME}.json").read_bytes() == before
    assert {path.stem for path in folder.iterdir()} == set(results.RECORDS)


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 1 first: make run"):
        results.read(NAME, tmp_path)
    with pytest.raises(FileNotFoundError, match="run notebook 3 first"):
        results.read("03_quantization", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 99}, "newer than 1; update this repository"),
        ({"schema_version": "1"}, "has no schema_version"),
        ({"schema_version": True}, "has no schema_version"),
        ({"schema_version": 0}, "not a record of"),
        ({"metrics": []}, r"has no metrics \(dict\)"),
        ({"metrics": ...}, "has no metrics"),
        ({"name": "02_receptive_field_and_flops"}, "not a record of 01"),
        ({"profile": "wild"}, "not a record of"),
        ({"metrics": {"rows": "none"}}, "rows that are no list"),
        ({"metrics": {"rows": [1]}}, "rows that are no list"),
        ({"metrics": {"a": [{"b": float("nan")}]}}, "not finite"),
        ({"metrics": {"a": float("inf")}}, "not finite"),
    ],
)
def test_wrong_records_are_refused_by_name(folder, changes, message):
    path = damage(folder, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        results.read(NAME, folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'"x"', b"1" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"1e999",
        b'{"schema_version": 1, "schema_version": ' + b"9" * 5000 + b"}", b"\x00" * 100, b"NaN",
    ],
)  # fmt: skip
def test_hostile_files_are_refused_by_name(folder, content):
    path = folder / f"{NAME}.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"01_data_and_training\.json"):
        results.read(NAME, folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="no file"):
        results.read(NAME, folder)


def test_a_file_too_large_is_not_parsed(folder, monkeypatch):
    monkeypatch.setattr(results, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="no file of at most"):
        results.read(NAME, folder)


def test_every_truncation_is_refused_or_whole(folder):
    path = folder / f"{NAME}.json"
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="01_data_and_training"):
            results.read(NAME, folder)


def test_bit_flips_never_crash_the_reader_or_the_tables(folder):
    rng = np.random.default_rng(0)
    path = folder / f"{NAME}.json"
    whole = bytearray(path.read_bytes())
    outcomes = {"read": 0, "refused": 0}
    for _ in range(400):
        hurt = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            hurt[place] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(hurt))
        try:
            records = results.read_all(folder)
            for name in results_tables.TABLES:
                results.fill(f"<!-- table:{name} --><!-- /table:{name} -->", records)
            outcomes["read"] += 1
        except ValueError as error:
            outcomes["refused"] += 1
            assert len(str(error)) > 20
    assert min(outcomes.values()) > 20


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_RESULTS_DIR", str(tmp_path / "elsewhere"))
    path = results.write(NAME, {}, {}, "quick", "sketches")
    assert path == tmp_path / "elsewhere" / f"{NAME}.json"
    assert results.read(NAME)["data"] == "sketches"
    monkeypatch.delenv("CLOTHING_RESULTS_DIR")
    assert results.results_dir() == ROOT / "results"


# The tables


def test_the_headline_joins_the_three_notebooks(folder):
    (folder / "deployment.json").unlink()
    table = results_tables.TABLES["headline"](results.read_all(folder))
    first, second = cells(table)[2:]
    assert first == [
        "MobileNetV2, frozen", "2, 224", "75.0 % (30.1–95.4), 4", "84.0 % (82.3–85.7), 3,781", "2.27 / 300.0 / 600.0",
        "8,930 / 2,740", "20.0 / 21.0", "ImageNet",
    ]  # fmt: skip
    assert second[2] == second[3] == "not run [1]"
    assert "[1] Not run: no time for it." in table
    assert "Milliseconds: a quiet machine." in table


def test_the_headline_prefers_the_sitting_in_which_all_models_were_timed(folder):
    records = results.read_all(folder)
    table = results_tables.TABLES["headline"](records)
    # Converted together; their times are another processor's than the one that wrote the record.
    assert cells(table)[2][5:7] == ["9,000 / 3,000", "not run [1]"] and "quiet" not in table
    records["deployment"]["environment"]["cpu"] = "old"
    table = results_tables.TABLES["headline"](records)
    assert cells(table)[2][6] == "10.0 / 5.0" and "Milliseconds: an older machine." in table


def test_goals_say_how_near_each_target_came(folder):
    records = results.read_all(folder)
    rows = records[NAME]["metrics"]["rows"]

    def judged(name, accuracy, n, **more):
        return COMMON | {"id": name, "accuracy": accuracy, "n": n, "status": "measured"} | more

    grouped = {"accuracy": 0.88, "accuracy_low": 0.87, "accuracy_high": 0.89, "n": 1000}
    rows[:] = [
        judged("b-mobilenet-frozen", 0.85, 100),
        judged("b-lite0-fine", 347 / 372, 372, grouped=grouped),
        judged("a-lite0-fine", 0.80, 50, macro_recall=0.7),
        judged("a-lite0-frozen", 0.77, 50, macro_recall=0.6),
    ]
    found = cells(results_tables.TABLES["goals"](records))[2:]
    assert [line[-1] for line in found] == [
        "0.5 points (1 photo) short of the floor", "floor reached; 1.7 points (7 photos) short of the goal",
        "1.0 points (10 photos) short of the floor", "1.0 points short of the floor", "floor reached",
    ]  # fmt: skip
    assert found[2][3] == "88.0 % (87.0–89.0), 1,000" and found[4][1:4] == ["+8 points", "–", "+10.0 points"]
    assert results_goals.verdict(0.95, 0.93, 0.95, 372) == "goal reached"
    rows.pop()
    assert [line[-2:] for line in cells(results_tables.TABLES["goals"](records))[5:]] == [["not run [1]", "–"]] * 2


def test_files_show_a_ratio_for_each_processor(folder):
    record = results.read("deployment", folder)
    new = [line | {"cpu": "new", "ratio": 1.05, "ratio_low": 1.0, "ratio_high": 1.1} for line in FILES["times"]]
    record["metrics"]["times"] += new
    record["metrics"]["machines"]["new"] = "a newer machine"
    table = results_tables.TABLES["deployment"]({"deployment": record})
    header, _, line = cells(table)
    assert header[-2:] == [f"time, float32 = 1: dynamic range / int8, {cpu}" for cpu in ("old", "new")]
    assert line[-2:] == ["not run [1] / 0.50 (0.45–0.56)", "not run [1] / 1.05 (1.00–1.10)"]
    assert line[:7] == [
        "MobileNetV2, frozen, 10 classes", "90.0 % (80.0–95.0)", "not run [1]", "90.0 % (80.0–95.0)", "372",
        "not run [1] / 99.0 %", "9,000 / not run [1] / 3,000",
    ]  # fmt: skip
    assert "no file to ship" not in table
    record["metrics"]["models"][0]["schemes"]["int8"]["agreement"] = 0.185
    table = results_tables.TABLES["deployment"]({"deployment": record})
    assert "MobileNetV2, frozen, 10 classes: int8 is no file to ship, it answers like float32 on 18.5 %" in table


def test_accuracies_stand_beside_those_on_a_split_blind_to_senders(folder):
    records = results.read_all(folder)
    said = "on a split blind to senders, Net: 70.0 % (40.0–60.0, n = 765)"
    assert said not in results_tables.TABLES["answers"](records)  # no row of notebook 1 to stand beside
    records[NAME]["metrics"]["rows"][0] |= {"id": "a-lite0-fine"}
    assert f"n = 4); and {said} |" in results_tables.TABLES["answers"](records)  # the best of the two
    for line in records["splits"]["metrics"]["splits"]:
        line["row"] = {"a-lite0-fine": "a-baseline", "a-b0-fine": "a-weighted"}[line["row"]]
    records[NAME]["metrics"]["rows"][0] |= {"id": "a-baseline"}
    assert f"n = 4); and {said}; Other: 50.0 % (40.0–60.0, n = 9) |" in results_tables.TABLES["answers"](records)


def test_a_model_that_was_not_run_is_named_among_those_that_were(folder):
    records = results.read_all(folder)
    rows = records[NAME]["metrics"]["rows"]
    rows[0]["id"], rows[1]["id"] = "b-mobilenet-frozen", "b-lite0-fine"
    said = "MobileNetV2, frozen: 75.0 % (30.1–95.4, n = 4); EfficientNet-Lite0, fine-tuned: not run |"
    assert said in results_tables.TABLES["answers"](records)


def test_whether_int8_is_faster_is_answered_by_processor(folder):
    records = results.read_all(folder)
    records["03_quantization"]["metrics"]["schemes"] = [{"row": "b-lite0-fine", "scheme": "int8", "latency_ratio": 0.5}]
    records["03_quantization"]["environment"]["cpu"] = "with VNNI"
    records["deployment"]["metrics"]["times"][1] |= {"row": "b-lite0-fine"}
    answers = results_tables.TABLES["answers"](records)
    assert "with VNNI: 0.50; old: 0.50 (0.45–0.56)" in answers


def test_a_row_split_by_sender_stands_under_people_never_seen(folder):
    records = results.read_all(folder)
    row = records[NAME]["metrics"]["rows"][0]
    row |= {"split": "grouped", "sender_low": 0.5, "sender_high": 0.9}
    cell = cells(results_tables.TABLES["headline"](records))[2]
    assert cell[2].startswith("–")
    assert cell[3] == "75.0 % (50.0–90.0), 4"


def test_published_stands_beside_measured(folder):
    first, grouped, missing = cells(results_tables.TABLES["study_b"](results.read_all(folder)))[2:]
    assert first[:3] == ["MobileNetV2, frozen", "85.48 %", "75.0 % (30.1–95.4), 4"]
    assert first[-1] == "a ¦ b &lt;i&gt;; weights ImageNet"  # a reason or condition cannot break the table
    assert grouped[0] == "MobileNetV2, frozen, sender-grouped 5-fold" and grouped[4] == "80.0 %"
    assert grouped[-1].endswith("nobody of its sender; few epochs a fold")
    assert missing[2] == "not run [1]"


def test_costs_schemes_and_answers(folder):
    records = results.read_all(folder)
    assert cells(results_tables.TABLES["costs"](records))[2][-3:] == ["491", "32", "491"]
    schemes = cells(results_tables.TABLES["schemes"](records))
    assert schemes[3][:3] == ["MobileNetV2", "int8", "87.0 % (83.0–90.0), 372"]
    assert schemes[3][5] == "2,740 / not run [1]"  # no gzip size in this record
    assert schemes[3][6:] == ["300.0", "21.0 (1.05)"]
    answers = results_tables.TABLES["answers"](records)
    assert "pruned &lt;well&gt;" in answers  # a notebook's own words go before those made here
    assert "int8 with XNNPACK 0.71, slowest reference kernels 21.0, Keras predict 7.2" in answers
    assert "384.5 M MACs and its int8 file 384.6 M; the file's `Mean` operators alone come to 2,369,248" in answers
    assert "float32 87.0 %, int8 87.0 %, agreement 98.0 %, 3.3 times smaller |" in answers
    records["deployment"]["metrics"]["models"][0]["row"] = "a-b0-frozen"
    said = "3.3 times smaller. The study's EfficientNetB0, frozen, from a warm start: float32 90.0 %, int8 90.0 % |"
    assert said in results_tables.TABLES["answers"](records)
    records["deployment"]["metrics"]["models"].append(
        records["deployment"]["metrics"]["models"][0] | {"row": "a-b0-fine"}
    )
    said = (
        said.removesuffix(" |")
        + ". The study's EfficientNetB0, fine-tuned, from a warm start: float32 90.0 %, int8 90.0 % |"
    )
    assert said in results_tables.TABLES["answers"](records)
    record = records["03_quantization"]["metrics"]
    del record["answers"]
    answers = results_tables.TABLES["answers"](records)
    assert "unpruned 90.0 %, 385 M MACs, gzip 12.5 MB; 80 % of weights gone: 82.0 %" in answers
    del record["latency"], record["pruning"]
    answers = results_tables.TABLES["answers"](records)
    assert "491 px, stride 32 px: confirmed" in answers
    assert "not run: notebook 3 measures this" in answers


@pytest.mark.parametrize("name", results_tables.TABLES)
def test_no_cell_is_ever_empty(folder, name):
    for records in (results.read_all(folder), {}, {NAME: results.read(NAME, folder)}):
        table = results_tables.TABLES[name](records)
        assert table.strip()
        assert all(cell for row in cells(table) for cell in row), table
        assert len({len(row) for row in cells(table)}) <= 1


def test_growth_shows_both_ends_and_the_exponent(folder):
    table = results_tables.TABLES["growth"](results.read_all(folder))
    index, count, field, photo = cells(table)[2:]
    assert index == ["index", "120 – 1,920 photos", "1.20 – 19.20 s", "1.00", "7 – 7"]
    assert count == ["`count`", "10 – 1,000 layers", "1.0 – 100.0 ms", "0.99", "–"]
    assert field[3] == "not run [1]" and "the results do not hold it" in table
    assert photo[1] == "64 – 320 px, 64 – 320 M MACs"


def test_seeds_show_mean_and_spread(folder):
    (row,) = cells(results_tables.TABLES["seeds"](results.read_all(folder)))[2:]
    assert row == ["Net", "clothing-10", "official", "372", "3", "89.0 %", "1.00", "88.0 % – 90.0 %"]


def test_causes_of_int8_s_loss_stand_alone_and_together(folder):
    left, mended = cells(results_tables.TABLES["int8_causes"](results.read_all(folder)))[2:]
    assert left == [
        "B0, 10 classes",
        "as ai-edge-quantizer writes them",
        "10.0 % (5.0–15.0), 341",
        "20.0 % (15.0–25.0), 341",
    ]
    assert mended[1:] == ["kept within 32 bits", "30.0 % (25.0–35.0), 341", "80.0 % (75.0–85.0), 341"]


def test_two_kinds_of_split_stand_side_by_side(folder):
    table = results_tables.TABLES["splits"](results.read_all(folder))
    net, other = cells(table)[2:]
    assert net == ["Net", "50.0 % (40.0–60.0), 1,006", "30.0 %", "70.0 % (40.0–60.0), 765", "30.0 %"]
    assert other[1:3] == ["not run [1]"] * 2 and "[1] Not run: not trained on this split." in table


def test_trials_show_the_best_on_validation_first(folder):
    best, other = cells(results_tables.TABLES["trials"](results.read_all(folder)))[2:]
    assert best == [
        "clothing-10",
        "`try-2`",
        "learning rate 0.001, epochs 8, mixup 0.2",
        "92.0 % (80.0–95.0), 341",
        "4",
        "19 on a processor",
    ]
    assert other[1] == "`try-1`"


def test_answers_say_nothing_of_the_drawings_that_growth_was_measured_on(folder):
    assert "Drawn garments" not in results_tables.TABLES["answers"](results.read_all(folder))


def test_drawn_garments_and_the_quick_profile_are_said(folder):
    rows = [{**ROWS[0], "dataset": "sketches"}]
    results.write(NAME, {}, {"rows": rows}, "quick", "sketches", folder)
    for name in ("headline", "study_b"):
        table = results_tables.TABLES[name](results.read_all(folder))
        assert "MobileNetV2, frozen (drawn garments)" in table
        assert "Drawn garments stand in for the photos" in table
        assert "quick profile" in table
    assert "drawn garments" in results.text_summary(folder)


def test_text_where_a_number_belongs_is_refused(folder):
    records = results.read_all(folder)
    records[NAME]["metrics"]["rows"][0]["accuracy"] = "<!-- /table:headline -->"
    with pytest.raises(ValueError, match=r"accuracy of MobileNetV2, frozen .* not a number"):
        results.fill("<!-- table:headline --><!-- /table:headline -->", records)


# README


def test_fill_replaces_what_is_between_the_markers_and_nothing_else(folder):
    records = results.read_all(folder)
    text = "before\n<!-- table:costs -->\nold\n<!-- /table:costs -->\nbetween\n"
    text += "<!-- table:schemes --><!-- /table:schemes -->x"
    filled = results.fill(text, records)
    assert filled.startswith("before\n<!-- table:costs -->\n\n| model |")
    assert "old" not in filled
    assert filled.endswith("<!-- /table:schemes -->x")
    assert "\nbetween\n" in filled
    assert results.fill(filled, records) == filled


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:costs -->", "has no closing marker"),
        ("<!-- /table:costs -->", "closes nothing"),
        ("<!-- table:costs --><!-- table:schemes --><!-- /table:schemes -->", "is not closed before|no closing marker"),
        ("<!-- table:hats --><!-- /table:hats -->", "no table is called 'hats'; there are headline"),
    ],
)
def test_bad_markers_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        results.fill(text, {})


def test_the_command_checks_then_writes_then_agrees(folder, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("# x\n<!-- table:study_b -->\n<!-- /table:study_b -->\n")
    arguments = ["--readme", str(readme), "--folder", str(folder)]
    assert results.main([*arguments, "--check"]) == 1
    shown = capsys.readouterr()
    assert "+| MobileNetV2, frozen | 85.48 %" in shown.out
    assert "run python -m study.results" in shown.err
    assert readme.read_text().count("|") == 0
    assert results.main(arguments) == 0
    assert results.main([*arguments, "--check"]) == 0
    damage(folder, metrics=[])
    capsys.readouterr()
    assert results.main([*arguments, "--check"]) == 2
    assert "has no metrics" in capsys.readouterr().err
    assert results.main(["--readme", str(tmp_path / "none.md")]) == 2


def test_readme_says_what_the_results_say():
    if not list((ROOT / "results").glob("*.json")):
        pytest.skip("results/ is empty: no notebook has been rendered yet")
    command = [sys.executable, "-m", "study.results", "--check"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def card_records():
    one = {"class": "hat", "precision": 0.5, "recall": 1.0, "f1": None, "support": 3}
    rates = {"accuracy": 0.5, "accuracy_low": 0.1, "accuracy_high": 0.9}
    people = [{"sender": str(n), "n": n, **rates} for n in range(1, 13)]
    row = {
        "id": "b-lite0-fine", "study": "B", "split": "official", "status": "measured", "n": 372, "accuracy": 0.93,
        "accuracy_low": 0.9, "accuracy_high": 0.95, "sender_low": 0.88, "sender_high": 0.97, "n_senders": 12,
        "per_class": [one], "per_sender": people,
    }  # fmt: skip
    record = {"data": "clothing-10", "profile": "full", "parameters": {}, "metrics": {"rows": [row]}}
    return {"01_data_and_training": record}


def test_a_model_card_names_classes_and_people():
    records = card_records()
    card = results.fill("<!-- table:card_ten --><!-- /table:card_ten -->", records)
    assert "93.0 % (90.0–95.0), 372; by people: 88.0–97.0 over 12 people" in card
    assert "| hat | 3 | 50 % | 100 % | – |" in card
    assert card.index("| 12 | 12 | 50.0 %") < card.index("| 3 | 3 |")
    assert "and 2 people with fewer photos each" in card
    records["01_data_and_training"]["metrics"]["rows"][0]["status"] = "not run"
    assert "*Not run:" in results.fill("<!-- table:card_ten --><!-- /table:card_ten -->", records)
    other = results.fill("<!-- table:card_seventeen --><!-- /table:card_seventeen -->", records)
    assert "hold no row a-lite0-fine" in other


def test_a_line_for_each_head_says_which_class_it_knows_least():
    records = card_records()
    row = records["01_data_and_training"]["metrics"]["rows"][0]
    row |= {"id": "b-lite0-frozen", "title": "Net, frozen", "weights": "ImageNet", "macro_recall": 0.8}
    row["per_class"].append({"class": "cap", "precision": 0.5, "recall": 0.25, "f1": 0.3, "support": 4})
    lines = cells(results_tables.TABLES["card_heads"](records))
    line = next(line for line in lines if line[0] == "`b-lite0-frozen`")
    assert line[3:] == ["93.0 % (90.0–95.0), 372", "88.0–97.0 over 12 people", "80.0 %", "cap: 25 % of 4", "ImageNet"]
    assert next(line for line in lines if line[0] == "`a-lite0-frozen`")[3:5] == ["not run [2]", "–"]


def test_every_shipped_folder_stands_in_the_model_cards():
    page, known = (ROOT / "models" / "README.md").read_text(), study.rows("full")
    folders = [folder for folder in (ROOT / "models").iterdir() if folder.is_dir()]
    rows = {re.sub(r"-[0-9a-f]{8}(-\d+fold)?$", "", folder.name): folder for folder in folders}
    for row, folder in rows.items():
        if row in known and known[row].run.mode == "frozen" and (folder / "weights.npz").exists():
            assert row in results_cards.HEADS
        else:
            assert f"`{row}-*/`" in page
    assert set(results_cards.HEADS) <= set(rows)


def test_quick_baselines_are_named_in_a_full_run():
    records = card_records()
    records["01_data_and_training"]["parameters"] = {"BASELINES": "quick"}
    assert "baseline CNNs alone" in results.fill("<!-- table:study_b --><!-- /table:study_b -->", records)


def test_the_summary_is_for_a_terminal(folder, tmp_path):
    text = results.text_summary(folder)
    assert "MobileNetV2, frozen                75.0 % (30.1–95.4), n = 4, published 85.48 %" in text
    assert "not run: no time for it" in text
    assert "8.93 MB" in text
    assert "run the notebooks first" in results.text_summary(tmp_path / "nothing")
