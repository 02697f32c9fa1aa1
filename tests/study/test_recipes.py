"""The study's rows, and the tables of notebook 1 that are made from them, without training anything."""

import dataclasses
import types

import pandas as pd
import pytest

from study import folds, recipes, rows


@pytest.mark.parametrize("stand_in", [False, True])
def test_rows_are_named_by_their_runs(stand_in):
    listed = recipes.rows(stand_in)
    assert all(row.id == name == row.run.name for name, row in listed.items())
    assert len({row.run.run_id for row in listed.values()}) == len(listed)
    assert all((row.dataset == "sketches") == stand_in for row in listed.values())


def test_ids_of_the_runs_that_ship_stay_as_they_are():
    known = recipes.rows()
    assert known["b-lite0-fine"].run.run_id == "b-lite0-fine-a998c294"
    assert recipes.trials()["a-baseline-1e-4"].run.run_id == "a-baseline-27ea73cb"
    assert recipes.trials()["a-weighted-1e-3"].run.run_id == "a-weighted-21cbf7ba"
    row = known["a-baseline"]
    other = recipes.at_random(row)
    assert other.split == "random" and other.run.allow_leaks == ("file", "sender")
    assert dataclasses.replace(other.run, allow_leaks=()) == row.run


def test_folds_are_named_by_recipe_data_and_number():
    recipe = recipes.folds()["b-lite0-folds"].run
    names = {folds.cv_id(recipe, data, k, seed) for data in "ab" for k in (3, 5) for seed in (0, 1)}
    assert len(names) == 8 and folds.recipe_of(recipe).monitor == "none"


def test_a_long_run_that_is_not_here_names_the_command_that_trains_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOTHING_RUNS_DIR", str(tmp_path))
    trained = []
    monkeypatch.setattr(rows.training, "train", lambda *args, **kwargs: trained.append(kwargs) or "a run")
    dataset = types.SimpleNamespace(fingerprint="unknown", stand_in=False)
    known = recipes.rows()
    with pytest.raises(LookupError, match="python -m study train b-lite0-fine trains it"):
        rows.finished(known["b-lite0-fine"], dataset)
    assert rows.finished(known["b-lite0-frozen"], dataset) == "a run"  # a head trains in a minute
    assert rows.finished(known["b-lite0-fine"], dataset, retrain=True) == "a run"
    assert trained[-1]["shipped"] is False


def test_the_best_is_chosen_on_validation():
    def run(accuracies, best_epoch):
        history = pd.DataFrame({"epoch": [1, 2], "val_accuracy": accuracies})
        return types.SimpleNamespace(history=history, best_epoch=best_epoch)

    assert rows.best_by_validation({"a": run([0.5, 0.9], 2), "b": run([0.95, 0.7], 1)}) == "b"


def test_points_and_bars_of_the_cost_figure_are_for_new_photographers():
    judged = {"accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95, "sender_low": 0.5, "sender_high": 0.97}
    folds = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.75}
    common = {"title": "A, b", "classes": ["x", "y"], "macs": 5}
    closing = [{"id": "b-lite0-fine", **common, **judged, "grouped": folds}, {"id": "a-baseline", **common, **judged},
               {"id": "a-b0-fine", **common, **judged}]  # fmt: skip
    points = rows.cost_points(closing)
    assert points["accuracy"].tolist() == [0.7, 0.9]
    assert points["accuracy_low"].tolist() == [0.6, 0.5], "one kind of bar: over photographers"
    assert points["trained"].tolist() == ["fine-tuned", "from scratch"]
