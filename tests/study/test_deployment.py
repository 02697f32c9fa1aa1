"""Every model as a file: converted, judged and timed beside the others, on the record beside what was known."""

import json
import types

import numpy as np
import pytest
import tiny_training

from study import deployment
from utils import training


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Two trained models of coloured squares as files, with their lines."""
    photos = tiny_training.squares(tmp_path_factory.mktemp("squares"))
    photos = types.SimpleNamespace(
        frame=photos.frame, classes=photos.classes, part=photos.part, fingerprint=photos.fingerprint, name="squares",
        split="official",
    )  # fmt: skip
    made, lines = {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        tiny_training.add_backbone(patch.setitem, patch.setattr)
        for seed, name in enumerate(("b-mobilenet-fine", "b-lite0-fine")):
            config = tiny_training.config("frozen", epochs=2, seed=seed)
            run = training.train(config, photos, folder=tmp_path_factory.mktemp("runs"), verbose=0)
            row = types.SimpleNamespace(id=name, title=name.title())
            made[name], line = deployment.convert_and_judge(row, run, photos, photos=6)
            lines.append(line)
    return made, lines


def test_files_are_judged_on_the_test_part(converted):
    made, lines = converted
    for line in lines:
        float32, _, int8 = (line["schemes"][scheme] for scheme in deployment.SCHEMES)
        assert line["n"] == 12 and line["classes"] == 3
        assert float32["agreement"] == 1 and 0 <= int8["agreement"] <= 1
        assert float32["accuracy_low"] <= float32["accuracy"] <= float32["accuracy_high"]
        assert float32["macs"] == int8["macs"] > 0
        assert float32["size_bytes"] == len(made[line["row"]]["float32"])


def test_each_ratio_refers_to_the_row_s_own_float_file(converted):
    made, _ = converted
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
        "machines": {"old": "before"},
    }
    fresh = [{"row": "b-lite0-fine", "scheme": "int8", "median_ms": 4}]
    merged = deployment.merge(known, [{"row": "b-lite0-fine", "n": 5}], fresh, "now", "new")
    assert merged["models"] == [{"row": "b-lite0-fine", "n": 5}, {"row": "a-lite0-fine", "n": 1}]  # the study's order
    assert [(t["row"], t["cpu"], t["median_ms"]) for t in merged["times"]] == [
        ("a-lite0-fine", "new", 1), ("b-lite0-fine", "old", 2), ("b-lite0-fine", "new", 4),
    ]  # fmt: skip
    assert merged["machines"] == {"old": "before", "new": "now"}


def test_causes_compare_four_ways_on_the_validation_part(tmp_path_factory):
    photos = tiny_training.squares(tmp_path_factory.mktemp("squares"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOTHING_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        tiny_training.add_backbone(patch.setitem, patch.setattr)
        config = tiny_training.config("frozen", epochs=2)
        run = training.train(config, photos, folder=tmp_path_factory.mktemp("runs"), verbose=0)
        row = types.SimpleNamespace(id="b-b0-frozen", title="B0")
        lines = deployment.causes(row, run, photos, photos=6)
    ways = [(line["biases_mended"], line["ranges"]) for line in lines]
    assert ways == [(mended, method) for mended in (False, True) for method in ("min-max", "percentile")]
    for line in lines:
        assert line["n"] == len(photos.part("validation"))
        assert line["agreement_low"] <= line["agreement"] <= line["agreement_high"]


def test_what_ships_is_described_with_a_temperature_and_a_threshold(converted, tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_OUTPUT_DIR", str(tmp_path))
    made, _ = converted
    photos = tiny_training.squares(tmp_path / "photos")
    run = types.SimpleNamespace(
        run_id="tiny-1", weights_source="drawn", config=types.SimpleNamespace(input_size=tiny_training.SIZE)
    )
    path, temperature, low = deployment.save(made["b-lite0-fine"]["int8"], run, photos)
    assert path == tmp_path / "models" / "squares-int8.tflite"
    described = json.loads(path.with_suffix(".json").read_text())
    assert described["labels"] == list(tiny_training.CLASSES) and described["source"] == "tiny-1: drawn"
    assert described["temperature"] == pytest.approx(temperature) and 0 < described["low_confidence"] == low < 1
