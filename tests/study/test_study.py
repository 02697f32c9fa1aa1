"""The study's rows and tables, without training anything."""

import dataclasses
import importlib
import types

import numpy as np
import pandas as pd
import pytest

from study import recipes as study
from study import tables as study_tables


@pytest.mark.parametrize("stand_in", [False, True])
@pytest.mark.parametrize("profile", study.PROFILES)
def test_rows_are_named_by_their_runs(profile, stand_in):
    rows = study.rows(profile, stand_in)
    assert all(row.id == name == row.run.name for name, row in rows.items())
    assert len({row.run.run_id for row in rows.values()}) == len(rows)
    assert all((row.dataset == "sketches") == stand_in for row in rows.values())


def test_the_full_baseline_is_the_published_one():
    run = study.rows("full")["a-baseline"].run
    assert (run.input_size, run.mode, run.balance_to) == (224, "scratch", None)


def test_shipped_runs_serve_both_profiles():
    quick, full = study.rows("quick"), study.rows("full")
    for name in ("b-lite0-fine", "a-lite0-fine", "b-mobilenet-frozen"):
        assert quick[name].run == full[name].run


def test_an_unknown_profile_is_named():
    with pytest.raises(ValueError, match="profile 'fast' is unknown"):
        study.rows("fast")


def fake_run(accuracies, best_epoch):
    history = pd.DataFrame({"epoch": range(1, len(accuracies) + 1), "val_accuracy": accuracies})
    return types.SimpleNamespace(history=history, best_epoch=best_epoch)


def test_the_best_is_chosen_on_validation():
    runs = {"a": fake_run([0.5, 0.9], 2), "b": fake_run([0.95, 0.7], 1)}
    assert study_tables.best_by_validation(runs) == "b"


def test_a_row_that_was_not_run_says_why():
    rows = {"b-lite0-fine": study.rows("quick")["b-lite0-fine"]}
    dataset = types.SimpleNamespace(name="clothing-10", split="official", classes=("a", "b"))
    closing = study_tables.result_rows(rows, {}, {}, {"B": dataset})
    assert closing[0]["status"] == "not run" and closing[0]["reason"]
    table = study_tables.closing_table(closing)
    assert table.loc[0, "measured"] == "not run" and table.loc[0, "conditions"] == closing[0]["reason"]


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.rows()["a-baseline"].title = "x"


def test_baselines_can_have_a_profile_of_their_own():
    mixed = study.rows("full", baselines="quick")
    assert mixed["a-baseline"].run == study.rows("quick")["a-baseline"].run
    assert "input 32" in mixed["a-baseline"].note
    assert mixed["b-lite0-fine"].run == study.rows("full")["b-lite0-fine"].run
    finished = study.rows("quick", baselines="finished")
    assert finished["a-weighted"].run == study.rows("full")["a-weighted"].run
    drawn = study.rows("full", stand_in=True, baselines="finished")
    assert drawn["a-baseline"].run == study.rows("quick", stand_in=True)["a-baseline"].run
    with pytest.raises(ValueError, match="baselines is 'slow'"):
        study.rows("full", baselines="slow")


@pytest.mark.parametrize(("photos", "chosen"), [("clothing-10", "b-lite0-fine"), ("clothing-17", "a-baseline")])
def test_the_chosen_recipe_is_the_best_of_the_trials_on_validation(photos, chosen):
    table = study_tables.trials_table(photos)
    assert table.loc[0, "recipe"] == chosen
    assert {chosen} <= set(table["recipe"]) & set(
        study.trials()
    )  # some lines are of recipes that are no longer offered
    assert (table["low"] < table["validation_accuracy"]).all() and (table["validation_accuracy"] < table["high"]).all()


def test_trials_start_with_the_row_of_the_study():
    name, config = next(iter(study.trials().items()))
    assert config == study.rows("full")[name].run


def test_folds_are_named_by_recipe_data_and_number():
    from study import folds as fold_runs

    recipe = study.fold_recipe()
    names = {fold_runs.cv_id(recipe, data, k, seed) for data in "ab" for k in (3, 5) for seed in (0, 1)}
    assert len(names) == 8
    assert fold_runs.recipe_of(recipe).monitor == "none"


def test_a_backbone_is_timed_without_what_cannot_be_had(monkeypatch, capsys):
    def transfer(backbone, classes, side, weights="auto"):
        if weights == "auto":
            raise study_tables.models.WeightsUnavailable("no network")
        return f"{backbone} of random weights"

    def convert_all(model, schemes, photos):
        if schemes == ("int16x8",):
            raise ValueError("the int16x8 model cannot run")
        return dict.fromkeys(schemes, b"")

    monkeypatch.setattr(study_tables.models, "transfer", transfer)
    monkeypatch.setattr(study_tables.quantization, "convert_all", convert_all)
    model, made = study_tables.timing_files("mobilenet_v2", ("a", "b"), 32, None)
    assert model == "mobilenet_v2 of random weights"
    assert list(made) == ["float32", "float16", "dynamic_range", "int8"]
    told = capsys.readouterr().out
    assert "MobileNetV2 is timed with random weights: no network" in told
    assert "MobileNetV2, int16x8: the int16x8 model cannot run" in told


