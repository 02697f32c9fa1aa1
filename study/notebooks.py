"""Run the notebooks in order, headless; render the committed ones.

Executed copies and their pages go to ``build/``. A rendering executes the committed source as it stands, injects
nothing, and is the only run that writes tracked files.
"""

import base64
import io
import os
import pathlib
import sys
import time

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from study import records
from utils import files

MAX_BYTES = 1_000_000


def chosen(wanted):
    """Names of the notebooks that `wanted` (names or numbers; none: all) means."""
    for word in wanted:
        if not any(word in (name, name[1]) for name in records.NOTEBOOKS):
            raise ValueError(f"expected 1, 2, 3 or one of {', '.join(records.NOTEBOOKS)}, got {word!r}")
    return [name for name in records.NOTEBOOKS if not wanted or name in wanted or name[1] in wanted]


def tidy(notebook):
    """Strip what GitHub refuses or nobody wants to read: widget state, timings, stderr, papermill's notes."""
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    for cell in notebook.cells:
        for key in ("execution", "papermill"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
            for output in cell.outputs:
                shown = output.get("data", {})
                shown.pop("application/vnd.jupyter.widget-view+json", None)
                if "image/png" in shown:
                    shown["image/png"] = smaller_png(shown["image/png"])
    return notebook


def smaller_png(text):
    """A figure's PNG (base64) with a palette, where that is smaller: a notebook on GitHub has to stay under 1 MB."""
    data = base64.b64decode(text)
    picture = Image.open(io.BytesIO(data)).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, format="PNG", optimize=True)
    return text if small.tell() >= len(data) else base64.b64encode(small.getvalue()).decode()


def faults(notebook, text):
    """What must not be committed: errors, injected cells, gaps in the counts, paths of this machine, over 1 MB."""
    code, found = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()], []
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1..n")
    for number, cell in enumerate(code, 1):
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(f"cell {number} ends in an error")
        if "injected-parameters" in cell.metadata.get("tags", []):
            found.append(f"cell {number} was injected")
    home, data = str(pathlib.Path.home()) + os.sep, os.environ.get("CLOTHING_DATA_DIR")
    if any(place in text for place in (str(files.PROJECT), home, data) if place):
        found.append("it contains a path of this machine")
    if len(text.encode()) > MAX_BYTES:
        found.append(f"it has {len(text.encode()) / 1e6:.2f} MB; at most {MAX_BYTES / 1e6:.0f} MB are shown on GitHub")
    return found


def run(names, parameters, render=False):
    """Execute notebooks; the first that fails ends the run. Returns the exit code.

    `parameters` (name -> literal) take the place of those in the parameters cell. `render` replaces the committed
    notebooks, records, figures and int8 files; it takes no parameters.
    """
    root, build = files.PROJECT, files.PROJECT / "build"
    build.mkdir(exist_ok=True)
    os.environ["CLOTHING_OUTPUT_DIR"] = str(root if render else build)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    for name in names:
        source, copy, started = root / "notebooks" / f"{name}.ipynb", build / f"{name}.ipynb", time.perf_counter()
        print(f"{name} ...", flush=True)
        try:
            notebook = papermill.execute_notebook(
                str(source), str(copy), parameters, kernel_name="python3", language="python", cwd=str(source.parent)
            )
        except PapermillExecutionError as error:
            print(f"{error}\n{name} stopped; everything up to there is in build/{copy.name}", file=sys.stderr)
            return 1
        notebook = tidy(notebook)
        text = nbformat.writes(notebook)
        files.write_text(copy, text)
        files.write_text(copy.with_suffix(".html"), HTMLExporter(template_name="lab").from_notebook_node(notebook)[0])
        print(f"{name}: {(time.perf_counter() - started) / 60:.1f} minutes, build/{name}.html", flush=True)
        if render:
            if wrong := faults(notebook, text):
                print(f"{name} is not replaced: {'; '.join(wrong)}", file=sys.stderr)
                return 1
            files.write_text(source, text + "\n")
    return 0
