"""Run the notebooks in order, headless: ``python -m study.notebooks [--profile quick|full]``.

The executed copies and their HTML go to ``build/``; the committed notebooks are replaced only with ``--render``. A
notebook that fails is kept as ``build/NAME.failed.ipynb`` with everything up to the failing cell in it.
"""

import argparse
import base64
import io
import os
import pathlib
import re
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from papermill.utils import find_first_tagged_cell_index
from PIL import Image

from utils import files

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = ("01_data_and_training", "02_receptive_field_and_flops", "03_quantization")
MAX_BYTES = 1_000_000


def read_with_parameters(path, parameters):
    """Read a notebook and put `parameters` into it: papermill's extra cell behind the one tagged `parameters`.

    Args:
        path: the .ipynb file.
        parameters: name -> literal; a name that the parameters cell does not assign is refused.

    Raises:
        ValueError: the notebook has no cell tagged `parameters`, or that cell does not assign a given name.
    """
    notebook = load_notebook_node(str(path))
    index = find_first_tagged_cell_index(notebook, "parameters")
    if index < 0:
        raise ValueError(f"{path.name} has no cell tagged `parameters`; tag the one with the UPPER_CASE literals")
    for name in parameters:
        if not re.search(rf"^{name} = ", notebook.cells[index].source, flags=re.MULTILINE):
            raise ValueError(f"{path.name}: its parameters cell assigns no {name}; add the line, or do not pass it")
    return parameterize_notebook(notebook, parameters, kernel_name="python3", language="python")


def section_of(notebook, index):
    """The heading above cell `index`, for progress lines."""
    for cell in reversed(notebook.cells[: index + 1]):
        headings = re.findall(r"^#+ (.+)$", cell.source, flags=re.MULTILINE) if cell.cell_type == "markdown" else []
        if headings:
            return headings[-1].strip()
    return ""


def execute(notebook, name, position, folder):
    """Execute `notebook` from top to bottom in `folder`, printing one line a section, and return its run time in s."""
    total = len(notebook.cells)
    interactive = sys.stdout.isatty()
    last = {"section": None}

    def on_start(cell, cell_index):
        section = section_of(notebook, cell_index)
        line = f"[{position}] {name}: cell {cell_index + 1}/{total} · {section}"
        if interactive:
            print(f"\r\033[K{line[:110]}", end="", flush=True)
        elif section != last["section"]:
            print(line, flush=True)
        last["section"] = section

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=on_start,
        record_timing=False,
    )
    started = time.perf_counter()
    client.execute()
    if interactive:
        print()
    return time.perf_counter() - started


def tidy(notebook):
    """Strip what GitHub refuses or nobody wants to read: widget state, timings, stderr noise, the kernel's host."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
            for output in cell.outputs:
                shown = output.get("data", {})
                shown.pop("application/vnd.jupyter.widget-view+json", None)
                if "image/png" in shown:
                    shown["image/png"] = smaller_png(shown["image/png"])
    return notebook


def smaller_png(text, colours=96):
    """A figure's PNG (base64) with a palette: a third of the bytes, and no difference that an eye finds.

    Returns the smaller of the two; a notebook on GitHub has to stay under 1 MB.
    """
    data = base64.b64decode(text)
    picture = Image.open(io.BytesIO(data)).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    small = io.BytesIO()
    picture.save(small, format="PNG", optimize=True)
    return text if small.tell() >= len(data) else base64.b64encode(small.getvalue()).decode()


def faults(notebook, text):
    """What must not be in a committed notebook: errors, gaps in the counts, machine paths, more than 1 MB."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1..n")
    found += [
        f"cell {i} ends in an error" for i, c in enumerate(code, 1) if any(o.output_type == "error" for o in c.outputs)
    ]
    for secret in {str(ROOT), str(pathlib.Path.home()) + os.sep, os.environ.get("CLOTHING_DATA_DIR") or str(ROOT)}:
        if secret in text:
            found.append("a path of this machine stands in it")
    if len(text.encode()) > MAX_BYTES:
        found.append(f"it has {len(text.encode()) / 1e6:.2f} MB; GitHub's readers get at most {MAX_BYTES / 1e6:.0f} MB")
    return found


