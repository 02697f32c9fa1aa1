"""The repository as a reader meets it: layout, notebooks, links, commands, and who imports whom."""

import ast
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "utils").glob("*.py"))
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]


def code_cells(path):
    return [
        c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code" and "".join(c["source"]).strip()
    ]


def test_the_top_level_is_the_one_agreed_on():
    for name in ("notebooks", "utils", "data", "repo_images", "requirements.txt", "README.md"):
        assert (ROOT / name).exists(), name
    assert [path.stem for path in NOTEBOOKS] == [
        "01_data_and_training", "02_receptive_field_and_flops", "03_quantization",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_style(path):
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        assert isinstance(statement, ast.Assign), "the parameters cell holds assignments only"
        ast.literal_eval(statement.value)
        assert all(target.id.isupper() for target in statement.targets)
    for number, cell in enumerate(code_cells(path), 1):
        source = "".join(cell["source"])
        assert len(source.splitlines()) <= 15, f"code cell {number} has more than 15 lines"
        assert not re.search(r"^\s*(def|class) ", source, re.M), f"code cell {number} defines something"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs_come_from_one_run(path):
    assert path.stat().st_size < 1_000_000
    text = path.read_text()
    assert "application/vnd.jupyter.widget" not in text
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_resolve(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_what_is_pinned_is_at_least_the_lowest_version_that_is_named():
    import tomllib

    from packaging.requirements import Requirement

    named = [
        Requirement(text) for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    lowest = {requirement.name: requirement.specifier for requirement in named}
    pins = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = {requirement.name: requirement for requirement in map(Requirement, filter(None, pins))}
    assert set(pins) - set(lowest) <= {"pytest", "hypothesis", "ruff"} and set(lowest) <= set(pins)
    for name, specifier in lowest.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and pin.version in specifier, name


def test_readme_python_runs_and_prints_what_it_says():
    """Blocks of Python in README run as they stand, and print the block behind them."""
    text = (ROOT / "README.md").read_text()
    pairs = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", text, flags=re.S)
    assert pairs, "README shows no Python with its output"
    for source, expected in pairs:
        done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip() == expected.strip()


def imports_of(path):
    """Names that a module of utils imports at its top level, as `utils.x` or the package's name."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "utils":
            found |= {f"utils.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found |= {f"utils.{node.module or alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module.split(".")
            found.add(".".join(package[:2]) if package[0] == "utils" else package[0])
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_run_downwards(path):
    found = imports_of(path)
    if not path.stem.startswith(("plots", "run_notebooks", "results", "study")):
        assert not {name for name in found if name.startswith(("utils.plots", "utils.results", "utils.study"))}
    if path.stem in ("layer_calls", "flops", "receptive_field", "latency") or path.stem.startswith(
        ("flops_", "receptive_field_")
    ):
        clothing = {"datasets", "pipeline", "models", "training", "evaluation", "sketches", "splits"}
        assert not found & {f"utils.{name}" for name in clothing}
        assert not found & {"matplotlib", "seaborn", "sklearn", "tensorflow", "scipy"}
    if path.stem == "datasets":
        assert not found & {"utils.pipeline", "utils.models", "utils.training"}


def test_the_instruments_import_nothing_heavy():
    program = (
        "import sys, keras; before = set(sys.modules)\n"  # Keras itself brings what it brings
        "from utils import flops, latency, layer_calls, receptive_field\n"
        "heavy = {'matplotlib', 'seaborn', 'sklearn', 'scipy', 'keras_flops', 'ai_edge_litert', 'PIL'}\n"
        "print(sorted((set(sys.modules) - before) & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_of_a_machine_stands_in_the_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    places = re.compile("/(" + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me/[a-z]+", "Use" + "rs")) + ")/")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".ipynb", ".txt", ".toml", ".json", ".csv") and path.exists():
            assert not places.search(path.read_text(errors="replace")), name
        if path.exists() and not name.startswith("models/"):
            assert path.stat().st_size < 1_000_000, name
