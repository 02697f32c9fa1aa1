"""The runner: what it executes, keeps, refuses to commit; and what a run in Jupyter may write."""

import inspect
import subprocess

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

from study import notebooks
from utils import models


def notebook_of(*sources, tags=()):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = list(tags)
    return nbformat.v4.new_notebook(cells=cells)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A project of one notebook; the runner's environment variables are restored afterwards."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(notebooks.files, "PROJECT", tmp_path)
    for name in ("CLOTHING_OUTPUT_DIR", "PYTHONPATH"):
        monkeypatch.setenv(name, "")

    def save(*sources):
        path = tmp_path / "notebooks" / "01_data_and_training.ipynb"
        nbformat.write(notebook_of("RETRAIN = False", *sources, tags=["parameters"]), path)
        return path

    return save


def texts(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output.text for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def test_a_run_leaves_the_committed_notebook_alone_and_a_rendering_injects_nothing(tree, tmp_path):
    path = tree("print(RETRAIN)")
    before, name = path.read_bytes(), "01_data_and_training"
    assert notebooks.run([name], {"RETRAIN": True}) == 0
    assert path.read_bytes() == before and texts(tmp_path / "build" / f"{name}.ipynb") == ["True\n"]
    assert (tmp_path / "build" / f"{name}.html").exists()
    assert notebooks.run([name], {}, render=True) == 0
    assert texts(path) == ["False\n"]
    rendered = nbformat.read(path, as_version=4)
    assert [cell.source for cell in rendered.cells] == ["RETRAIN = False", "print(RETRAIN)"]
    assert [cell.execution_count for cell in rendered.cells] == [1, 2]


def test_a_failing_notebook_is_kept_and_named(tree, tmp_path, capsys):
    path = tree("1 / 0", "print('never')")
    before = path.read_bytes()
    assert notebooks.run(["01_data_and_training"], {}, render=True) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err and path.read_bytes() == before
    assert "ZeroDivisionError" in (tmp_path / "build" / path.name).read_text()


def test_a_page_with_faults_is_not_committed():
    for counts, tags, more, expected in (
        ((1, 3), ["injected-parameters"], str(ROOT) + "x" * notebooks.MAX_BYTES, 4), ((1, 2), [], "", 0)
    ):  # fmt: skip
        notebook = notebook_of("1", "2", tags=tags)
        for cell, count in zip(notebook.cells, counts, strict=True):
            cell.execution_count = count
        found = notebooks.faults(notebook, nbformat.writes(notebook) + more)
        assert len(found) == expected
        for part in ("1..n", "path of this machine", "MB", "injected")[:expected]:
            assert part in " ".join(found)


def test_notebooks_are_chosen_by_number_or_name():
    assert notebooks.chosen([]) == list(notebooks.records.NOTEBOOKS)
    assert notebooks.chosen(["3", "01_data_and_training"]) == ["01_data_and_training", "03_quantization"]
    with pytest.raises(ValueError, match=r"expected 1, 2, 3 .* got '4'"):
        notebooks.chosen(["4"])


def git_status():
    done = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    return pytest.skip("not a git checkout") if done.returncode else done.stdout


def test_a_run_in_jupyter_changes_no_tracked_file(monkeypatch):
    """What notebooks write at their ends, written by a kernel that knows nothing of this project's variables."""
    for name in ("CLOTHING_OUTPUT_DIR", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    first = nbformat.read(ROOT / "notebooks" / "03_quantization.ipynb", as_version=4)
    setup = next(cell.source for cell in first.cells if cell.cell_type == "code")
    notebook = notebook_of(
        setup,
        "import types\nfrom matplotlib.figure import Figure\nfrom study import deployment, records, rows",
        "for name in records.NAMES:\n    records.write(name, {}, {}, 'sketches')",
        "rows.save_figures({'dataset_cover': Figure()})",
        "deployment.deployment_path(types.SimpleNamespace(name='clothing-10'))",
    )
    before = git_status()
    NotebookClient(notebook, resources={"metadata": {"path": str(ROOT / "notebooks")}}, timeout=300).execute()
    assert "build" in notebook.cells[-1].outputs[0].data["text/plain"]
    assert git_status() == before
    assert (ROOT / "build" / "results" / "01_data_and_training.json").exists()


def test_the_source_that_notebook_1_shows_is_todays():
    page = nbformat.read(ROOT / "notebooks" / "01_data_and_training.ipynb", as_version=4)
    (cell,) = [cell for cell in page.cells if "inspect.getsource(models.baseline_cnn)" in cell.source]
    assert cell.outputs[0].data["text/plain"].strip() == inspect.getsource(models.baseline_cnn).strip()