def test_what_ships_is_judged_and_described(monkeypatch, tmp_path):
    import quantization_models
    import tiny_training

    classes = quantization_models.CLASSES
    photos = tiny_training.squares(tmp_path / "photos", per_class=(8, 6, 6)).frame
    labels = dict(zip(tiny_training.CLASSES, classes, strict=False))
    photos = photos.assign(label=photos["label"].map(labels))
    photos.loc[photos.index[::4], "label"] = classes[3]
    dataset = types.SimpleNamespace(
        name="tiny", frame=photos, classes=classes, part=lambda name: photos[photos["split"] == name].reset_index()
    )
    run = types.SimpleNamespace(
        run_id="tiny-1", weights_source="drawn", model=quantization_models.network,
        config=types.SimpleNamespace(input_size=quantization_models.SIZE),
    )  # fmt: skip
    monkeypatch.setenv("CLOTHING_MODELS_DIR", str(tmp_path / "models"))
    path, judged = study_tables.ship(run, dataset, calibration_photos=8)
    assert path == tmp_path / "models" / "tiny-int8.tflite" and path.exists()
    assert list(judged.index) == ["float32", "int8"]
    described = study_tables.files.read_json(path.with_suffix(".json"))
    assert described["labels"] == list(classes) and described["source"] == "tiny-1: drawn"
    assert 0 < described["low_confidence"] < 1 and len(described["sha256"]) == 64


def seeded(seed, wrong):
    """A run whose predictions miss `wrong` of four photos."""
    config = types.SimpleNamespace(seed=seed)
    probabilities = np.eye(2)[[int(i < wrong) for i in range(4)]]
    history = pd.DataFrame({"epoch": [1], "val_accuracy": [0.9]})
    return types.SimpleNamespace(
        config=config, run_id=f"r-{seed}", history=history, best_epoch=1, predict=lambda frame: probabilities
    )


def test_seeds_are_recorded_row_by_row_and_recorded_again_replace_themselves(tmp_path, monkeypatch):
    frame = pd.DataFrame({"path": list("abcd"), "label": ["no"] * 4, "split": "test", "sender": list("ssuu")})
    data = types.SimpleNamespace(name="clothing-10", split="official", classes=("no", "yes"), part=lambda name: frame)
    rows = study.rows("full")
    study_tables.record_seeds(rows["b-lite0-fine"], data, [seeded(0, 0), seeded(1, 2)], tmp_path / "results")
    study_tables.record_seeds(rows["b-lite0-frozen"], data, [seeded(0, 3)], tmp_path / "results")
    study_tables.record_seeds(rows["b-lite0-fine"], data, [seeded(0, 0), seeded(1, 1)], tmp_path / "results")
    monkeypatch.setattr(study_tables, "PROJECT", tmp_path)
    table = study_tables.seeds_table().set_index("title")
    assert len(table) == 2 and table["seeds"].to_dict() == {
        "EfficientNet-Lite0, frozen": 1,
        "EfficientNet-Lite0, fine-tuned": 2,
    }
    fine = table.loc["EfficientNet-Lite0, fine-tuned"]
    assert (fine.accuracy, fine.lowest, fine.highest, fine.n) == (0.875, 0.75, 1.0, 4)
    assert fine.standard_deviation == pytest.approx(0.25 / 2**0.5)


def test_both_kinds_of_split_are_recorded_and_recorded_again_replace_themselves(tmp_path, monkeypatch):
    parts = {
        "train": pd.DataFrame({"path": ["t"], "label": ["no"], "split": "train", "sender": ["s"]}),
        "test": pd.DataFrame({"path": list("abcd"), "label": ["no"] * 4, "split": "test", "sender": list("ssuu")}),
    }
    row = study.rows("full")["a-lite0-fine"]
    for split, wrong in (("grouped", 0), ("random", 1), ("grouped", 2)):
        data = types.SimpleNamespace(name="clothing-17", split=split, classes=("no", "yes"), part=parts.get)
        study_tables.record_split(row, data, seeded(0, wrong), tmp_path / "results")
    monkeypatch.setattr(study_tables, "PROJECT", tmp_path)
    table = study_tables.splits_table().set_index("split")
    assert table["accuracy"].to_dict() == {"random": 0.75, "grouped": 0.5}
    assert set(table["from_known_senders"]) == {2} and set(table["n"]) == {4}
    data = types.SimpleNamespace(name="clothing-17", split="random", classes=("no", "yes"), part=parts.get)
    study_tables.record_split(study.rows("full")["a-baseline"], data, seeded(0, 3), tmp_path / "results")
    assert study_tables.splits_table()["title"].iloc[0] == "Baseline CNN"  # the study's order, not that of training


