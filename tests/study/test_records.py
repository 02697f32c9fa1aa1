"""The ledger: written whole or not at all, read back, damaged files refused by name; lines that replace themselves."""

import json
import pathlib
import sys
import types

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from study import recipes, records

NAME = "01_data_and_training"


@pytest.fixture
def folder(tmp_path):
    records.write(NAME, {"SEED": 0}, {"rows": [{"accuracy": 0.75}]}, "clothing-10", tmp_path)
    return tmp_path


def test_what_is_written_is_read_back_as_plain_json(folder):
    record = records.read(NAME, folder)
    assert record["environment"]["python"] == sys.version.split()[0]
    assert (record["data"], record["parameters"]) == ("clothing-10", {"SEED": 0})
    assert record["metrics"]["rows"][0]["accuracy"] == 0.75 and record["created"].endswith("+00:00")
    metrics = {"a": np.float32(0.5), "b": np.arange(2), "c": float("nan"), "d": (pathlib.Path("x/y"), pd.NA), 5: {"s"}}
    records.write(NAME, {}, metrics, "sketches", folder)
    assert records.read(NAME, folder)["metrics"] == {
        "a": 0.5, "b": [0, 1], "c": None, "d": ["x/y", None], "5": ["s"],
    }  # fmt: skip


def test_what_cannot_be_written_leaves_the_old_file(folder):
    before = (folder / f"{NAME}.json").read_bytes()
    with pytest.raises(ValueError, match=r"metrics.a\[1\] is infinite"):
        records.write(NAME, {}, {"a": [1, float("inf")]}, "x", folder)
    assert (folder / f"{NAME}.json").read_bytes() == before and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema_version": 99}, "expected 01_data_and_training in schema version 1"),
        ({"metrics": []}, r"lacks the field metrics \(dict\)"),
        (b"{", "JSON"), (b"null", "expected a record"), (None, "which is missing; restore it"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_records_are_refused_by_name(folder, content, message):
    path = folder / f"{NAME}.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content).encode()
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        records.read(NAME, folder)
    assert str(path) in str(caught.value)


def test_whatever_a_reader_runs_writes_under_build(monkeypatch):
    monkeypatch.delenv("CLOTHING_OUTPUT_DIR", raising=False)
    assert records.output_dir("results") == ROOT / "build" / "results" and records.RESULTS == ROOT / "results"
    monkeypatch.setenv("CLOTHING_OUTPUT_DIR", str(ROOT))
    assert records.output_dir("models") == ROOT / "models"


def fake_run(seed, wrong, run_id="r", best=0.9):
    """A run whose predictions miss `wrong` of four photos."""
    return types.SimpleNamespace(
        config=types.SimpleNamespace(seed=seed, to_dict=lambda: {"epochs": 3}), run_id=f"{run_id}-{seed}", best_epoch=1,
        recorded=False, duration_s=60.0, environment={"cpu": "any"},
        history=pd.DataFrame({"epoch": [1], "val_accuracy": [best]}),
        predict=lambda frame: np.eye(2)[[int(i < wrong) for i in range(4)]],
    )  # fmt: skip


def photos(split="official", name="clothing-10"):
    frame = pd.DataFrame({"path": list("abcd"), "label": ["no"] * 4, "split": "test", "sender": list("ssuu")})
    parts = {"test": frame, "train": frame.head(1).assign(split="train", sender="s")}
    parts["validation"] = frame.assign(split="validation")
    return types.SimpleNamespace(name=name, split=split, classes=("no", "yes"), part=parts.get)


def test_lines_recorded_again_replace_themselves_in_the_order_of_the_study(tmp_path):
    known = recipes.rows()
    for name, wrong in (("b-lite0-fine", (0, 2)), ("b-lite0-frozen", (3,)), ("b-lite0-fine", (0, 1))):
        runs = [fake_run(seed, misses) for seed, misses in enumerate(wrong)]
        records.record_seeds(known[name], photos(), runs, tmp_path)
    lines = records.read("seeds", tmp_path)["metrics"]["seeds"]
    assert sorted((line["row"], line["seed"], line["accuracy"], line["n"]) for line in lines) == [
        ("b-lite0-fine", 0, 1, 4), ("b-lite0-fine", 1, 0.75, 4), ("b-lite0-frozen", 0, 0.25, 4)
    ]  # fmt: skip
    for name, split, wrong in (
        ("a-lite0-fine", "grouped", 0), ("a-lite0-fine", "random", 1), ("a-lite0-fine", "grouped", 2),
        ("a-baseline", "random", 3),
    ):  # fmt: skip
        records.record_split(known[name], photos(split, "clothing-17"), fake_run(0, wrong), tmp_path)
    lines = records.read("splits", tmp_path)["metrics"]["splits"]
    assert [(line["row"], line["split"], line["accuracy"], line["from_known_senders"]) for line in lines] == [
        ("a-baseline", "random", 0.25, 2), ("a-lite0-fine", "grouped", 0.5, 2), ("a-lite0-fine", "random", 0.75, 2)
    ]  # fmt: skip


def test_a_trial_that_is_not_here_keeps_its_line(tmp_path):
    both = {"b-lite0-fine": (photos(), fake_run(0, 0)), "a-baseline": (photos(name="clothing-17"), fake_run(0, 0))}
    records.record_trials(both, tmp_path)
    records.record_trials({"b-lite0-fine": (photos(), fake_run(0, 0, best=0.7))}, tmp_path)
    lines = records.read("trials", tmp_path)["metrics"]["trials"]
    assert {line["recipe"]: line["validation_accuracy"] for line in lines} == {"a-baseline": 0.9, "b-lite0-fine": 0.7}
    assert {line["validation_macro_recall"] for line in lines} == {1.0}  # of the one class that the photos have


@pytest.mark.parametrize("chosen", ["b-lite0-fine", "a-b0-fine", "a-baseline", "a-weighted"])
def test_the_chosen_recipe_is_the_best_of_its_network_on_validation(chosen):
    lines = records.read("trials")["metrics"]["trials"]

    def task(line):
        return line["photos"], line["config"]["model"], line["config"].get("class_weights")

    (row,) = [line for line in lines if line["recipe"] == chosen]
    lines = [line for line in lines if task(line) == task(row)]
    assert max(lines, key=lambda line: line["validation_accuracy"])["recipe"] == chosen
    assert all(line["low"] < line["validation_accuracy"] < line["high"] for line in lines)
