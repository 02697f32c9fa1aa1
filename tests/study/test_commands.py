"""Every command that a page of this repository tells somebody to type is run by a test or by CI; here it says where."""

import gzip
import os
import re
import subprocess
import sys
import types

import pytest
from conftest import ROOT

from study import recipes
from study.__main__ import main
from utils.datasets import sketches

COMMAND = re.compile(r"(?:make|python|pip|git|cd) ")
STUDY = "tests/study/test_commands.py"
# command -> (the file that runs it, what stands there); hours of work run on drawings, or as a slice
RUN_BY = {
    "git clone": (".ci/run", "in a clean clone"),
    "make run": (".ci/run", "\nmake run DATA=sketches\n"),
    "make run DATA=sketches": (".ci/run", "\nmake run DATA=sketches\n"),
    "make test": (".ci/run", "\nmake test\n"),
    "make full": (".ci/run", "\nmake full DATA=sketches NOTEBOOKS=1\n"),
    "make tables": (STUDY, 'main(["tables"])'),
    "make bench": ("Makefile", "benchmarks/bench_*.py"),
    "pip install .": (".ci/run", "pip install"),
    "python -m pytest -m oracle": (".ci/run", "\nmake test\n"),
    "python -m utils.training my_photos --out my_model": (
        "tests/training/test_own_photos.py", "def test_a_folder_becomes_a_model"
    ),
    "python -m utils.classify PHOTO.jpg": (STUDY, "def test_classify"),
    "python -m utils.classify": (STUDY, "def test_classify"),
    "python PATH/TO/utils/classify PHOTO": ("tests/classify/test_classify.py", "def test_from_any_folder"),
    "python -m study --help": (STUDY, "def test_help"),
    "python -m study list": (STUDY, "def test_list"),
    "python -m study train ROW": (STUDY, "def test_study_finds"),
    "python -m study train ROW --cluster ADDRESS": ("tests/study/test_cluster.py", "def test_two_processes"),
    "python -m distributed.cli.dask_scheduler": ("tests/study/test_cluster.py", "distributed.LocalCluster("),
    "python -m distributed.cli.dask_worker tcp://SCHEDULER:8786 --nthreads 1": (
        "tests/study/test_cluster.py", 'cluster.connect("local:2")'
    ),
    "python -m study train b-lite0-fine a-lite0-fine --cluster tcp://SCHEDULER:8786": (
        "tests/study/test_cluster.py", "def test_two_processes"
    ),
    "pip install -r tests/requirements.txt": (".ci/run", "pip install --quiet --disable-pip-version-check -r tests/"),
    "pip install distributed==2026.8.0": (".ci/run", "tests/requirements.txt"),
    "python tests/flops/hub_models.py": ("tests/flops/test_hub.py", "hub_models.line("),
    "python -m study choose": ("tests/study/test_folds.py", "def test_recipes_are_compared"),
    "python -m study elsewhere": ("tests/study/test_elsewhere.py", "elsewhere.measure("),
    "python -m study further": ("tests/study/test_further.py", "further.measure("),
    "python -m study notebooks --render": ("tests/study/test_notebooks.py", "render=True"),
    "python -m utils.datasets clothing-10": (STUDY, "def test_study_finds"),
    "python -m utils.datasets clothing-10 ARCHIVE": (
        "tests/datasets/test_published.py", "def test_the_command_takes_an_archive"
    ),
    "cd data/clothing-dataset-small && gzip -dc ../../utils/datasets/manifests/clothing-dataset-small.sha256.gz"
    " | sha256sum -c --quiet": (STUDY, "def test_manifest"),
}  # fmt: skip


