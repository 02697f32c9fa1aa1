"""The runner: parameters, progress, what it keeps when a notebook fails, and what it refuses to commit."""

import nbformat
import pytest

from study import notebooks as run_notebooks


def notebook_of(*sources, tags=()):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell in cells[:1]:
        cell.metadata["tags"] = list(tags)
    return nbformat.v4.new_notebook(cells=cells)


def saved(tmp_path, notebook, name="01_x.ipynb"):
    path = tmp_path / name
    nbformat.write(notebook, path)
    return path


def test_parameters_reach_the_notebook(tmp_path):
    path = saved(tmp_path, notebook_of('PROFILE = "quick"\nDATA = "auto"', "print(PROFILE, DATA)", tags=["parameters"]))
    notebook = run_notebooks.read_with_parameters(path, {"PROFILE": "full"})
    run_notebooks.execute(notebook, "01_x", "1/1", tmp_path)
    assert notebook.cells[-1].outputs[0].text == "full auto\n"


@pytest.mark.parametrize(
    ("source", "tags", "message"),
    [('PROFILE = "quick"', [], "no cell tagged"), ("SEED = 0", ["parameters"], "assigns no PROFILE")],
)
def test_a_notebook_without_the_parameter_is_refused(tmp_path, source, tags, message):
    path = saved(tmp_path, notebook_of(source, tags=tags))
    with pytest.raises(ValueError, match=message):
        run_notebooks.read_with_parameters(path, {"PROFILE": "full"})


def test_a_failing_notebook_is_kept_and_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    source = notebook_of('PROFILE = "quick"\nDATA = "auto"', "1 / 0", "print('never')", tags=["parameters"])
    saved(tmp_path / "notebooks", source, "01_data_and_training.ipynb")
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    for name in ("CLOTHING_RESULTS_DIR", "CLOTHING_IMAGES_DIR", "CLOTHING_MODELS_DIR", "PYTHONPATH"):
        monkeypatch.setenv(name, "")  # restored afterwards: the runner sets them for its kernels
    assert run_notebooks.main(["1"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    kept = nbformat.read(tmp_path / "build" / "01_data_and_training.failed.ipynb", as_version=4)
    assert kept.cells[0].execution_count == 1
    assert not (tmp_path / "build" / "01_data_and_training.ipynb").exists()


def test_a_page_with_faults_is_not_committed():
    notebook = notebook_of("1", "2")
    notebook.cells[0].execution_count, notebook.cells[1].execution_count = 1, 3
    text = nbformat.writes(notebook) + str(run_notebooks.ROOT) + "x" * run_notebooks.MAX_BYTES
    found = " ".join(run_notebooks.faults(notebook, text))
    assert "1..n" in found and "path of this machine" in found and "MB" in found
    notebook.cells[1].execution_count = 2
    assert run_notebooks.faults(notebook, nbformat.writes(notebook)) == []
