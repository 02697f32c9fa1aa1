"""The repository as a reader meets it: layout, notebooks, links, commands, and who imports whom."""

import ast
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "utils").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("docs/*.md"))]


def code_cells(path):
    cells = json.loads(path.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]


def test_the_top_level_is_the_one_agreed_on():
    for name in ("notebooks", "utils", "data", "repo_images", "requirements.txt", "README.md"):
        assert (ROOT / name).exists(), name
    names = ["01_data_and_training", "02_receptive_field_and_flops", "03_quantization"]
    assert [path.stem for path in NOTEBOOKS] == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_style_and_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert ["".join(c["source"]) for c in tagged] == ['DATA = "auto"\nRETRAIN = False\nSEED = 0'], "the committed run"
    assert not any("injected-parameters" in c["metadata"].get("tags", []) for c in cells)
    for number, cell in enumerate(code_cells(path), 1):
        source = "".join(cell["source"])
        most = 25 if number == 1 else 15  # the first finds the project and imports
        assert len(source.splitlines()) <= most, f"code cell {number} has more than {most} lines"
        assert max(map(len, source.splitlines())) <= 88, f"GitHub cuts a line of code cell {number}"
        assert not re.search(r"^\s*(def|class) ", source, re.M), f"code cell {number} defines something"
        assert cell["execution_count"] == number, "outputs come from one run"
        assert not any(out["output_type"] == "error" or out.get("name") == "stderr" for out in cell["outputs"])
    assert path.stat().st_size < 1_000_000 and "application/vnd.jupyter.widget" not in path.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_a_page_resolve(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_picture_is_shown():
    text = "".join(page.read_text() for page in [*PAGES, *NOTEBOOKS])
    assert [path.name for path in (ROOT / "repo_images").iterdir() if f"repo_images/{path.name})" not in text] == []


def test_what_is_pinned_is_at_least_the_lowest_version_that_is_named():
    import tomllib

    from packaging.requirements import Requirement

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    named = [Requirement(text) for text in groups["lowest"]]
    lowest = {requirement.name: requirement.specifier for requirement in named}
    pins = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = {requirement.name: requirement for requirement in map(Requirement, filter(None, pins))}
    assert set(pins) - set(lowest) <= {"pytest", "pytest-xdist", "hypothesis", "ruff"} and set(lowest) <= set(pins)
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


# Who may import whom at the door: a package imports from the rows below its own, never from its own row or above.
LEVELS = (
    ("study",),
    ("quantization",),
    ("training", "evaluation"),
    ("datasets", "receptive_field"),
    ("flops", "pruning", "latency", "classify"),
    ("layer_calls", "models", "plots", "files", "environment", "_checks"),
)
LEVEL = {name: -row for row, names in enumerate(LEVELS) for name in names}


def imports_of(path):
    """(package, line) of every import of utils or study in a file, also of those inside functions."""
    base = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else ()
            module = ".".join([*prefix, *(node.module.split(".") if node.module else ())])
            modules = [f"{module}.{alias.name}" for alias in node.names] if module in ("utils", "study") else [module]
        else:
            continue
        for module in modules:
            parts = module.split(".")
            if parts[0] == "study":
                yield "study", node.lineno
            elif parts[0] == "utils" and len(parts) > 1:
                yield parts[1], node.lineno


def test_no_import_runs_upwards_and_none_in_a_circle():
    wrong = []
    for path in [*MODULES, *sorted((ROOT / "study").rglob("*.py"))]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        here = "study" if parts[0] == "study" else parts[1]
        if here == "__init__" or path.stem == "__main__":  # a command stands above the packages that it joins
            continue
        for package, line in imports_of(path):
            if package != here and LEVEL[package] >= LEVEL[here] and {here, package} - set(LEVELS[-1]):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {package}")
    assert not wrong, wrong


def test_utils_has_fourteen_entries_with_short_faces():
    inside = sorted((ROOT / "utils").iterdir())
    names = {path.name for path in inside if not path.name.startswith((".", "_")) and path.name != "README.md"}
    assert len(names) <= 14, names
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "utils" / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(name.removesuffix(".py") for name in names)
    for face in (ROOT / "utils").rglob("__init__.py"):
        assert len(face.read_text().splitlines()) <= 30, face.relative_to(ROOT)


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


def test_a_half_made_venv_is_completed_and_not_deleted(tmp_path):
    python = tmp_path / "python"  # makes a whole .venv: one whose python has pip
    python.write_text('#!/bin/sh\n[ "$2" = venv ] && printf "#!/bin/sh\\n" > .venv/bin/python\nexit 0\n')
    broken = tmp_path / ".venv" / "bin" / "python"  # left by Ctrl-C before pip was there
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    for path in (python, broken):
        path.chmod(0o755)
    (tmp_path / "requirements.txt").touch()
    (tmp_path / ".venv" / "mine").touch()
    command = ["make", "-f", str(ROOT / "Makefile"), "setup", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / ".venv").iterdir()} == {".ready", "bin", "mine"}