def to_html(notebook):
    """The notebook as one HTML page."""
    from nbconvert import HTMLExporter  # slow to import, and not needed when a notebook fails

    return HTMLExporter(template_name="lab").from_notebook_node(notebook)[0]


def main(argv=None):
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m study.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help="names or their numbers (1 2 3); all where none is given")
    parser.add_argument("--profile", choices=("quick", "full"), default="quick")
    parser.add_argument("--data", choices=("auto", "sketches"), default="auto")
    parser.add_argument(
        "--baselines",
        choices=("quick", "full", "finished"),
        help="study A's two baseline networks: their profile; finished: no long training, show what is there",
    )
    parser.add_argument("--render", action="store_true", help="replace the committed notebooks by the executed ones")
    options = parser.parse_args(argv)
    chosen = [
        name
        for name in NOTEBOOKS
        if not options.notebooks or any(name.startswith(w) or name[1] == w for w in options.notebooks)
    ]
    if not chosen:
        parser.error(f"no notebook is called {' or '.join(options.notebooks)}; there are {', '.join(NOTEBOOKS)}")
    try:
        return run(chosen, options)
    except OSError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def run(chosen, options):
    """Run the notebooks `chosen` and write what `main` was asked for; returns the exit code."""
    build = ROOT / "build"
    # A rendering replaces the committed results too; every other run keeps its results under build/.
    os.environ["CLOTHING_RESULTS_DIR"] = str(ROOT / "results" if options.render else build / "results")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ["CLOTHING_MODELS_DIR"] = str(ROOT / "models" if options.render else build / "models")
    os.environ["CLOTHING_IMAGES_DIR"] = str(ROOT / "repo_images" if options.render else build / "repo_images")
    written = []
    for number, name in enumerate(chosen, 1):
        path = ROOT / "notebooks" / f"{name}.ipynb"
        parameters = {"PROFILE": options.profile, "DATA": options.data}
        if options.baselines and name == NOTEBOOKS[0]:
            parameters["BASELINES"] = options.baselines
        notebook = read_with_parameters(path, parameters)
        try:
            seconds = execute(notebook, name, f"{number}/{len(chosen)}", ROOT / "notebooks")
        except (CellExecutionError, DeadKernelError) as error:
            kept = build / f"{name}.failed.ipynb"
            files.write_text(kept, nbformat.writes(notebook))
            print(f"\n{error}\n{name} stopped; everything up to there is in {kept.relative_to(ROOT)}", file=sys.stderr)
            return 1
        notebook = tidy(notebook)
        text = nbformat.writes(notebook)
        files.write_text(build / f"{name}.ipynb", text)
        files.write_text(build / f"{name}.html", to_html(notebook))
        written.append(build / f"{name}.html")
        print(f"[{number}/{len(chosen)}] {name}: done in {seconds / 60:.1f} minutes", flush=True)
        if options.render:
            wrong = faults(notebook, text)
            if wrong:
                print(f"{name} is not replaced: {'; '.join(wrong)}", file=sys.stderr)
                return 1
            files.write_text(path, text + "\n")
    report(pathlib.Path(os.environ["CLOTHING_RESULTS_DIR"]), written)
    return 0


def report(results_folder, pages):
    """Print the results table of the run and where its files are."""
    from study import results

    print()
    print(results.text_summary(results_folder))
    print("\nNotebooks as pages:")
    for page in pages:
        print(f"  {page.relative_to(ROOT)}")
    print(f"Results: {results_folder.relative_to(ROOT)}/")


if __name__ == "__main__":
    raise SystemExit(main())
