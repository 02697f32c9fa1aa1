"""Every command that a page of this repository tells somebody to type is run by a test or by CI; here it says where."""

import gzip
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from study import recipes as study
from utils.datasets import sketches

COMMAND = re.compile(r"(?:make|python|uv|pip|git|cd) ")
# command -> (the file that runs it, what stands there); hours of work run on drawn garments, or as a slice
RUN_BY = {
    "make run": (".ci/run", "\nmake run DATA=sketches\n"),
    "make test": (".ci/run", "\nmake test\n"),
    "make full": (".ci/run", "\nmake full DATA=sketches NOTEBOOKS=2\n"),
    "python -m study.notebooks --profile full --baselines finished": (
        ".ci/run", "\n.venv/bin/python -m study.notebooks --profile full --baselines finished --data sketches 1\n"
    ),
    "python -m pytest -m oracle": (".ci/run", "\nmake test\n"),
    "python -m utils.classify PHOTO.jpg": (__file__, "def test_classify"),
    "python -m study ROW": (__file__, "def test_study_finds"),
    "python -m utils.datasets clothing-10": (__file__, "def test_fetch"),
    "python -m utils.datasets clothing-10 ARCHIVE": (
        "tests/datasets/test_published.py", "def test_the_command_takes_an_archive"
    ),
    "python -m utils.datasets.published DIR": ("tests/datasets/test_published.py", "published.write_manifests("),
    "cd data/clothing-dataset-small && gzip -dc ../../utils/datasets/manifests/clothing-dataset-small.sha256.gz"
    " | sha256sum -c --quiet": (__file__, "def test_manifest"),
}  # fmt: skip
# What README's tables name only while a row has not been measured: (the test that runs it, what stands there).
UNTIL_MEASURED = {"python -m study.deployment": ("tests/study/test_study_files.py", "study_files.main(")}


def commands():
    """What README pages show as something to type: lines of blocks without a language, and words between backticks."""
    found = set()
    for page in (ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))):
        text = page.read_text()
        found |= {line for block in re.findall(r"```\n(.*?)```", text, flags=re.S) for line in block.splitlines()}
        found |= set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))
    found = {" ".join(one.split()) for one in found if COMMAND.match(one)}
    return {re.sub(rf"(?<=study )({'|'.join(study.rows('full'))})$", "ROW", one) for one in found}


def test_every_command_of_a_page_is_run_somewhere():
    told = commands()
    assert told - set(RUN_BY) - set(UNTIL_MEASURED) == set(), "name what runs these"
    assert set(RUN_BY) - told == set(), "no page tells these any more"
    for command, (name, text) in (RUN_BY | UNTIL_MEASURED).items():
        assert text in (ROOT / name).read_text(), f"{name} no longer runs {command}"


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_classify_answers_with_the_model_that_ships(tmp_path):
    photo = tmp_path / "photo.jpg"
    sketches.draw("hat", "style-001", 96).save(photo)
    answer = run("-m", "utils.classify", str(photo))
    assert photo.name in answer
    assert re.search(r"(dress|hat|longsleeve|outwear|pants|shirt|shoes|shorts|skirt|t-shirt)\D+\d", answer)


def test_study_trains_a_row_on_drawings_and_finds_it_again(tmp_path):
    command = ("-m", "study", "--profile", "quick", "--data", "sketches", "a-baseline")
    first = run(*command, CLOTHING_RUNS_DIR=str(tmp_path))
    assert "Epoch 10/10" in first
    again = run(*command, CLOTHING_RUNS_DIR=str(tmp_path))
    assert "Epoch" not in again
    assert again.splitlines()[-1] == first.splitlines()[-1]


@pytest.mark.photos
def test_study_finds_the_run_that_ships(photos_dir):
    assert "a-lite0-fine: a-lite0-fine-" in run("-m", "study", "a-lite0-fine")


def test_drawings_go_into_no_record(capsys):
    with pytest.raises(SystemExit):
        study.main(["--data", "sketches", "--splits", "a-baseline"])
    assert "--data sketches does not go with --splits: records are of photos" in capsys.readouterr().err


@pytest.mark.photos
def test_fetch_takes_what_is_there(photos_dir):
    assert "clothing-dataset-small" in run("-m", "utils.datasets", "clothing-10")


@pytest.mark.photos
def test_manifest_is_in_the_format_that_sha256sum_checks(photos_dir):
    manifest = ROOT / "utils" / "datasets" / "manifests" / "clothing-dataset-small.sha256.gz"
    sums = gzip.decompress(manifest.read_bytes())
    folder = photos_dir / "clothing-dataset-small"
    done = subprocess.run(["sha256sum", "-c", "--quiet"], input=sums, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()[-500:]
