"""RunConfig: ids that hold, and choices that do not go together."""

import dataclasses
import json
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from utils.training import RunConfig

FROZEN = RunConfig(name="B frozen!", model="mobilenet_v2", mode="frozen", epochs=50)


def test_the_id_is_a_slug_and_a_hash_that_never_change():
    # Golden: a change here makes every finished run of every user unfindable.
    assert FROZEN.run_id == "b-frozen-fe2b4d48"
    assert FROZEN.run_id_for("0123456789ab") == "b-frozen-39311ad0"


def test_fields_at_their_default_do_not_enter_the_id_so_that_a_field_added_later_keeps_old_ids():
    assert dataclasses.replace(FROZEN, views=0, seed=0, allow_leaks=()).run_id == FROZEN.run_id
    assert set(FROZEN.to_dict()) == {"name", "model", "mode", "epochs"}
    later = dataclasses.make_dataclass("Later", [("new", int, 3)], bases=(RunConfig,), frozen=True)
    assert later(**FROZEN.to_dict()).run_id == FROZEN.run_id
    assert later(**FROZEN.to_dict(), new=4).run_id != FROZEN.run_id


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "epochs": st.integers(1, 300),
            "learning_rate": st.floats(1e-6, 1.0),
            "seed": st.integers(0, 99),
            "dropout": st.floats(0, 0.9),
            "class_weights": st.booleans(),
            "batch_size": st.integers(1, 64),
            "allow_leaks": st.sampled_from([(), ("sender",), ("sender", "file")]),
        },
    )
)
def test_equal_choices_equal_ids_and_a_round_trip_through_json(choices):
    run = dataclasses.replace(FROZEN, **choices)
    again = RunConfig.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run
    assert again.run_id == run.run_id
    assert (run.run_id == FROZEN.run_id) == (run == FROZEN)
    assert hash(run) == hash(again)


def test_order_and_kind_of_a_collection_do_not_enter_the_id():
    a = dataclasses.replace(FROZEN, allow_leaks=("sender", "file"))
    assert a.run_id == dataclasses.replace(FROZEN, allow_leaks={"file", "sender"}).run_id
    assert dataclasses.replace(FROZEN, allow_leaks="sender").allow_leaks == ("sender",)
    assert dataclasses.replace(FROZEN, allow_leaks=None) == FROZEN
    assert dataclasses.replace(FROZEN, learning_rate=1).run_id == dataclasses.replace(FROZEN, learning_rate=1.0).run_id


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"name": None}, "name must be a text, got None"),
        ({"mode": "thaw"}, "mode must be one of 'scratch', 'frozen', 'fine_tune', got 'thaw'"),
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"epochs": 2.5}, "epochs must be a positive integer, got 2.5"),
        ({"seed": -1}, "seed must be an integer from 0 up, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number from 0 up, got nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a number from 0 up, got 'fast'"),
        ({"clip_norm": 0.0}, "clip_norm must be a number above 0, or None, got 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"augment": "wild"}, "augment must be one of None, 'light', .*, got 'wild'"),
        ({"model": "baseline_cnn"}, "mode is 'frozen', but .* use mode='scratch'"),
        ({"views": 2}, "views is 2, but augment is None"),
        ({"augment": "light"}, "augment is 'light', but .*views"),
        ({"mode": "fine_tune", "views": 2}, "views is 2, but .*mode='frozen'"),
        ({"weight_decay": 0.1}, "weight_decay is 0.1, but .*adamw"),
        ({"warmup_epochs": 50}, "warmup_epochs is 50, but epochs is 50"),
        ({"monitor": "none", "patience": 3}, "patience is 3, but monitor"),
        ({"monitor": "test_accuracy"}, "monitor must be one of 'val_accuracy'"),
        ({"allow_leaks": ("everything",)}, "allow_leaks must be of 'sender' and 'file'"),
    ],
)
def test_a_choice_that_cannot_be_is_one_sentence_that_names_it(choices, says):
    with pytest.raises(ValueError, match=rf"^RunConfig\.{says}[^\n]*$"):
        dataclasses.replace(FROZEN, **choices)


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/run.json")), ids=lambda path: path.parent.name)
def test_every_run_that_ships_has_the_id_of_its_choices(path):
    state = json.loads(path.read_text())
    config = RunConfig.from_dict(state["config"])
    assert config.to_dict() == state["config"]
    assert config.run_id_for(state["fingerprint"]) == state["run_id"] == path.parent.name


def test_an_old_or_foreign_file_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\].*missing fields \['epochs'\]"):
        RunConfig.from_dict({"name": "a", "model": "m", "mode": "scratch", "colour": 1})


@pytest.mark.parametrize(
    ("module", "ask"), [("training.config", ""), ("training.__main__", ".parse"), ("datasets.__main__", ".main")]
)
def test_writing_down_a_run_or_asking_for_help_imports_nothing_heavy(module, ask):
    program = f"""
import sys, utils.{module}
try: {f"utils.{module}{ask}(['--help'])" if ask else "pass"}
except SystemExit: pass
print(sorted({{"tensorflow", "keras", "pandas", "matplotlib", "sklearn", "PIL"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and ("usage: python -m utils." in done.stdout) == bool(ask)