def commands():
    """What pages show as something to type: lines of blocks without a language, and words between backticks."""
    found = set()
    for page in (ROOT / "README.md", *sorted(ROOT.glob("*/*.md"))):
        text = page.read_text()
        found |= {
            line for block in re.findall(r"^```\n(.*?)```", text, flags=re.S | re.M) for line in block.splitlines()
        }
        found |= set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S)))
    found = {" ".join(one.split()) for one in found if COMMAND.match(one)} - {"pip install"}
    return {re.sub(rf"(?<=train )({'|'.join(recipes.rows())})$", "ROW", one) for one in found}


def test_every_command_of_a_page_is_run_somewhere():
    assert commands() - set(RUN_BY) == set(), "name what runs these"
    for command, (name, text) in RUN_BY.items():
        assert text in (ROOT / name).read_text(), f"{name} no longer runs {command}"


def test_help_is_there_without_tensorflow():
    program = """
import sys
from study.__main__ import main
for command in ("", "train", "folds", "seeds", "splits", "keep", "files", "tables", "notebooks"):
    try:
        main([*command.split(), "--help"])
    except SystemExit as ended:
        assert ended.code == 0
print(sorted({"tensorflow", "keras", "pandas", "numpy"} & set(sys.modules)))
"""
    assert run("-c", program).splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "b-lite9"], "unknown row 'b-lite9'; expected one of b-lite0-fine"),
        (["files", "b-lite9"], "unknown row 'b-lite9'"),
        (["seeds", "b-lite0-fine", "--count", "0"], "--count must be at least 1, got 0"),
        (["folds", "--k", "1"], "--k must be at least 2, got 1"),
        (["notebooks", "--render", "--retrain"], "leave out --retrain and --data"),
        (["splits", "--data", "sketches", "a-baseline"], "unrecognized arguments: --data"),
    ],
)
def test_input_is_checked_before_anything_is_done(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_list_names_every_row_and_tables_say_where_a_page_differs(capsys, monkeypatch, tmp_path):
    from study import readme

    assert main(["list"]) == 0
    assert set(recipes.rows()) | set(recipes.trials()) <= set(capsys.readouterr().out.split())
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:costs -->old<!-- /table:costs -->\nafter\n")
    monkeypatch.setattr(readme.update, "__defaults__", (False, [page], None))
    assert main(["tables", "--check"]) == 1
    assert "+| MobileNetV2 | 2.27 |" in capsys.readouterr().out and "old" in page.read_text()
    assert main(["tables"]) == 0 and main(["tables", "--check"]) == 0
    assert page.read_text().startswith("before\n") and page.read_text().endswith("\nafter\n")


def test_rows_that_are_not_finished_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLOTHING_RUNS_DIR", str(tmp_path))
    monkeypatch.setattr("utils.datasets.load", lambda name, split=None: types.SimpleNamespace(fingerprint="0"))
    assert main(["files", "b-lite0-fine"]) == 2
    said = capsys.readouterr()
    assert "b-lite0-fine: left out, it is not trained here" in said.out and "trains one" in said.err


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


@pytest.mark.photos
def test_study_finds_the_run_that_ships_and_fetch_what_is_there(photos_dir, capsys):
    assert main(["train", "a-lite0-fine"]) == 0 and "a-lite0-fine: a-lite0-fine-" in capsys.readouterr().out
    assert "clothing-dataset-small" in run("-m", "utils.datasets", "clothing-10")


@pytest.mark.photos
def test_manifest_is_in_the_format_that_sha256sum_checks(photos_dir):
    sums = gzip.decompress(
        (ROOT / "utils" / "datasets" / "manifests" / "clothing-dataset-small.sha256.gz").read_bytes()
    )
    folder = photos_dir / "clothing-dataset-small"
    done = subprocess.run(["sha256sum", "-c", "--quiet"], input=sums, cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()[-500:]


def test_a_closed_pipe_and_ctrl_c_end_quietly(monkeypatch, capsys):
    done = subprocess.run(
        f"{sys.executable} -u -m study list | true", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("study.__main__.rows", stop)
    assert main(["list"]) == 130
    assert capsys.readouterr().err.startswith("\nStopped. What is finished is kept")
