"""Every model as a file: converted, judged and timed beside the others, on the record beside what was known."""

import json
import types

import numpy as np
import pytest
import tiny_training

from study import deployment
from utils import training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(coloured squares, row -> Run of a model of theirs)."""
    photos = tiny_training.squares(tmp_path_factory.mktemp("squares"))
    photos = types.SimpleNamespace(
        frame=photos.frame, classes=photos.classes, part=photos.part, fingerprint=photos.fingerprint, name="squares",
        split="official",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        tiny_training.add_backbone(patch.setitem, patch.setattr)
        configs = [tiny_training.config("frozen", epochs=2, seed=seed) for seed in (0, 1)]
        runs = [training.train(one, photos, folder=tmp_path_factory.mktemp("runs"), verbose=0) for one in configs]
        yield photos, dict(zip(("b-mobilenet-fine", "b-lite0-fine"), runs, strict=True))


@pytest.fixture(scope="module")
def converted(trained):
    """(row -> files, lines of the record)."""
    photos, runs = trained
    rows = [types.SimpleNamespace(id=name, title=name.title()) for name in runs]
    pairs = [deployment.convert_and_judge(row, runs[row.id], photos, photos=6) for row in rows]
    return {row.id: made for row, (made, _) in zip(rows, pairs, strict=True)}, [line for _, line in pairs]


def test_files_are_judged_on_the_test_part_and_timed_against_their_own_float_file(converted):
    made, lines = converted
    for line in lines:
        float32, _, int8 = (line["schemes"][scheme] for scheme in deployment.SCHEMES)
        assert line["n"] == 12 and line["classes"] == 3
        assert float32["agreement"] == 1 and 0 <= int8["agreement"] <= 1
        assert float32["accuracy_low"] <= float32["accuracy"] <= float32["accuracy_high"]
        assert float32["macs"] == int8["macs"] > 0
        assert float32["size_bytes"] == len(made[line["row"]]["float32"])
    photo = {name: np.full((1, tiny_training.SIZE, tiny_training.SIZE, 3), 90, np.uint8) for name in made}
    times, sentence = deployment.time_files(made, photo, rounds=5, sittings=2)
    assert [(time["row"], time["scheme"]) for time in times] == [(n, s) for n in made for s in deployment.SCHEMES]
    for time in times:
        if time["scheme"] == "float32":
            assert time["ratio_low"] == time["ratio_high"] == 1
        assert 0 < time["ratio_low"] <= time["ratio"] <= time["ratio_high"] and time["median_ms"] > 0
    assert "2 sittings" in sentence and "5 interleaved rounds" in sentence and "interval" not in sentence


def test_new_lines_replace_those_of_the_same_row_and_processor():
    def time(row, cpu, ms):
        return {"row": row, "scheme": "int8", "cpu": cpu, "median_ms": ms}

    known = {
        "models": [{"row": "a-lite0-fine", "n": 1}, {"row": "b-lite0-fine", "n": 2}],
        "times": [time("a-lite0-fine", "new", 1), time("b-lite0-fine", "old", 2), time("b-lite0-fine", "new", 3)],
        "machines": {"old": "before"}, "one_sitting": [time("b-lite0-fine", "older", 7)],
    }  # fmt: skip
    fresh = [{"row": "b-lite0-fine", "scheme": "int8", "median_ms": 4}]
    merged = deployment.merge(known, [{"row": "b-lite0-fine", "n": 5}], fresh, "now", "new")
    assert merged["models"] == [{"row": "b-lite0-fine", "n": 5}, {"row": "a-lite0-fine", "n": 1}]  # the study's order
    assert [(t["row"], t["cpu"], t["median_ms"]) for t in merged["times"]] == [
        ("a-lite0-fine", "new", 1), ("b-lite0-fine", "old", 2), ("b-lite0-fine", "new", 4),
    ]  # fmt: skip
    assert merged["machines"] == {"old": "before", "new": "now"} and merged["one_sitting"] == known["one_sitting"]
    timed_again = deployment.merge(merged, [], [time("b-lite0-fine", "new", 6)], "later", "new")
    assert timed_again["models"] == merged["models"], "new times leave what was judged"
    assert [t["median_ms"] for t in timed_again["times"] if t["row"] == "b-lite0-fine"] == [2, 6]


def test_causes_compare_four_ways_on_the_validation_part(trained):
    photos, runs = trained
    row = types.SimpleNamespace(id="b-b0-frozen", title="B0")
    lines = deployment.causes(row, runs["b-lite0-fine"], photos, photos=6)
    ways = [(line["biases_mended"], line["ranges"]) for line in lines]
    assert ways == [(mended, method) for mended in (False, True) for method in ("min-max", "percentile")]
    for line in lines:
        assert line["n"] == len(photos.part("validation"))
        assert line["agreement_low"] <= line["agreement"] <= line["agreement_high"]


def test_what_ships_is_described_with_a_temperature_and_a_threshold(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_OUTPUT_DIR", str(tmp_path))
    photos, runs = trained
    path, judged = deployment.ship(runs["b-lite0-fine"], photos, 6)
    assert path == tmp_path / "models" / "squares-int8.tflite" and list(judged.index) == ["float32", "int8"]
    _, temperature, low = deployment.save(path.read_bytes(), runs["b-lite0-fine"], photos)
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["labels"] == list(tiny_training.CLASSES)
    assert described["source"].startswith(runs["b-lite0-fine"].run_id)
    assert described["temperature"] == pytest.approx(temperature) and 0 < described["low_confidence"] == low < 1
