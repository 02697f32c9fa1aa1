"""RunConfig: ids that hold, and choices that do not go together."""

import dataclasses
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from utils.training.config import RunConfig

FROZEN = RunConfig(name="B frozen!", model="mobilenet_v2", mode="frozen", epochs=50)


def test_the_id_is_a_slug_and_a_hash_that_never_change():
    # Golden: a change here makes every finished run of every user unfindable.
    assert FROZEN.run_id == "b-frozen-fe2b4d48"
    assert FROZEN.run_id_for("0123456789ab") == "b-frozen-39311ad0"


def test_fields_at_their_default_do_not_enter_the_id():
    assert dataclasses.replace(FROZEN, mixup=0.0, seed=0, progressive=()).run_id == FROZEN.run_id
    assert set(FROZEN.to_dict()) == {"name", "model", "mode", "epochs"}


def test_a_field_added_later_keeps_old_ids():
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
            "class_weights": st.sampled_from([False, True, "effective"]),
            "mixup": st.floats(0, 2),
            "allow_leaks": st.sampled_from([(), ("sender",), ("sender", "file")]),
        },
    )
)
def test_equal_choices_equal_ids_and_a_round_trip_through_json(choices):
    import json

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
    assert dataclasses.replace(FROZEN, learning_rate=1).run_id == dataclasses.replace(FROZEN, learning_rate=1.0).run_id


@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({"mode": "thaw"}, ["mode", "'thaw'", "fine_tune"]),
        ({"epochs": 0}, ["epochs", "0"]),
        ({"epochs": 2.5}, ["epochs", "2.5", "whole"]),
        ({"learning_rate": float("nan")}, ["learning_rate", "nan"]),
        ({"learning_rate": "fast"}, ["learning_rate", "'fast'"]),
        ({"dropout": 1.0}, ["dropout", "1.0"]),
        ({"batch_size": True}, ["batch_size"]),
        ({"name": " "}, ["name"]),
        ({"augment": "wild"}, ["augment", "'wild'", "light"]),
        ({"model": "baseline_cnn"}, ["mode", "scratch"]),
        ({"cutmix": 1.0}, ["cutmix", "mixup"]),
        ({"views": 2}, ["views", "augment"]),
        ({"augment": "light"}, ["augment", "views"]),
        ({"mode": "fine_tune", "views": 2}, ["views", "frozen"]),
        ({"weight_decay": 0.1}, ["weight_decay", "adamw"]),
        ({"unfreeze_from": "block6a"}, ["unfreeze_from", "fine_tune"]),
        ({"warmup_epochs": 50}, ["warmup_epochs", "50"]),
        ({"monitor": "none", "patience": 3}, ["patience", "monitor"]),
        ({"monitor": "test_accuracy"}, ["monitor", "val_accuracy"]),
        ({"mode": "fine_tune", "progressive": (192, 160, 224)}, ["progressive", "224"]),
        ({"mode": "fine_tune", "progressive": (160, 256)}, ["progressive", "224"]),
        ({"progressive": (160, 224)}, ["progressive", "fine_tune"]),
        ({"allow_leaks": ("everything",)}, ["allow_leaks", "sender"]),
    ],
)
def test_a_choice_that_cannot_be_is_one_sentence_that_names_it(choices, names):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(FROZEN, **choices)
    message = str(caught.value)
    assert all(name in message for name in names), message
    assert "\n" not in message


def test_progressive_sizes_share_the_epochs():
    run = dataclasses.replace(FROZEN, mode="fine_tune", epochs=7, progressive=[160, 192, 224])
    assert [run.input_size_at(epoch) for epoch in range(7)] == [160, 160, 160, 192, 192, 224, 224]
    assert run.progressive == (160, 192, 224)
    smaller = dataclasses.replace(run, progressive=(128, 160))  # trains below the size that it is judged at
    assert [smaller.input_size_at(epoch) for epoch in range(7)] == [128] * 4 + [160] * 3


def test_an_old_or_foreign_file_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown fields \['colour'\].*missing fields \['epochs'\]"):
        RunConfig.from_dict({"name": "a", "model": "m", "mode": "scratch", "colour": 1})


def test_writing_down_a_run_imports_neither_tensorflow_nor_keras():
    code = "import sys, utils.training.config; print({'tensorflow', 'keras', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