def test_a_row_at_random_is_another_run_of_the_same_recipe():
    row = study.rows("full")["a-baseline"]
    other = study.at_random(row)
    assert other.split == "random" and other.run.allow_leaks == ("file", "sender")
    assert dataclasses.replace(other.run, allow_leaks=()) == row.run


def test_points_of_the_cost_figure_say_how_they_were_judged():
    interval = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95}
    row = {
        "title": "Net",
        "classes": 10,
        "macs": 5,
        "status": "measured",
        "split": "official",
        "model": "mobilenet_v2",
        "input_size": 224,
        "n_senders": 5,
        "sender_low": 0.5,
        "sender_high": 0.95,
        **interval,
    }
    folds = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8, "n": 3}
    unseen = row | {"split": "grouped", "classes": [f"class {number}" for number in range(17)]}
    small = row | {"model": "baseline_cnn", "input_size": 32}
    points = study_tables.cost_points([unseen, row | {"grouped": folds}, small, {"status": "not run"}])
    assert points["judged"].tolist() == ["official test (5 people)", "people never seen", "people never seen"]
    assert points["accuracy"].tolist() == [0.9, 0.7, 0.9]
    assert points["group"].tolist() == ["10 classes"] * 2 + ["17 classes"]
    assert points.loc[2, ["accuracy_low", "accuracy_high"]].tolist() == [0.5, 0.95]  # over senders


def test_a_trial_that_is_not_at_hand_keeps_its_line(tmp_path, monkeypatch):
    known = {name: study.Row(name, name, "B", "clothing-10", None, run) for name, run in study.trials().items()}
    data = {"clothing-10": types.SimpleNamespace(
        name="clothing-10", split="official", fingerprint="0", frame=pd.DataFrame({"split": ["validation"] * 10})
    )}  # fmt: skip
    at_hand = {known["b-lite0-fine"].run.run_id_for("0"): 0.9, known["a-baseline-1e-3"].run.run_id_for("0"): 0.8}

    def find(run_id, folder):
        run = fake_run([at_hand[run_id]], 1) if run_id in at_hand else None
        if run:
            run.run_id, run.duration_s, run.environment = run_id, 60.0, {"cpu": "a processor"}
        return run

    monkeypatch.setattr(study_tables, "find_finished", find)
    study_tables.record_trials(data, known, tmp_path / "results")
    at_hand = {known["b-lite0-fine"].run.run_id_for("0"): 0.7}
    study_tables.record_trials(data, known, tmp_path / "results")
    monkeypatch.setattr(study_tables, "PROJECT", tmp_path)
    table = study_tables.trials_table("clothing-10").set_index("recipe")
    assert table["validation_accuracy"].to_dict() == {"a-baseline-1e-3": 0.8, "b-lite0-fine": 0.7}
    assert "learning rate 0.001" in table.loc["a-baseline-1e-3", "choices"]


def test_the_command_keeps_what_a_finished_run_predicted(monkeypatch, capsys):
    from utils import training

    datasets = importlib.import_module("utils.datasets")

    kept = []
    monkeypatch.setattr(datasets, "load", lambda name, split=None: types.SimpleNamespace(name=name, fingerprint="0"))
    monkeypatch.setattr(training, "load", lambda run_id: run_id)
    monkeypatch.setattr(
        training, "export_record", lambda run, data: kept.append((run, data.name)) or types.SimpleNamespace(name=run)
    )
    assert study.main(["--keep", "a-baseline"]) == 0
    run_id = study.rows("full")["a-baseline"].run.run_id_for("0")
    assert kept == [(run_id, "clothing-17")] and f"a-baseline: {run_id}" in capsys.readouterr().out


def test_folds_of_a_probe_stand_for_heads_on_plain_photos_alone():
    full, dataset = study.rows("full"), types.SimpleNamespace(name="clothing-10", split="official")
    grouped = {("clothing-10", "mobilenet_v2"): types.SimpleNamespace(to_dict=lambda: {"accuracy": 0.8})}
    assert study_tables._folds(full["b-mobilenet-frozen"], dataset, grouped)["grouped"]["accuracy"] == 0.8
    assert "no folds" in study_tables._folds(full["b-mobilenet-published"], dataset, grouped)["grouped_reason"]
